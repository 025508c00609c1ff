"""Stored records of a study: its plan, and one folder per trial.

    <study>/plan.json                     what was planned, before the first run: margin, comparisons, trials
    <trials>/<trial_id>/result.json       everything deterministic: metrics, costs, provenance; written last
    <trials>/<trial_id>/timing.json       wall-clock: throughput, peak memory
    <trials>/<trial_id>/curve.csv         epoch by epoch
    <trials>/<trial_id>/predictions.npz   example, target, prediction of the test split

A planned trial is always in the study that `load_study` returns. One without a readable result has a status
that says so ("missing", "unreadable") and an `error` in words; nothing is dropped and nothing is guessed.

Reading is plain Python, because a command-line report should not wait for pandas; `trials_frame` gives
notebooks the same records as a tidy frame.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.quantities import metric_in_words

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

OK, DIVERGED, FAILED, MISSING, UNREADABLE = "ok", "diverged", "failed", "missing", "unreadable"

Json = dict[str, Any]


class RecordError(ValueError):
    """A file that cannot be used; the message is one line that names the file and says why."""


@dataclass(frozen=True)
class Metric:
    """The reported number. `difference_unit` is what differences are in: points, where the metric is in %."""

    name: str
    unit: str
    difference_unit: str
    higher_is_better: bool

    @property
    def direction(self) -> int:
        """+1 if higher is better, -1 if lower is."""
        return 1 if self.higher_is_better else -1


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
    margin_after: int = 0  # trials that were finished when the margin was first stored
    comparisons_before: int = 0  # asked of a case, these among them, if there were results of more
    looks: list[int] = field(
        default_factory=list
    )  # unplanned: numbers of seeds, finished before there were more
    planned_looks: list[int] = field(
        default_factory=list
    )  # numbers of seeds to judge at, which alpha allows for
    looks_after: int = 0  # trials that were finished when these were first stored
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
        """By case, the first one that tests the same trained models or more: itself, if they are new."""
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
    def trials(self) -> list[Trial]:
        return [trial for arm in self.arms.values() for trial in arm.trials]


def load_study(study_folder: Path, trials_folder: Path) -> Study:
    """Read the plan of a study and every trial it names.

    A trial that cannot be read raises nothing: its status says so.

    Raises:
        RecordError: the plan is missing, unreadable, of another schema version, or names an arm that it does
            not have.
    """
    path = study_folder / "plan.json"
    plan = read_json(path)
    try:
        return _study(plan, trials_folder)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{path}: this is not a plan that can be reported: {reason}") from error


def read_json(path: Path) -> Json:
    """Read one JSON record of the known schema version.

    Raises:
        RecordError: no such file, not a JSON object, or another schema version.
    """
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecordError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path}: holds a {type(record).__name__}, not a record")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: has schema version {version}; this code reads version {SCHEMA_VERSION}")
    return record


def load_curve(trial: Trial, column: str) -> NDArray[np.float64] | None:
    """One column of a finished trial's curve.csv in the order of epochs; empty if it records no such column.

    None if the file cannot be read: is not there, or has not a finite number for every epoch of the trial. A
    shorter curve would tell another story of how training ended.
    """
    try:
        with open(trial.folder / "curve.csv", newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file) if row]
        epochs = [float(row[header.index("epoch")]) for row in rows]
        if not _are_epochs(epochs, trial):
            return None
        if column not in header:
            return None if _is_validated(trial, column) else np.empty(0)
        values = np.array([float(row[header.index(column)]) for row in rows])
    except (OSError, IndexError, ValueError, TypeError, AttributeError, csv.Error):
        return None
    return values if np.isfinite(values).all() else None


def _are_epochs(epochs: list[float], trial: Trial) -> bool:
    """Whether they are 1, 2, ... to the last that the trial was to train, if its record says which."""
    recipe = (trial.result.get("trial") or {}).get("train") or {}
    last = recipe["epochs"] + recipe.get("cooldown_epochs", 0) if "epochs" in recipe else len(epochs)
    return epochs == list(range(1, last + 1))


def _is_validated(trial: Trial, column: str) -> bool:
    """Whether the trial has a number of the validation split that the column would be the course of."""
    return math.isfinite(trial.metric("validation", column.removeprefix("validation_")))


def trials_frame(study: Study) -> pd.DataFrame:
    """One row per planned trial: arm, seed, status, each metric as <split>_<name>, each cost, each timing."""
    import pandas as pd

    return pd.DataFrame([trial_row(trial) | timing_row(trial) for trial in study.trials])


def trial_row(trial: Trial) -> Json:
    """The deterministic part of a trial as one flat row: same results, same row, on any machine."""
    metrics = trial.result.get("metrics") or {}
    row: Json = {"arm": trial.arm, "seed": trial.seed, "trial_id": trial.trial_id, "status": trial.status}
    row["error"] = trial.error
    row["selected_epoch"] = trial.result.get("selected_epoch")
    if trial.own_metric is not None:
        row["compared"] = trial.own_metric
    for split in ("test", "validation", "train"):
        for name, value in sorted((metrics.get(split) or {}).items()):
            row[f"{split}_{name}"] = value
    for name in ("params", "params_mixer", "params_rest", "macs", "macs_mixer", "state_bytes"):
        row[name] = trial.costs.get(name)
    row["data_fingerprint"] = (trial.result.get("data") or {}).get("fingerprint")
    return row


def timing_row(trial: Trial) -> Json:
    """What depends on the machine and the day: wall-clock, memory, hardware, backend, versions."""
    row: Json = {"arm": trial.arm, "seed": trial.seed, "trial_id": trial.trial_id}
    for name in ("started", "finished", "train_seconds", "examples_per_second", "peak_memory_bytes", "host"):
        row[name] = trial.timing.get(name)
    provenance = trial.provenance
    for name in ("device", "hardware", "threads", "code"):
        row[name] = provenance.get(name)
    row["backend"] = backend_name(provenance)
    return row


def backend_name(provenance: Json) -> str:
    """The kernels a trial ran on, ``scan: cpu``; "torch" for a mixer that has no kernel of its own."""
    backend = provenance.get("backend") or {}
    return ", ".join(f"{part}: {name}" for part, name in sorted(backend.items())) or "torch"


def _study(plan: Json, trials_folder: Path) -> Study:
    metric = plan["metric"]
    budget = str(plan.get("budget") or "")  # of plans that do not tell it arm by arm
    arms = {arm["name"]: _arm(arm, trials_folder, metric["name"], budget) for arm in plan["arms"]}
    comparisons = [(pair["arm"], pair["baseline"]) for pair in plan["comparisons"]]
    for name in (name for pair in comparisons for name in pair):
        if name not in arms:
            raise ValueError(f"a comparison names the arm '{name}', which is not among {', '.join(arms)}")
    about = {
        name: str(plan["study"].get(name) or "") for name in ("question", "varied", "fixed", "cost", "answer")
    }
    margin = plan.get("margin")
    return Study(
        name=str(plan["study"]["name"]),
        about=about,
        metric=Metric(
            metric["name"], metric["unit"], metric["difference_unit"], bool(metric["higher_is_better"])
        ),
        margin=None if margin is None else _positive(margin, "margin"),
        alpha=_level(plan.get("alpha", 0.05)),
        match=str(plan.get("match") or "none"),
        task=str(plan.get("task") or ""),
        skeleton=str(plan.get("skeleton") or ""),
        command=str(plan.get("command") or ""),
        comparisons=comparisons,
        families=_families(plan.get("families"), len(comparisons)),
        arms=arms,
        **_extensions(plan, trials_folder, metric["name"]),
    )


def _extensions(plan: Json, trials_folder: Path, metric: str) -> Json:
    """Cases, learning rates, published numbers and naive baselines, where the plan has any."""
    cases, search = plan.get("cases") or {}, plan.get("search") or {}
    return {
        "margin_after": int(plan.get("margin_after") or 0),
        "comparisons_before": int(plan.get("comparisons_before") or 0),
        "looks": [int(look) for look in plan.get("looks") or ()],
        "planned_looks": [int(look) for look in plan.get("planned_looks") or ()],
        "looks_after": int(plan.get("looks_after") or 0),
        "axis": str(cases.get("axis") or ""),
        "log_axis": bool(cases.get("log")),
        "cases": [Case(**case) for case in cases.get("entries", [])],
        "search_seeds": list(search.get("seeds", [])),
        "searches": {
            arm["name"]: RateSearch(
                arm["chosen"],
                arm["at_edge"],
                [_rate_point(point, trials_folder, metric) for point in arm["points"]],
            )
            for arm in search.get("arms", [])
        },
        "published": [
            PublishedRow(row["entry"], **{name: row[name] for name in row if name != "entry"})
            for row in plan.get("published") or []
        ],
        "baselines": [NaiveBaseline(**row) for row in plan.get("baselines") or []],
    }


def _rate_point(point: Json, trials_folder: Path, metric: str) -> RatePoint:
    planned = [{"seed": 0, "trial_id": trial_id} for trial_id in point["trials"]]
    trials = [_trial("", each, trials_folder / each["trial_id"], metric) for each in planned]
    return RatePoint(point["lr"], [trial.metric("validation", metric) for trial in trials])


def _positive(value: float, name: str) -> float:
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


def _level(alpha: float) -> float:
    """Below a half, since the equivalence test's interval is at 1 - 2 alpha."""
    if not 0 < float(alpha) < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
    return float(alpha)


def _families(families: list[list[int]] | None, comparisons: int) -> list[list[int]]:
    """The families as planned; comparisons in none of them form one more, so that none goes unadjusted."""
    families = [list(family) for family in families or []]
    named = [index for family in families for index in family]
    if len(set(named)) < len(named) or not set(named) <= set(range(comparisons)):
        raise ValueError(
            f"families must name each of the {comparisons} comparisons at most once, got {families}"
        )
    rest = [index for index in range(comparisons) if index not in set(named)]
    return [*families, rest] if rest else families


def _arm(arm: Json, trials_folder: Path, metric: str, budget: str) -> Arm:
    own = arm.get("metric")
    trials = [
        _trial(arm["name"], trial, trials_folder / trial["trial_id"], metric, own) for trial in arm["trials"]
    ]
    return Arm(
        arm["name"],
        str(arm.get("mixer") or arm["name"]),
        arm.get("switches") or {},
        arm.get("matching"),
        trials,
        label=str(arm.get("arm") or arm["name"]),
        case=arm.get("case"),
        metric=own,
        budget=str(arm.get("budget") or budget),
    )


def _trial(arm: str, planned: Json, folder: Path, metric: str, own_metric: str | None = None) -> Trial:
    """A planned trial as stored; it must have the number that is compared."""
    seed, trial_id, shard = int(planned["seed"]), str(planned["trial_id"]), str(planned.get("shard", ""))
    path = folder / "result.json"
    if not path.exists():
        return Trial(arm, seed, trial_id, folder, MISSING, shard=shard)
    try:
        result = read_json(path)
        if result.get("trial_id") != trial_id:
            raise RecordError(f"result.json: is the record of another trial, {result.get('trial_id')}")
        status, error = _status(result, own_metric or metric)
    except RecordError as problem:
        return Trial(arm, seed, trial_id, folder, UNREADABLE, _without_folder(problem, folder), shard=shard)
    return Trial(arm, seed, trial_id, folder, status, error, result, _timing(folder), own_metric, shard)


def _status(result: Json, metric: str) -> tuple[str, str | None]:
    """Trust "ok" only with a finite number behind it: a NaN must not enter a mean."""
    status, error = result.get("status"), result.get("error")
    if status in (DIVERGED, FAILED):
        return status, error
    if status != OK:
        return UNREADABLE, f"result.json: has the unknown status {status!r}"
    value = ((result.get("metrics") or {}).get("test") or {}).get(metric)
    skipped = (result.get("skipped") or {}).get(metric.rpartition("_")[2])
    if value is None and skipped:
        return FAILED, f"no test {metric}: {skipped}"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNREADABLE, f"result.json: says ok but has no finite test {metric}"
    return OK, None


def _timing(folder: Path) -> Json:
    """Timings are a courtesy: a trial without them still counts."""
    try:
        timing = json.loads((folder / "timing.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return timing if isinstance(timing, dict) else {}


def _without_folder(problem: RecordError, folder: Path) -> str:
    """Reports are handed around; where the records lay on this machine is nobody's business."""
    return str(problem).replace(f"{folder}/", "")
