"""The comparison table: one set of cells for every format, and the records behind it as CSV.

Each arm has one row per comparison it is judged in, and one row if it is only a baseline. Accuracy and cost
stand in the same row, because a difference without its price is half an answer.
"""

from __future__ import annotations

import math
from collections.abc import Set

from analysis import quantities as q
from analysis.comparison import Comparison
from analysis.csv_text import write_csv
from analysis.notes import notes, warnings
from analysis.record_rows import timing_row, trial_row
from analysis.records import Json, NaiveBaseline, Study
from analysis.sampling import TestSets
from analysis.statistics import Estimate
from analysis.summary import ArmSummary
from analysis.table import Cell, Column, Table
from analysis.verdict_sentence import margin_set, planned_looks, settled_late

MOST_PLACES = 3  # tasks, skeletons and budgets that a caption names
NO_COMPARISON: tuple[Comparison | None, ...] = (None,)


def comparison_table(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> Table:
    """Build the table of a study, arms in the order of the plan."""
    pairs = _rows_of(arms, comparisons)
    return Table(
        columns=_columns(study),
        rows=[_cells(study, arm, comparison) for arm, comparison in pairs],
        caption=_caption(study, arms, comparisons),
        warnings=warnings(study, arms),
        naive_rows=[_naive_cells(study, naive) for naive in study.baselines],
        group_keys=("case",),
    )


def comparison_csv(arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> str:
    """The table with raw numbers: full precision, empty cells where there is no number."""
    return write_csv([_raw(arm, comparison) for arm, comparison in _rows_of(arms, comparisons)])


def metrics_csv(study: Study) -> str:
    """One row per planned trial, deterministic part only: two runs of the same trials give the same bytes."""
    return write_csv([trial_row(trial) for trial in study.trials])


def timings_csv(study: Study) -> str:
    """One row per planned trial: wall-clock, memory, hardware, backend."""
    return write_csv([timing_row(trial) for trial in study.trials])


def _columns(study: Study) -> list[Column]:
    metric = study.metric
    return [
        Column("arm", "arm", False),
        Column("metric", f"test {study.compared_by(study.arms.values())} ({metric.unit})", True),
        Column("validation", f"validation ({metric.unit})", True),
        Column("against", "against", False),
        Column("difference", f"difference ({metric.difference_unit})", True),
        Column("p", "p", True),
        Column("verdict", "verdict", False),
        Column("params", "params (mixer + rest)", True),
        Column("macs", "MACs", True),
        Column("state", "state / seq.", True),
        Column("memory", "peak memory", True),
        Column("speed", "examples / s", True),
        Column("backend", "backend", False),
    ]


def _rows_of(
    arms: dict[str, ArmSummary], comparisons: list[Comparison]
) -> list[tuple[ArmSummary, Comparison | None]]:
    of_arm: dict[str, list[Comparison | None]] = {}
    for comparison in comparisons:
        of_arm.setdefault(comparison.arm, []).append(comparison)
    return [(arm, comparison) for name, arm in arms.items() for comparison in of_arm.get(name, NO_COMPARISON)]


def _cells(study: Study, arm: ArmSummary, comparison: Comparison | None) -> dict[str, Cell]:
    decimals = q.decimals_for(study.margin, study.metric.unit)
    costs = arm.costs
    split = (
        f"({q.count(costs.params_mixer)} + {q.count(costs.params_rest)})"
        if costs.params_mixer is not None
        else ""
    )
    return {
        "case": Cell(arm.arm.case or ""),
        "arm": Cell(arm.name),
        "metric": _mean_and_sd(arm.test, decimals, f" ({arm.spread})"),
        "validation": _mean_and_sd(arm.validation, decimals, ""),
        **_difference_cells(comparison, decimals, study.alpha),
        "params": Cell(q.count(costs.params), split, costs.params),
        "macs": Cell(q.count(costs.macs), value=costs.macs),
        "state": Cell(q.byte_size(costs.state_bytes), value=costs.state_bytes),
        "memory": Cell(q.byte_size(costs.peak_memory_bytes), value=costs.peak_memory_bytes),
        "speed": Cell(q.count(costs.examples_per_second), value=costs.examples_per_second),
        "backend": Cell("; ".join(arm.backends) or q.MISSING),
    }


def _naive_cells(study: Study, naive: NaiveBaseline) -> dict[str, Cell]:
    """The row of a predictor that learns nothing: a number without seeds, difference or cost."""
    case = f" @ {naive.case}" if naive.case else ""
    decimals = q.decimals_for(study.margin, study.metric.unit)
    cells = {column.key: Cell(q.MISSING) for column in _columns(study)}
    cells["case"] = Cell(naive.case or "")
    cells["arm"] = Cell(f"{naive.name}{case}", "(naive baseline)")
    cells["metric"] = Cell(q.number(naive.value, decimals), value=naive.value)
    return cells


def _difference_cells(comparison: Comparison | None, decimals: int, alpha: float) -> dict[str, Cell]:
    if comparison is None:
        return {key: Cell(q.MISSING) for key in ("against", "difference", "p", "verdict")}
    mean, low, high = comparison.interval.mean, comparison.interval.low, comparison.interval.high
    bounds = q.interval(low, high, decimals) if math.isfinite(low) else ""
    return {
        "against": Cell(comparison.baseline),
        "difference": Cell(q.signed(mean, decimals), bounds, mean),
        "p": Cell(q.p_value(comparison.p_holm, alpha), value=comparison.p_holm),
        "verdict": Cell(comparison.label),
    }


def _mean_and_sd(estimate: Estimate, decimals: int, n: str) -> Cell:
    spread = f"± {q.number(estimate.sd, decimals)}" if math.isfinite(estimate.sd) else ""
    return Cell(q.number(estimate.mean, decimals), (spread + n).strip(), estimate.mean)


def _raw(arm: ArmSummary, comparison: Comparison | None) -> Json:
    c = comparison
    return {
        "arm": arm.name,
        "mixer": arm.arm.mixer,
        "n": arm.test.n,
        "planned": len(arm.arm.trials),
        "test_mean": arm.test.mean,
        "test_sd": arm.test.sd,
        "validation_mean": arm.validation.mean,
        "validation_sd": arm.validation.sd,
        "against": c.baseline if c else None,
        "pairs": c.n if c else None,
        "difference": c.interval.mean if c else None,
        "difference_sd": c.interval.sd if c else None,
        "low": c.interval.low if c else None,
        "high": c.interval.high if c else None,
        "p": c.p if c else None,
        "p_holm": c.p_holm if c else None,
        "p_equivalence_holm": c.p_equivalence_holm if c else None,
        "test_set_error_one_seed": c.sampling.one_seed if c else None,
        "test_set_error_mean": c.sampling.mean if c else None,
        "verdict": c.word if c else None,
        "qualifier": c.qualifier if c else None,
        "under_trained": arm.under_trained,
        **{
            name: cost
            for name, cost in vars(arm.costs).items()
            if name not in ("state_note", "macs_convention")
        },
        "backend": "; ".join(arm.backends),
    }


def _caption(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> list[str]:
    level, unit = q.percent(1 - study.alpha), study.metric.difference_unit
    better = "higher" if study.metric.higher_is_better else "lower"
    sentences = [
        f"{_places(study)}.",
        f"Mean ± standard deviation over seeds (n in brackets); {better} is better.",
    ]
    if study.baselines:
        sentences.append("Naive baselines are of the test split of seed 0.")
    if comparisons:
        families = sorted({c.family_size for c in comparisons})
        over = q.listing([q.plural(size, "comparison") for size in families])
        sentences.append(
            f"Differences are paired by seed, with {level} Student t intervals; p values are two-sided and "
            f"adjusted by Holm's method over {over}, the intervals are not. Both take differences to be "
            "roughly normal, which they are not where runs now and then fail outright."
        )
        sentences.append(
            f"Equivalence margin ±{q.with_unit(study.margin, unit)}, {margin_set(study)} (two one-sided "
            f"tests at {q.percent(study.alpha)})."
            if study.margin is not None
            else "No equivalence margin was fixed before the run, so nothing can be called equivalent."
        )
    sentences += planned_looks(study) + settled_late(comparisons, study)
    return sentences + notes(study, arms) + _sampling_error(study, comparisons)


def _places(study: Study) -> str:
    """Tasks, skeletons and budgets, and what is compared where that is not the same everywhere."""
    places = ", ".join(q.first_of(values, MOST_PLACES) for values in study.settings.values() if values)
    own = dict.fromkeys(f"{arm.metric} ({arm.case})" for arm in study.arms.values() if arm.metric)
    return places + (f". Compared: {'; '.join(own)}" if own else "")


def _sampling_error(study: Study, comparisons: list[Comparison]) -> list[str]:
    known = [c for c in comparisons if math.isfinite(c.sampling.one_seed)]
    if not known and comparisons and "accuracy" not in study.metric.name:
        return [
            "What the finite test set adds to the error is not given: "
            f"{study.metric.name} is no share of right answers."
        ]
    if not known:
        return []
    decimals = q.decimals_for(study.margin, study.metric.unit)
    one_seed = _range([c.sampling.one_seed for c in known], decimals)
    mean = _range([c.sampling.mean for c in known], decimals)
    return [
        f"The finite test set alone gives a difference a standard error of {one_seed} "
        f"{study.metric.difference_unit} in one seed and {mean} in the mean over seeds"
        f"{_in_the_intervals({c.sampling.test_sets for c in known} - {None})}."
    ]


def _in_the_intervals(test_sets: Set[TestSets | None]) -> str:
    """Whether the intervals cover the sampling error of the test set; "" where there is a single seed."""
    if not test_sets:
        return ""
    if "the same" in test_sets:
        return "; all seeds have the same test set, so it is not part of the intervals"
    if "overlapping" in test_sets:
        return "; the test sets of the seeds overlap, so it is only partly in the intervals"
    return "; it is part of the intervals, but for luck"


def _range(values: list[float], decimals: int) -> str:
    low, high = q.number(min(values), decimals), q.number(max(values), decimals)
    return low if low == high else f"{low} to {high}"
