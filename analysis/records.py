"""Stored records of a study: its plan, and one folder per trial.

    <study>/plan.json                     what was planned, before the first run: margin, comparisons, trials
    <trials>/<trial_id>/result.json       everything deterministic: metrics, costs, provenance; written last
    <trials>/<trial_id>/timing.json       wall-clock: throughput, peak memory
    <trials>/<trial_id>/curve.csv         epoch by epoch
    <trials>/<trial_id>/predictions.npz   example, target, prediction of the test split

A planned trial is always in the study that `analysis.read_records.load_study` returns. One without a readable
result has a status that says so ("missing", "unreadable") and an `error` in words; nothing is dropped and
nothing is guessed.

Reading is plain Python, because a command-line report should not wait for pandas;
`analysis.record_rows.trials_frame` gives notebooks the same records as a tidy frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.quantities import metric_in_words
from experiments.history import History
from experiments.interface import Metric

OK, DIVERGED, FAILED, MISSING, UNREADABLE = "ok", "diverged", "failed", "missing", "unreadable"

Json = dict[str, Any]


class RecordError(ValueError):
    """A file that cannot be used; the message is one line that names the file and says why."""


@dataclass(frozen=True)
class Trial:
    """One planned trial and what is stored of it; `result` and `timing` are empty where there is no file."""

    arm: str
    seed: int
    trial_id: str
    folder: Path
    status: str
    error: str | None = None
    result: Json = field(default_factory=dict)
    timing: Json = field(default_factory=dict)
    own_metric: str | None = None  # compared in the study's place; not told by the stored predictions
    shard: str = ""  # "2/8", where the study was divided

    def metric(self, split: str, name: str) -> float:
        """A metric of a finished trial; NaN if the trial has no such number."""
        value = (self.result.get("metrics") or {}).get(split, {}).get(name)
        return float(value) if self.status == OK and isinstance(value, int | float) else math.nan

    def compared(self, metric: str) -> float:
        """The number of the test split that is compared: one of its own, or the study's `metric`."""
        return self.metric("test", self.own_metric or metric)

    @property
    def costs(self) -> Json:
        return dict(self.result.get("costs") or {})

    @property
    def provenance(self) -> Json:
        return dict(self.result.get("provenance") or {})

    @property
    def sessions(self) -> list[Json]:
        """The provenance of each session: the earlier ones, if the trial was interrupted, and the last."""
        return [*self.provenance.get("earlier_sessions", ()), self.provenance]


@dataclass(frozen=True)
class Arm:
    """The trials that differ only in the seed; in a study with cases, those of one case.

    `name` is unique in the study, `label` within its case. `metric` is compared in place of the study's.
    """

    name: str
    mixer: str
    switches: Json
    matching: Json | None
    trials: list[Trial]
    label: str = ""
    case: str | None = None
    metric: str | None = None
    budget: str = ""

    def with_status(self, *statuses: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.status in statuses]

    def values(self, split: str, metric: str) -> dict[int, float]:
        """The metric by seed, finished trials only."""
        return {trial.seed: trial.metric(split, metric) for trial in self.with_status(OK)}

    def compared(self, metric: str) -> dict[int, float]:
        """What is compared by seed, finished trials only; the study's `metric`, if it has none of its own."""
        return {trial.seed: trial.compared(metric) for trial in self.with_status(OK)}


@dataclass(frozen=True)
class Case:
    """One of the places where all arms are compared: where it lies, what tells it apart, what is asked."""

    name: str
    at: float | None
    series: str | None
    about: str
    skeleton: str = ""


@dataclass(frozen=True)
class RatePoint:
    """One learning rate of a search: the validation metric of each of its trials, NaN if it has none."""

    rate: float
    values: list[float]


@dataclass(frozen=True)
class RateSearch:
    """How the learning rate of an arm was chosen; `at_edge` is "low" or "high" if the grid ends there."""

    chosen: float
    at_edge: str | None
    points: list[RatePoint]


@dataclass(frozen=True)
class PublishedRow:
    """A number from a paper that an arm may be held against, unless a reason says why not."""

    arm: str
    value: float
    source: str
    convention: str
    tolerance: float
    not_comparable: str | None


@dataclass(frozen=True)
class NaiveBaseline:
    """What a predictor without learning reaches."""

    name: str
    value: float
    case: str | None


@dataclass(frozen=True)
class Study:
    """A question, its plan, and its arms in the order of the plan."""

    name: str
    about: dict[str, str]  # question, varied, fixed, cost, answer
    metric: Metric
    margin: float | None
    alpha: float
    match: str
    task: str
    skeleton: str
    command: str
    comparisons: list[tuple[str, str]]  # (arm, baseline)
    families: list[list[int]]  # indices into comparisons; Holm's adjustment runs within each
    arms: dict[str, Arm]
    history: History = field(default_factory=History)
    planned_looks: list[int] = field(default_factory=list)  # numbers of seeds, which alpha allows for
    axis: str = ""  # what the cases vary
    log_axis: bool = False
    cases: list[Case] = field(default_factory=list)
    searches: dict[str, RateSearch] = field(default_factory=dict)  # by name of the arm
    search_seeds: list[int] = field(default_factory=list)
    published: list[PublishedRow] = field(default_factory=list)
    baselines: list[NaiveBaseline] = field(default_factory=list)

    def where(self, arm: Arm) -> str:
        """The task of an arm."""
        return next((case.about for case in self.cases if case.name == arm.case), self.task)

    def skeleton_of(self, arm: Arm) -> str:
        """The skeleton of an arm."""
        own = next((case.skeleton for case in self.cases if case.name == arm.case), "")
        return own or self.skeleton

    @property
    def settings(self) -> dict[str, list[str]]:
        """The distinct tasks, skeletons and budgets."""
        arms = list(self.arms.values())
        found = {
            "task": map(self.where, arms),
            "skeleton": map(self.skeleton_of, arms),
            "budget": (arm.budget for arm in arms if arm.budget),
        }
        return {what: list(dict.fromkeys(values)) for what, values in found.items()}

    @property
    def first_cases(self) -> dict[str | None, str | None]:
        """For each case, the first one that tests the same trained models, or these and others."""
        trained: dict[str | None, set[str]] = {}
        for arm in self.arms.values():
            trained.setdefault(arm.case, set()).update(trial.trial_id for trial in arm.trials)
        return {
            case: next(other for other, models in trained.items() if own <= models)
            for case, own in trained.items()
        }

    def compared_by(self, arms: Iterable[Arm]) -> str:
        """What some arms are compared by, for people: what the names of their metrics have in common."""
        own = self.metric.name.split("_")
        names = {arm.metric or self.metric.name for arm in arms}
        common = [part for part in own if all(part in name.split("_") for name in names)]
        if common != own and len(names) == 1:
            return metric_in_words(*names)
        return metric_in_words("_".join(common)) if own[-1] in common else "metric of the case"

    @property
    def cases_share_models(self) -> bool:
        """Whether each case reads a number of its own off the same trained models."""
        return any(trial.own_metric for trial in self.trials)

    @property
    def trials(self) -> list[Trial]:
        return [trial for arm in self.arms.values() for trial in arm.trials]
