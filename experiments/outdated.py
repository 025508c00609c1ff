"""Finished trials that the code or the data of today would not give again: what to say of them. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.quantities import first_of
from experiments import search, sources
from experiments.plan import Plan
from experiments.store import Store

MOST_FILES = 3  # that a sentence names


@dataclass(frozen=True)
class Outdated:
    """The finished trials of a plan whose code or data have changed since.

    Attributes:
        files: by the id of a trial, those of the files it was made of that are others today.
        data: by the id of a trial, the task whose data are.
        results: by the id of a trial, what is stored of it.
    """

    files: Mapping[str, Collection[str]]
    data: Mapping[str, str]
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def trials(self) -> list[str]:
        """Their ids."""
        return list(dict.fromkeys((*self.files, *self.data)))

    def set_aside(self, trial_id: str, store: Store) -> Path | None:
        """Move the result of one of them away, as `TrialFolder.set_aside`; one that is new since stays."""
        return store.folder(trial_id).set_aside("outdated", self.results[trial_id])

    def sentences(self) -> list[str]:
        """What to say of them, the files in one sentence and each task in another."""
        said = []
        if self.files:
            files = sorted({file for changed in self.files.values() for file in changed})
            have = "has" if len(files) == 1 else "have"
            said.append(f"{first_of(files, MOST_FILES)} {have} changed since {_shown(self.files)}")
        for task in dict.fromkeys(self.data.values()):
            own = [trial for trial, other in self.data.items() if other == task]
            said.append(f"{task} gives other data today than when {_shown(own)}")
        return said


def find(plan: Plan, store: Store) -> Outdated:
    """The finished trials of a plan, and of its search for learning rates, that are outdated.

    Results that were stored without hashes of their sources say nothing.
    """
    today: dict[tuple[str, ...], dict[str, str]] = {}
    files: dict[str, Collection[str]] = {}
    results: dict[str, dict[str, Any]] = {}
    for trial_id in dict.fromkeys([*(trial.id for trial in plan.trials()), *search.trial_ids(plan)]):
        result = store.folder(trial_id).finished_result()
        if result is None:
            continue
        results[trial_id] = result
        before = result["provenance"].get("sources")
        if not before:
            continue
        mixers, task = [each["name"] for each in result["trial"]["mixer"]], result["trial"]["task"]["name"]
        if (*mixers, task) not in today:
            today[*mixers, task] = sources.digests(mixers, task)
        now = today[*mixers, task]
        changed = [file for file in before | now if before.get(file) != now.get(file)]
        if changed:
            files[trial_id] = changed
    return Outdated(files, _with_other_data(plan, results), results)


def _with_other_data(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The finished trials of the arms whose data of seed 0 are others, if making the plan has loaded them."""
    found = {}
    for arm in plan.arms:
        task = str(arm.template.task)
        first = results.get(arm.trial(0).id) if task in plan.fingerprints else None
        if first and first["data"].get("fingerprint") not in (None, plan.fingerprints[task]):
            own = (arm.trial(seed).id for seed in range(plan.study.seeds))
            found.update({trial_id: task for trial_id in own if trial_id in results})
    return found


def _shown(trials: Collection[str]) -> str:
    """The end of a sentence that says what has changed."""
    were, they = (
        ("1 finished trial was", "its number is")
        if len(trials) == 1
        else (f"{len(trials)} finished trials were", "their numbers are")
    )
    return f"{were} trained: {they} of before, and --retrain makes new ones."
