"""Trained models of finished trials, built again from what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from experiments.build import build_model
from experiments.skeletons.base import Skeleton
from experiments.store import TrialFolder
from experiments.trial import Trial
from mixers.registry import InputError, suggest


@dataclass(frozen=True)
class Trained:
    """A finished trial whose weights were kept.

    Attributes:
        name: of its arm; where no study was asked for, with all studies that share it: "conv (one, two)".
        trial: what was run.
        folder: where it is stored.
    """

    name: str
    trial: Trial
    folder: TrialFolder

    def initial(self) -> Skeleton:
        """The model before training."""
        return build_model(self.trial).eval()

    def load(self) -> Skeleton:
        """The model after training.

        Raises:
            InputError: the stored weights cannot be read or are not of this model.
        """
        model = self.initial()
        try:
            model.load_state_dict(safetensors.torch.load_file(self.folder.weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{self.folder.weights} does not fit its trial: {first}") from None
        return model


def trained(runs: Path, study: str | None = None) -> Iterator[Trained]:
    """The trained trials of seed 0, study by study, arm by arm, in the order of the plans.

    A trial that several studies share comes once, and so does one of which several cases of a study read
    different numbers.

    Args:
        runs: a runs folder.
        study: only those of this one.

    Raises:
        InputError: that study was never planned there, or a plan cannot be read.
    """
    plans = sorted((runs / "studies").glob("*/plan.json"))
    known = [plan.parent.name for plan in plans]
    if study is not None and study not in known:
        there = f"there: {', '.join(known)}" if known else "nothing is there"
        raise InputError(f"no study {study!r} in {runs}{suggest(study, known)} ({there})")
    studies: dict[str, dict[str, list[str]]] = {}  # of each trial: those that call it by one name
    for plan in plans:
        if study in (None, plan.parent.name):
            for arm, trial_id in _once(_planned(plan)):
                studies.setdefault(trial_id, {}).setdefault(arm, []).append(plan.parent.name)
    for trial_id, by_arm in studies.items():
        folder = TrialFolder(runs / "trials" / trial_id, trial_id)
        result = folder.result()
        if result is not None and result["status"] == "ok" and folder.weights.is_file():
            names = by_arm if study else [f"{arm} ({', '.join(which)})" for arm, which in by_arm.items()]
            yield Trained(", ".join(names), Trial.from_dict(result["trial"]), folder)


def _planned(plan: Path) -> list[tuple[str, str, str]]:
    """Name with its case, name without, and trial of every arm's seed 0.

    Raises:
        InputError: it cannot be read.
    """
    try:
        arms = json.loads(plan.read_text(encoding="utf-8"))["arms"]
        return [
            (arm["name"], arm.get("arm") or arm["name"], trial["trial_id"])
            for arm in arms
            for trial in arm["trials"]
            if trial["seed"] == 0
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{plan} is not a plan that can be read: {error!r}") from None


def _once(planned: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Name and trial of each different trial; the name without its case where that says enough."""
    first = {trial_id: (name, label) for name, label, trial_id in reversed(planned)}
    labels = [label for _, label in first.values()]
    named = {
        trial_id: label if labels.count(label) == 1 else name for trial_id, (name, label) in first.items()
    }
    return [(named[trial_id], trial_id) for trial_id in dict.fromkeys(each[2] for each in planned)]
