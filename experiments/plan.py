"""From a study to its trials, resolved and matched, and back from the stored plan. Free of torch.

A plan is stored with a key over the study and the source files. Asked for again under the same key it
is read, not made: a finished study is reported without importing torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.code_version import source_digest
from experiments.store import write_json
from experiments.study import Arm, Study, changed_recipe
from experiments.trial import SCHEMA_VERSION, Trial, digest


@dataclass(frozen=True)
class PlannedArm:
    """An arm with every option filled in.

    Attributes:
        name: as in the study.
        template: its trial with seed 0.
        matching: how near its size came to the baseline's, as stored; None for the baseline.
    """

    name: str
    template: Trial
    matching: dict[str, Any] | None

    def trial(self, seed: int) -> Trial:
        """The arm's trial with this seed."""
        return dataclasses.replace(self.template, seed=seed)


@dataclass(frozen=True)
class Plan:
    """A study whose arms are resolved."""

    name: str
    study: Study
    arms: tuple[PlannedArm, ...]
    details: dict[str, Any]
    """What the report says of metric, budget and splits, as stored."""

    def trials(self) -> list[Trial]:
        """Seed by seed, so that pairs are complete early."""
        return [arm.trial(seed) for seed in range(self.study.seeds) for arm in self.arms]

    def arm(self, name: str) -> PlannedArm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self, command: str) -> dict[str, Any]:
        """As stored in `plan.json`."""
        study = self.study
        baseline = self.arm(study.baseline)
        return {
            "schema_version": SCHEMA_VERSION,
            "key": _key(self.name, study),
            "study": {
                "name": self.name,
                **{
                    field: getattr(study, field)
                    for field in ("question", "varied", "fixed", "cost", "answer")
                },
            },
            **self.details,
            "margin": study.margin,
            "alpha": 0.05,
            "match": study.match,
            "task": study.task,
            "skeleton": study.skeleton,
            "command": command,
            "comparisons": [
                {"arm": arm, "baseline": baseline_name} for arm, baseline_name in study.all_comparisons()
            ],
            "arms": [
                {
                    "name": arm.name,
                    "mixer": arm.template.mixer_text,
                    "switches": differences(baseline.template, arm.template),
                    "matching": arm.matching,
                    "template": arm.template.to_dict(),
                    "trials": [{"seed": seed, "trial_id": arm.trial(seed).id} for seed in range(study.seeds)],
                }
                for arm in self.arms
            ],
        }


def differences(one: Trial, other: Trial) -> dict[str, Any]:
    """Fields of `other` that differ from `one`, by dotted name; another mixer is a single field."""
    changed = {
        key: value for key, value in _flat(other).items() if key != "seed" and _flat(one).get(key) != value
    }
    names, other_names = ([mixer.name for mixer in trial.mixer] for trial in (one, other))
    if names != other_names:
        changed = {key: value for key, value in changed.items() if not key.startswith("mixer.")}
        return {"mixer": ",".join(other_names), **changed}
    return changed


def _flat(trial: Trial) -> dict[str, Any]:
    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list):
            for position, inner in enumerate(value):
                yield from walk(f"{prefix}.{position}" if len(value) > 1 else prefix, inner)
        else:
            yield prefix.replace(".options.", "."), value

    return dict(walk("", trial.to_dict()))


def _key(name: str, study: Study) -> str:
    same_for_any_seeds = dataclasses.asdict(dataclasses.replace(study, seeds=1))
    return digest([name, same_for_any_seeds, source_digest()])


def make(name: str, study: Study, stored: Path) -> Plan:
    """The plan of a study, read from `stored` if that was made for the same study by the same code.

    Raises:
        InputError: something the study asks for does not exist or does not fit; nothing is written.
    """
    return _read(stored, name, study) or _resolve(name, study)


def _read(path: Path, name: str, study: Study) -> Plan | None:
    try:
        stored = json.loads(path.read_bytes())
        if stored["key"] != _key(name, study):
            return None
        arms = tuple(
            PlannedArm(arm["name"], Trial.from_dict(arm["template"]), arm["matching"])
            for arm in stored["arms"]
        )
        return Plan(name, study, arms, {key: stored[key] for key in ("metric", "budget")})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(plan: Plan, path: Path, command: str) -> None:
    """Store the plan."""
    write_json(path, plan.to_dict(command))


def _resolve(name: str, study: Study) -> Plan:
    from experiments import budget, build
    from experiments.skeletons import SKELETONS
    from experiments.tasks import TASKS
    from mixers import MIXERS

    skeleton, task = SKELETONS.parse(study.skeleton), TASKS.parse(study.task)

    def template(arm: Arm) -> Trial:
        return build.resolve(
            MIXERS.parse_pattern(arm.mixer),
            build.with_options(skeleton, arm.skeleton),
            build.with_options(task, arm.task),
            changed_recipe(study.train, arm.train, f"arm {arm.name}: train."),
            seed=0,
        )

    templates = {arm.name: template(arm) for arm in study.all_arms()}
    reference = build.count_costs(templates[study.baseline])
    planned = []
    for arm_name, trial in templates.items():
        matching = None
        if arm_name == study.baseline or study.match == "none":
            build.count_costs(trial)  # builds it, so that what does not fit fails before anything runs
        else:
            trial, matched = budget.match(trial, study.match, getattr(reference, study.match))
            matching = matched.to_dict()
        planned.append(PlannedArm(arm_name, trial, matching))
    baseline = templates[study.baseline]
    built_task = build.create_task(baseline.task)
    sizes = built_task.load(0).sizes
    recipe = baseline.train
    details = {
        "metric": dataclasses.asdict(built_task.metric),
        "budget": f"{recipe.epochs} epochs of {sizes['train']:,} examples, batch {recipe.batch_size}",
    }
    return Plan(name, study, tuple(planned), details)
