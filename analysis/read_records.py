"""From the files of a study to its records; what cannot be read is said and never dropped."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.records import (
    DIVERGED,
    FAILED,
    MISSING,
    OK,
    UNREADABLE,
    Arm,
    Case,
    Json,
    NaiveBaseline,
    PublishedRow,
    RatePoint,
    RateSearch,
    RecordError,
    Study,
    Trial,
)
from experiments.history import History
from experiments.interface import Metric
from experiments.trial import SCHEMA_VERSION


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
        return read_study(plan, trials_folder)
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
    """Whether they are 1, 2, ... up to the last epoch of the trial, if its record says which that is."""
    recipe = (trial.result.get("trial") or {}).get("train") or {}
    last = recipe["epochs"] + recipe.get("cooldown_epochs", 0) if "epochs" in recipe else len(epochs)
    return epochs == list(range(1, last + 1))


def _is_validated(trial: Trial, column: str) -> bool:
    """Whether the trial has the validation metric whose course the column would be."""
    return math.isfinite(trial.metric("validation", column.removeprefix("validation_")))


def read_study(plan: Json, trials_folder: Path) -> Study:
    """Every trial that a plan, as it is stored, names.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is no such plan.
    """
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
    cases, search = plan.get("cases") or {}, plan.get("search") or {}
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
        history=History.of(plan),
        planned_looks=[int(look) for look in plan.get("planned_looks") or ()],
        axis=str(cases.get("axis") or ""),
        log_axis=bool(cases.get("log")),
        cases=[_case(row) for row in cases.get("entries", [])],
        searches={arm["name"]: _search(arm, trials_folder, metric["name"]) for arm in search.get("arms", [])},
        search_seeds=list(search.get("seeds", [])),
        published=[_published_row(row) for row in plan.get("published") or []],
        baselines=[_naive_baseline(row) for row in plan.get("baselines") or []],
    )


def _case(row: Json) -> Case:
    _check_keys(row, "a case", ("name", "at", "series", "about"), optional=("skeleton",))
    return Case(**row)


def _published_row(row: Json) -> PublishedRow:
    keys = ("entry", "value", "source", "convention", "tolerance", "not_comparable")
    _check_keys(row, "a published number", keys)
    fields = dict(row)
    return PublishedRow(arm=fields.pop("entry"), **fields)


def _naive_baseline(row: Json) -> NaiveBaseline:
    _check_keys(row, "a naive baseline", ("name", "value", "case"))
    return NaiveBaseline(**row)


def _check_keys(row: Json, what: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless a stored row has the keys that are needed, and none that is unknown."""
    missing = [key for key in needed if key not in row]
    unknown = sorted(row.keys() - {*needed, *optional})
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"{what} has unknown keys: {', '.join(unknown)}")


def _search(arm: Json, trials_folder: Path, metric: str) -> RateSearch:
    points = [_rate_point(point, trials_folder, metric) for point in arm["points"]]
    return RateSearch(arm["chosen"], arm["at_edge"], points)


def _rate_point(point: Json, trials_folder: Path, metric: str) -> RatePoint:
    planned = [{"seed": 0, "trial_id": trial_id} for trial_id in point["trials"]]
    trials = [_trial("", each, trials_folder / each["trial_id"], metric) for each in planned]
    return RatePoint(point["lr"], [trial.metric("validation", metric) for trial in trials])


def _positive(value: float, name: str) -> float:
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


def _level(alpha: float) -> float:
    """alpha, which lies below a half: the interval of the equivalence test is at 1 - 2 alpha."""
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
    skipped = result.get("skipped") or {}
    test = max((name for name in skipped if metric.endswith(f"_{name}")), key=len, default="")
    if value is None and test:
        return FAILED, f"no test {metric}: {skipped[test]}"
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
