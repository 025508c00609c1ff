"""Figures with a row each: every seed of every arm; every paired difference, on which the verdict rests."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import quantities as q
from analysis.comparison import NO_VERDICT, UNDECIDED, Comparison
from analysis.deciding_intervals import DecidingIntervals, deciding_intervals
from analysis.drawing import (
    COLUMN,
    GREY,
    INK,
    PAGE,
    ZONE,
    Drawing,
    drawn_interval,
    finished_drawing,
    keep_to_percentages,
    wrapped,
)
from analysis.notes import selection_rule
from analysis.records import Json, Study
from analysis.shown_arms import (
    MOST_ROWS,
    STEPS,
    arms_cut_note,
    at_most,
    by_case,
    compared_by,
    far_out,
    looks_of,
    n_seeds,
    outliers,
)
from analysis.statistics import Estimate
from analysis.summary import ArmSummary

UPPER, LOWER = 0.09, 0.26  # where in a row the interval and the one for equivalence lie
END = 0.055  # of a row, half a stroke at the end of a whisker
GAP = 6 * "\N{NO-BREAK SPACE}"  # ordinary spaces collapse in SVG


def seeds(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Every seed as a dot, mean and t interval below; lines between the same seed in the arms of a case."""
    name = study.metric.name
    rows = [
        {"arm": trial.arm, "seed": trial.seed, "status": trial.status, name: trial.compared(name)}
        for trial in study.trials
    ]
    looks = looks_of(study, arms)
    arms = [arm for arm in arms if arm.test.n]
    arms, left_out = at_most(MOST_ROWS, arms, [arm.arm.case for arm in arms])
    if not arms:
        return None
    labels = [wrapped(arm.name, 20) for arm in arms]
    figure = Figure(figsize=(COLUMN, 0.55 + _row_height(labels, 0.4) * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    values = [arm.arm.compared(name) for arm in arms]
    outside = outliers(arms, study)
    kept = [{} if arm.name in outside else by_seed for arm, by_seed in zip(arms, values, strict=True)]
    planned = sorted({seed for by_seed in values for seed in by_seed})
    # Each seed has its own height within a row: equal values stay visible side by side.
    height = dict(zip(planned, _stagger(len(planned), 0.12), strict=True))
    cases = by_case(arms)
    row_of = {arm.name: row for row, arm in enumerate(arms)}
    lines = [  # within a case: what has the same seed in another one is no pair
        [(kept[row].get(seed, math.nan), row + height[seed]) for row in (row_of[arm.name] for arm in rivals)]
        for rivals in cases
        for seed in planned
    ]
    axes.add_collection(LineCollection(lines, color=GREY, alpha=0.45, linewidth=0.6, zorder=1))
    for row, (arm, by_seed) in enumerate(zip(arms, kept, strict=True)):
        heights = [row + height[seed] for seed in by_seed]
        style: Json = {"linestyle": "", "markersize": 3.4, "alpha": 0.85, "zorder": 2}
        axes.plot(list(by_seed.values()), heights, **looks[arm.name] | style)
    shown = {row + 0.32: arm.test for row, arm in enumerate(arms) if arm.name not in outside}
    _interval_bars(axes, shown, study.metric.unit)
    keep_to_percentages(axes, study.metric.unit, "x")
    decimals = q.decimals_for(study.margin, study.metric.unit)
    for row, arm in enumerate(arms):
        if arm.name in outside:
            _off_scale(axes, row, q.number(arm.test.mean, decimals), outside[arm.name])
    _rows_axis(axes, labels)
    compared = compared_by(study, arms)
    axes.set_xlabel(f"test {compared} ({study.metric.unit})")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.grid(axis="x")
    caption = (
        f"Test {compared} of every seed (coloured), lines joining the same seed"
        f"{' within a case' if len(cases) > 1 else ''}; below, mean and "
        f"{q.percent(1 - study.alpha)} t interval over seeds. For the comparison look at the differences: "
        f"pairing removes what the seeds have in common. {n_seeds([arm.test.n for arm in arms])} "
        f"{selection_rule(study, arms)}{arms_cut_note(study, arms)}"
    )
    if outside:
        caption += f" Too far out to draw, mean as a number: {q.listing(list(outside))}."
    return finished_drawing("seeds", "Seeds", caption + left_out, figure, rows)


def differences(study: Study, arms: list[ArmSummary], comparisons: list[Comparison]) -> Drawing | None:
    """Paired differences against the equivalence zone: both intervals, what decides, the verdict beside."""
    rows = [
        {"arm": c.arm, "baseline": c.baseline, "seed": seed, "difference": difference}
        for c in comparisons
        for seed, difference in zip(c.seeds, c.differences, strict=True)
    ]
    deciding = deciding_intervals(study, comparisons)
    comparisons, left_out = at_most(MOST_ROWS, comparisons, [study.arms[c.arm].case for c in comparisons])
    if not any(c.n for c in comparisons):
        return None
    labels = [wrapped(f"{c.arm} {q.MINUS} {c.baseline}", 40) for c in comparisons]
    figure = Figure(figsize=(PAGE, 0.75 + _row_height(labels, 0.32) * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    if study.margin is not None:
        axes.axvspan(-study.margin, study.margin, color=ZONE, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.7, zorder=1)
    outside = far_out([_reach(c) for c in comparisons], least=study.margin or 0.0)
    shown = {row: c for row, c in enumerate(comparisons) if row not in outside}
    _difference_rows(axes, study, shown, deciding)
    decimals = q.decimals_for(study.margin, study.metric.unit)
    for row in sorted(outside):
        estimate = deciding[row].interval
        text = f"{q.signed(estimate.mean, decimals)} {q.interval(estimate.low, estimate.high, decimals)}"
        _off_scale(axes, row, text, 1 if estimate.mean > 0 else -1)
    _rows_axis(axes, labels)
    _verdict_labels(axes, comparisons)
    left, right = ("worse", "better") if study.metric.higher_is_better else ("better", "worse")
    what = f"difference in test {compared_by(study, arms)} ({study.metric.difference_unit})"
    axes.set_xlabel(f"\N{LEFTWARDS ARROW} {left}{GAP}{what}{GAP}{right} \N{RIGHTWARDS ARROW}")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    counted = n_seeds([c.n for c in comparisons], "paired seed")
    caption = f"{_differences_caption(study, comparisons)} {counted} {selection_rule(study, arms)}"
    if outside:
        caption += " Rows too far out to draw are given as numbers: the mean, and the interval that decides."
    return finished_drawing("differences", "Paired differences", caption + left_out, figure, rows)


def _interval_bars(axes: Axes, by_height: dict[float, Estimate], unit: str) -> None:
    """Thin intervals with a tick at the mean, each at its height."""
    _horizontal(
        axes, {y: drawn_interval(each, unit) for y, each in by_height.items()}, linewidth=0.9, zorder=3
    )
    means = [each.mean for each in by_height.values()]
    style: Json = {"color": INK, "marker": "|", "markersize": 7, "markeredgewidth": 1.2, "zorder": 4}
    axes.plot(means, list(by_height), linestyle="", **style)


def _difference_rows(
    axes: Axes, study: Study, by_row: dict[int, Comparison], deciding: list[DecidingIntervals]
) -> None:
    """Every pair as a dot; below them the interval, and the one for equivalence if there is a margin."""
    dots = [d for c in by_row.values() for d in c.differences]
    heights = [y for row, c in by_row.items() for y in row - 0.2 + _stagger(c.n, 0.1)]
    axes.plot(dots, heights, linestyle="", marker="o", markersize=2.4, color=GREY, alpha=0.8)
    _interval_bars(axes, {row + UPPER: c.interval for row, c in by_row.items()}, study.metric.difference_unit)
    adjusted_for = [row for row, c in by_row.items() if c.family_size > 1]
    _whiskers(axes, {row + UPPER: deciding[row].interval for row in adjusted_for})
    if study.margin is not None:
        inner = {row + LOWER: (c.inner.low, c.inner.high) for row, c in by_row.items()}
        _horizontal(axes, inner, linewidth=2.4, zorder=2)
        _whiskers(axes, {row + LOWER: deciding[row].inner for row in adjusted_for})


def _whiskers(axes: Axes, by_height: dict[float, Estimate]) -> None:
    """Hairlines with a stroke at both ends; they do not widen the axis, and one that leaves it is cut."""
    known = {y: each for y, each in by_height.items() if math.isfinite(each.high - each.low)}
    lines = [[(each.low, y), (each.high, y)] for y, each in known.items()]
    lines += [[(x, y - END), (x, y + END)] for y, each in known.items() for x in (each.low, each.high)]
    axes.add_collection(LineCollection(lines, color=INK, linewidth=0.5, zorder=1.5), autolim=False)


def _horizontal(
    axes: Axes, by_height: dict[float, tuple[float, float]], linewidth: float, zorder: int
) -> None:
    """All lines from left to right as one artist: a figure of forty rows has hundreds of them."""
    lines = [[(low, y), (high, y)] for y, (low, high) in by_height.items() if math.isfinite(high - low)]
    axes.add_collection(LineCollection(lines, color=INK, linewidth=linewidth, zorder=zorder, capstyle="butt"))


def _verdict_labels(axes: Axes, comparisons: list[Comparison]) -> None:
    """The verdicts beside the rows, decided ones in bold."""
    for row, c in enumerate(comparisons):
        weight = "normal" if c.word in (UNDECIDED, NO_VERDICT) else "bold"
        place: Json = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axes.annotate(c.label, (1.015, row), fontweight=weight, **place)


def _differences_caption(study: Study, comparisons: list[Comparison]) -> str:
    inner, outer = q.percent(1 - 2 * study.alpha), q.percent(1 - study.alpha)
    drawn = f"Difference of each pair of seeds (dots), mean with {outer} t interval (thin)"
    rule = "An arm helps or hurts when the thin interval{} leaves out zero"
    if study.margin is not None:
        zone = q.with_unit(study.margin, study.metric.difference_unit)
        drawn += f" and, below, {inner} t interval (thick). Shaded: the equivalence zone, ±{zone}"
        rule += "; else it is equivalent when the thick one{} lies inside the zone"
    if all(c.family_size == 1 for c in comparisons):
        return f"{drawn}. {rule.replace('{}', '')}."
    return (
        f"{drawn}. Whiskers: the same intervals at the level at which Holm's adjustment over several "
        f"comparisons judges this one; they decide, and go on where they leave the figure. "
        f"{rule.replace('{}', ' with its whiskers')}."
    )


def _rows_axis(axes: Axes, labels: list[str]) -> None:
    """One row per label, the first at the top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _row_height(labels: list[str], least: float) -> float:
    """Inches per row so that the tallest label does not touch its neighbours."""
    return max(least, 0.12 * max(label.count("\n") + 1 for label in labels) + 0.06)


def _stagger(n: int, half: float) -> np.ndarray:
    return half * np.linspace(-1, 1, n) if n > 1 else np.zeros(n)


def _reach(c: Comparison) -> float:
    """How far a row of the difference figure extends from zero; NaN without a difference."""
    drawn = [value for value in (*c.differences, c.interval.low, c.interval.high) if math.isfinite(value)]
    return max(map(abs, drawn), default=math.nan)


def _off_scale(axes: Axes, row: int, text: str, side: int) -> None:
    """A number with an arrow at the edge, for a row that lies outside."""
    arrow = "\N{BLACK RIGHT-POINTING TRIANGLE}" if side > 0 else "\N{BLACK LEFT-POINTING TRIANGLE}"
    label = f"{text} {arrow}" if side > 0 else f"{arrow} {text}"
    place = (0.99, row) if side > 0 else (0.01, row)
    align = "right" if side > 0 else "left"
    axes.annotate(label, place, xycoords=("axes fraction", "data"), ha=align, va="center", color=INK)
