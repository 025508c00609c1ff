"""Our arms as rows of tables: in the published one that their task and metric fit, or in one of their own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from analysis import quantities as q
from analysis.paper.evidence import reservations, t_interval_of
from analysis.paper.ours import OurStudy
from analysis.statistics import Estimate, t_interval
from analysis.summary import ArmSummary
from analysis.table import Cell, Column, Table
from experiments.interface import Metric

MEASURED = {
    "images": {"top1": "accuracy"},
    "coco": {
        "APb": "box_AP",
        "APb50": "box_AP50",
        "APb75": "box_AP75",
        "APm": "mask_AP",
        "APm50": "mask_AP50",
        "APm75": "mask_AP75",
    },
    "ade20k": {"mIoU_SS": "miou", "mIoU_MS": "miou_multiscale"},
}
"""The columns of MambaOut's Tables 1 to 3 by the task that they are about, and the metric that fits each."""

Shown = list[tuple[OurStudy, list[ArmSummary]]]


def arms_on(task: str, studies: Sequence[OurStudy]) -> Shown:
    """The arms that belong into the published table about a task, a key of `MEASURED`."""
    return _with_arms({ours.study.name: _fitting(ours, task) for ours in studies}, studies)


def arms_elsewhere(studies: Sequence[OurStudy]) -> Shown:
    """The arms that fit no published table."""
    fitting = {
        ours.study.name: [arm.name for task in MEASURED for arm in _fitting(ours, task)] for ours in studies
    }
    left = {
        ours.study.name: [arm for arm in ours.arms.values() if arm.name not in fitting[ours.study.name]]
        for ours in studies
    }
    return _with_arms(left, studies)


def rows_beside(task: str, columns: Sequence[Column], model: str, shown: Shown) -> list[dict[str, Cell]]:
    """Our rows under the columns of a published table.

    Args:
        task: that it is about, a key of `MEASURED`.
        columns: of the table.
        model: the key of the column with the names of models.
        shown: studies and their arms.
    """
    rows = []
    for ours, arms in shown:
        decimals = q.decimals_for(ours.study.margin, "%")
        for arm in arms:
            cells = {column.key: Cell("") for column in columns}
            cells["group"] = Cell(ours.label)
            cells[model] = Cell(arm.name)
            cells["token_mixing"] = Cell(arm.arm.mixer)
            cells["params_M"] = _scaled(arm.costs.params, 1e6)
            cells["macs_G"] = _scaled(arm.costs.macs, 1e9)
            for column, metric in MEASURED[task].items():
                cells[column] = _number(ours, arm, metric, decimals)
            cells["origin"] = Cell(f"studies/{ours.study.name}.csv")
            rows.append(cells)
    return rows


def caption_of(shown: Shown) -> list[str]:
    """What a table says of our rows in it; nothing if there are none."""
    if not shown:
        return []
    studies = "; ".join(f"{ours.label}, {ours.place}" for ours, _ in shown)
    return [f"Rows of ours ({studies}): mean and {_interval(shown)}.", *_remarks(shown)]


def table_of_our_own(shown: Shown) -> Table:
    """One row per arm, and per case of it, with the metric named in the row."""
    headings = {
        "study": "study",
        "task": "task",
        "skeleton": "skeleton",
        "arm": "arm",
        "mixer": "mixer",
        "params": "params",
        "macs": "MACs",
        "metric": "metric",
        "result": "result",
        "training": "training",
        "origin": "rows",
    }
    numeric = ("params", "macs", "result")
    columns = [Column(key, heading, key in numeric) for key, heading in headings.items()]
    rows = [_row_of_our_own(ours, arm) for ours, arms in shown for arm in arms]
    caption = [f"Mean and {_interval(shown)}.", *_remarks(shown)] if shown else []
    return Table(columns, rows, caption, [], group_keys=("study", "task", "skeleton", "metric", "origin"))


def our_interval(arm: ArmSummary, estimate: Estimate, decimals: int) -> str:
    """``[98.1, 99.4] (5 seeds)``, or ``(no spread over 5 seeds)`` where an interval would be degenerate.

    Args:
        arm: whose trials were planned.
        estimate: of any of its metrics.
        decimals: of the bounds.
    """
    seeds = f"{arm.spread} {'seed' if arm.spread == '1' else 'seeds'}"
    if estimate.without_spread:
        return f"(no spread over {seeds})"
    low, high = (q.number(bound, decimals) for bound in (estimate.low, estimate.high))
    return f"[{low}, {high}] ({seeds})" if estimate.n > 1 else f"({seeds})"


def _interval(shown: Shown) -> str:
    return t_interval_of(ours for ours, _ in shown)


def _remarks(shown: Shown) -> list[str]:
    """How MACs were counted, and the reservations."""
    said = reservations([(ours, [arm.name for arm in arms]) for ours, arms in shown]).strip()
    return [*_macs_conventions(shown), said] if said else _macs_conventions(shown)


def _macs_conventions(shown: Shown) -> list[str]:
    """What all studies have in common, then what some add to it."""
    studies: dict[tuple[str, ...], list[str]] = {}
    for ours, arms in shown:
        for convention in sorted({arm.costs.macs_convention for arm in arms} - {""}):
            studies.setdefault(tuple(convention.rstrip(".").split("; ")), []).append(ours.study.name)
    common = [clause for clause in next(iter(studies), ()) if all(clause in clauses for clauses in studies)]
    said = [f"MACs of ours: {'; '.join(common)}."] if common else []
    for clauses, names in studies.items():
        own = [clause for clause in clauses if clause not in common]
        said += [f"MACs of {q.listing(names)}: {'; '.join(own)}."] if own else []
    return said


def _fitting(ours: OurStudy, task: str) -> list[ArmSummary]:
    return [
        arm
        for arm in ours.arms.values()
        if ours.study.where(arm.arm).partition("(")[0] == task
        and ours.compared(arm.name) in MEASURED[task].values()
    ]


def _with_arms(arms: dict[str, list[ArmSummary]], studies: Sequence[OurStudy]) -> Shown:
    return [(ours, arms[ours.study.name]) for ours in studies if arms[ours.study.name]]


def _number(ours: OurStudy, arm: ArmSummary, metric: str, decimals: int) -> Cell:
    """A metric of an arm; blank where it is not the one that is compared and no trial has it."""
    if metric == ours.compared(arm.name):
        return _result(arm, arm.test, decimals)
    values = [value for value in arm.arm.values("test", metric).values() if math.isfinite(value)]
    return _result(arm, t_interval(values, ours.study.alpha), decimals) if values else Cell("")


def _result(arm: ArmSummary, estimate: Estimate, decimals: int) -> Cell:
    """Mean and interval; what became of the trials where none has a number."""
    if estimate.n:
        return Cell(q.number(estimate.mean, decimals), our_interval(arm, estimate, decimals), estimate.mean)
    statuses = sorted(Counter(trial.status for trial in arm.arm.trials).items())
    return Cell(q.MISSING, ", ".join(f"{count} {status}" for status, count in statuses))


def _scaled(value: float | None, unit: float) -> Cell:
    return Cell("" if value is None else f"{value / unit:.3g}", value=None if value is None else value / unit)


def _row_of_our_own(ours: OurStudy, arm: ArmSummary) -> dict[str, Cell]:
    study, costs = ours.study, arm.costs
    decimals = q.decimals_for(study.margin, study.metric.unit)
    return {
        "study": Cell(ours.label),
        "task": Cell(study.where(arm.arm).partition("(")[0]),
        "skeleton": Cell(study.skeleton_of(arm.arm).partition("(")[0]),
        "arm": Cell(arm.name),
        "mixer": Cell(arm.arm.mixer),
        "params": Cell(q.count(costs.params), value=costs.params),
        "macs": Cell(q.count(costs.macs), value=costs.macs),
        "metric": Cell(_metric_in_words(study.metric, ours.compared(arm.name))),
        "result": _result(arm, arm.test, decimals),
        "training": Cell(_training(arm)),
        "origin": Cell(f"studies/{study.name}.csv"),
    }


def _metric_in_words(metric: Metric, name: str) -> str:
    """``accuracy (%)``, and a word where less is better."""
    return f"{name} ({metric.unit}{'' if metric.higher_is_better else ', lower is better'})"


def _training(arm: ArmSummary) -> str:
    if arm.under_trained:
        return "still improving"
    return "too few epochs to tell" if arm.curves.size and arm.rise is None else ""
