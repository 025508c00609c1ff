"""The four figures of a study, each with the data it was drawn from.

`seeds` shows every finished trial, `differences` what the verdict rests on, `curves` whether training was
done, `costs` the price. Arms are told apart by colour, marker and line style at once, so that a figure
survives grey printing and colour blindness.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import quantities as q
from analysis.adjusted import Adjusted, adjusted
from analysis.comparison import NO_VERDICT, UNDECIDED, Comparison
from analysis.drawing import (
    COLUMN,
    GREY,
    INK,
    PAGE,
    ZONE,
    Drawing,
    colour_and_marker,
    cut_note,
    drawn_interval,
    finished_drawing,
    keep_to_percentages,
    legend,
    legend_label,
    line_style,
    paper_style,
    whole_bytes,
    wrapped,
)
from analysis.notes import selection_rule
from analysis.records import Json, Study
from analysis.statistics import Estimate
from analysis.summary import ArmSummary

Item = TypeVar("Item")

UPPER, LOWER = 0.09, 0.26  # where in a row the interval and the one for equivalence lie
END = 0.055  # of a row, half a stroke at the end of a whisker
GAP = 6 * "\N{NO-BREAK SPACE}"  # ordinary spaces collapse in SVG
PRICES = {
    "params": "parameters",
    "macs": "MACs per example, forward",
    "state_bytes": "carried per sequence",
    "peak_memory_bytes": "memory of training",
    "examples_per_second": "examples / s, training",
}
MORE_IS_BETTER = ("examples_per_second",)
STEPS = [1, 2, 2.5, 5, 10]  # tick distances people count in

# Beyond these a figure no longer fits a page, or can be read; the caption says how many are drawn, the CSV
# beside it has all.
MOST_ROWS, MOST_LINES = 25, 14
MOST_BANDS = 7  # more bands than this hide the lines
LEAST_ENLARGED = 4  # epochs, of which a half is more than a point


def draw_arms(study: Study, arms: dict[str, ArmSummary]) -> list[Drawing]:
    """Draw what the records allow without a verdict; a figure without any data is left out."""
    with paper_style():
        drawings = [draw(study, list(arms.values())) for draw in (seeds, curves, costs)]
    return [drawing for drawing in drawings if drawing is not None]


def draw_comparisons(
    study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]
) -> list[Drawing]:
    """Draw what the verdict rests on, if there is any difference."""
    with paper_style():
        drawing = differences(study, list(arms.values()), comparisons)
    return [] if drawing is None else [drawing]


def seeds(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Every seed as a dot, mean and t interval below; lines between the same seed in the arms of a case."""
    name = study.metric.name
    rows = [
        {"arm": trial.arm, "seed": trial.seed, "status": trial.status, name: trial.compared(name)}
        for trial in study.trials
    ]
    looks = looks_of(study, arms)
    arms, left_out = _at_most(MOST_ROWS, [arm for arm in arms if arm.test.n])
    if not arms:
        return None
    labels = [wrapped(arm.name, 20) for arm in arms]
    figure = Figure(figsize=(COLUMN, 0.55 + _row_height(labels, 0.4) * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    values = [arm.arm.compared(name) for arm in arms]
    outside = _outliers(arms, study)
    kept = [{} if arm.name in outside else by_seed for arm, by_seed in zip(arms, values, strict=True)]
    planned = sorted({seed for by_seed in values for seed in by_seed})
    # Each seed has its own height within a row: equal values stay visible side by side.
    height = dict(zip(planned, _stagger(len(planned), 0.12), strict=True))
    cases = _by_case(arms)
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
    compared = _compared(study, arms)
    axes.set_xlabel(f"test {compared} ({study.metric.unit})")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.grid(axis="x")
    caption = (
        f"Test {compared} of every seed (coloured), lines joining the same seed"
        f"{' within a case' if len(cases) > 1 else ''}; below, mean and "
        f"{q.percent(1 - study.alpha)} t interval over seeds. For the comparison look at the differences: "
        f"pairing removes what the seeds have in common. {_counted([arm.test.n for arm in arms])} "
        f"{selection_rule(study, arms)}{_cut_note(study, arms)}"
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
    deciding = adjusted(study, comparisons)
    comparisons, left_out = _at_most(MOST_ROWS, comparisons)
    if not any(c.n for c in comparisons):
        return None
    labels = [wrapped(f"{c.arm} {q.MINUS} {c.baseline}", 40) for c in comparisons]
    figure = Figure(figsize=(PAGE, 0.75 + _row_height(labels, 0.32) * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    if study.margin is not None:
        axes.axvspan(-study.margin, study.margin, color=ZONE, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.7, zorder=1)
    outside = _far_out([_reach(c) for c in comparisons], least=study.margin or 0.0)
    shown = {row: c for row, c in enumerate(comparisons) if row not in outside}
    _difference_rows(axes, study, shown, deciding)
    decimals = q.decimals_for(study.margin, study.metric.unit)
    for row in sorted(outside):
        estimate = comparisons[row].interval
        text = f"{q.signed(estimate.mean, decimals)} {q.interval(estimate.low, estimate.high, decimals)}"
        _off_scale(axes, row, text, 1 if estimate.mean > 0 else -1)
    _rows_axis(axes, labels)
    _verdict_labels(axes, comparisons)
    left, right = ("worse", "better") if study.metric.higher_is_better else ("better", "worse")
    what = f"difference in test {_compared(study, arms)} ({study.metric.difference_unit})"
    axes.set_xlabel(f"\N{LEFTWARDS ARROW} {left}{GAP}{what}{GAP}{right} \N{RIGHTWARDS ARROW}")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    counted = _counted([c.n for c in comparisons], "paired seed")
    caption = f"{_differences_caption(study, comparisons)} {counted} {selection_rule(study, arms)}"
    if outside:
        caption += " Rows too far out to draw are given as numbers, mean and interval without whiskers."
    return finished_drawing("differences", "Paired differences", caption + left_out, figure, rows)


def curves(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Validation metric by epoch, mean and standard deviation over seeds; right, the last half enlarged."""
    rows = [row for arm in arms for row in _curve_rows(arm)]
    looks = looks_of(study, arms)
    arms, again = _without_repeats(study, [arm for arm in arms if arm.curves.size])
    arms, left_out = _at_most(MOST_LINES, arms)
    if not arms:
        return None
    names = _shortest_names(arms)
    longest = max(arm.curves.shape[1] for arm in arms)
    figure = Figure(figsize=(PAGE, _legend_room(list(names.values()), 2.3)), layout="constrained")
    starts = [0, longest // 2] if longest >= LEAST_ENLARGED else [0]
    panels = figure.subplots(1, len(starts), squeeze=False)[0]
    outside, banded = _outliers(arms, study) if len(starts) > 1 else {}, len(arms) <= MOST_BANDS
    for axes, start, title in zip(panels, starts, ("all epochs", "last half"), strict=False):
        for index, arm in enumerate(arms):
            if start == 0 or arm.name not in outside:
                style = looks[arm.name] | {"markersize": 3, "label": legend_label(names[arm.name])}
                marked = _marked(index, longest, arm.curves.shape[1] - start)
                _curve(axes, arm, start, style | {"markevery": marked}, banded)
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        keep_to_percentages(axes, study.metric.unit)
    metric = q.metric_in_words(study.metric.name)
    panels[0].set_ylabel(f"validation {metric} ({study.metric.unit})")
    legend(figure, panels[0])
    bands = "; bands: ± one standard deviation" if banded else ""
    counted = _counted([len(arm.curves) for arm in arms])
    caption = f"Validation {metric}, mean over seeds{bands}. {counted}"
    if again:
        caption += " Cases that test the same trained models share their curves."
    stopped = [names[arm.name] for arm in arms if arm.under_trained]
    if stopped:
        caption += f" Still improving at the end: {q.listing(stopped)}."
    if outside:
        caption += f" Not in the enlarged panel, too far out: {q.listing([names[name] for name in outside])}."
    return finished_drawing("curves", "Learning curves", caption + left_out, figure, rows)


def costs(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Test metric against every price: parameters, MACs, state, memory and measured throughput."""
    rows = [
        {"arm": arm.name, "mean": arm.test.mean, "low": arm.test.low, "high": arm.test.high}
        | {key: getattr(arm.costs, key) for key in PRICES}
        for arm in arms
    ]
    looks = looks_of(study, arms)
    arms, again = _without_repeats(study, [arm for arm in arms if arm.test.n])
    arms, left_out = _at_most(MOST_LINES, arms)
    outside = _outliers(arms, study)
    arms = [arm for arm in arms if arm.name not in outside]
    known = [price for price in PRICES if any(getattr(arm.costs, price) for arm in arms)]
    if not known:
        return None
    lines = math.ceil(len(known) / 3)
    room = _legend_room([arm.name for arm in arms], 0.4 + 1.8 * lines)
    figure = Figure(figsize=(PAGE, room), layout="constrained")
    grid = figure.subplots(lines, 3, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(known) :]:
        axes.axis("off")
    for axes, price in zip(panels, known, strict=False):
        _price_panel(axes, arms, price, looks, study.metric.unit)
        for rivals in _by_case(arms):  # another case is another task or another metric
            _front_line(axes, rivals, price, study.metric.direction)
    keep_to_percentages(panels[0], study.metric.unit)  # of all: they share it
    compared = _compared(study, arms)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"test {compared} ({study.metric.unit})")
    legend(figure, panels[0])
    each = " of each case" if len(_by_case(arms)) > 1 else ""
    caption = (
        f"Test {compared} (mean, {q.percent(1 - study.alpha)} t interval over seeds) against what "
        f"an arm costs; dotted: the arms{each} that no other beats in both. What is carried from token to "
        f"token exists in recurrent form only. Memory and throughput are measured while training, on the "
        f"machine named below. {_counted([arm.test.n for arm in arms])} {selection_rule(study, arms)}"
        f"{_cut_note(study, arms)}"
    )
    if again:
        caption += (
            " Cases that test the same trained models have the same costs: drawn is the first of them, "
            f"{q.listing(again)}."
        )
    nothing = [arm.name for arm in arms if arm.costs.state_bytes == 0]
    if nothing and "state_bytes" in known:
        caption += f" Carrying 0 bytes, so not on the logarithmic axis of bytes: {q.listing(nothing)}."
    if outside:
        caption += f" Too far out to draw: {q.listing(list(outside))}."
    return finished_drawing("costs", "Cost", caption + left_out, figure, rows)


def pareto_front(arms: list[ArmSummary], price: str, direction: int) -> tuple[list[float], list[float]]:
    """Prices and test means of the arms that none beats in both, in the order of the price.

    Args:
        arms: with at least one finished trial.
        price: an attribute of `Costs`; less is better, except for throughput.
        direction: +1 if a higher test metric is better, -1 if a lower one.
    """
    sign = -1 if price in MORE_IS_BETTER else 1
    known = [(sign * getattr(arm.costs, price), arm.test.mean) for arm in arms if getattr(arm.costs, price)]
    front: list[tuple[float, float]] = []
    for cost, mean in sorted(known, key=lambda each: (each[0], -direction * each[1])):
        if not front or direction * mean > direction * front[-1][1]:
            front.append((cost, mean))
    front = sorted((sign * cost, mean) for cost, mean in front)
    return [cost for cost, _ in front], [mean for _, mean in front]


def looks_of(study: Study, arms: list[ArmSummary]) -> dict[str, Json]:
    """Colour, marker and line by arm, the same in every figure of a study.

    Arms of one label have one colour in all cases. Where the models of a second case are others than those
    of the first, their markers are open; those of a third are filled again and of another shape.
    """
    labels = list(dict.fromkeys(arm.arm.label for arm in arms))
    first = study.first_cases
    distinct = list(dict.fromkeys(first.values()))
    looks = {}
    for arm in arms:
        place, models = labels.index(arm.arm.label), distinct.index(first[arm.arm.case])
        shape = colour_and_marker(place + models // 2)["marker"]
        look = colour_and_marker(place) | {"marker": shape, "linestyle": line_style(place + models)}
        looks[arm.name] = look | ({"markerfacecolor": "white"} if models % 2 else {})
    return looks


def _by_case(arms: list[ArmSummary]) -> list[list[ArmSummary]]:
    """The arms of every case; all of them in a study without cases."""
    found: dict[str | None, list[ArmSummary]] = {}
    for arm in arms:
        found.setdefault(arm.arm.case, []).append(arm)
    return list(found.values())


def _without_repeats(study: Study, arms: list[ArmSummary]) -> tuple[list[ArmSummary], list[str]]:
    """The arms without those whose models an earlier case tests, and the names of such earlier cases."""
    first = study.first_cases
    again = dict.fromkeys(str(first[arm.arm.case]) for arm in arms if first[arm.arm.case] != arm.arm.case)
    return [arm for arm in arms if first[arm.arm.case] == arm.arm.case], list(again)


def _shortest_names(arms: list[ArmSummary]) -> dict[str, str]:
    """Arms by their labels, which do not tell the case, where that tells them apart."""
    labels = {arm.name: arm.arm.label for arm in arms}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in labels}


def _compared(study: Study, arms: list[ArmSummary]) -> str:
    """What some arms are compared by, in words."""
    return study.compared_by(arm.arm for arm in arms)


def _cut_note(study: Study, arms: list[ArmSummary]) -> str:
    return cut_note((bound for arm in arms for bound in (arm.test.low, arm.test.high)), study.metric.unit)


def _price_panel(axes: Axes, arms: list[ArmSummary], price: str, looks: dict[str, Json], unit: str) -> None:
    """Every arm with its interval at what it costs."""
    for arm in arms:
        test, value = arm.test, getattr(arm.costs, price)
        low, high = drawn_interval(test, unit)
        error = [[test.mean - low], [high - test.mean]] if test.n > 1 else None
        style = looks[arm.name] | {"elinewidth": 0.8, "linestyle": "", "label": legend_label(arm.name)}
        axes.errorbar(math.nan if value is None else value, test.mean, error, **style)
    _cost_axis(axes, [getattr(arm.costs, price) for arm in arms], in_bytes=price.endswith("_bytes"))
    axes.set_xlabel(PRICES[price])
    axes.grid(axis="y")


def _front_line(axes: Axes, rivals: list[ArmSummary], price: str, direction: int) -> None:
    steps = "steps-pre" if price in MORE_IS_BETTER else "steps-post"
    style: Json = {"color": GREY, "linewidth": 0.7, "linestyle": (0, (1, 1.2)), "zorder": 0}
    axes.plot(*pareto_front(rivals, price, direction), drawstyle=steps, **style)


def _interval_bars(axes: Axes, by_height: dict[float, Estimate], unit: str) -> None:
    """Thin intervals with a tick at the mean, each at its height."""
    _horizontal(
        axes, {y: drawn_interval(each, unit) for y, each in by_height.items()}, linewidth=0.9, zorder=3
    )
    means = [each.mean for each in by_height.values()]
    style: Json = {"color": INK, "marker": "|", "markersize": 7, "markeredgewidth": 1.2, "zorder": 4}
    axes.plot(means, list(by_height), linestyle="", **style)


def _difference_rows(
    axes: Axes, study: Study, by_row: dict[int, Comparison], deciding: list[Adjusted]
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


def _counted(counts: list[int], noun: str = "seed") -> str:
    """``n = 5 seeds.`` or ``n = 3 to 5 seeds.``"""
    fewest, most = min(counts), max(counts)
    return f"n = {q.plural(most, noun)}." if fewest == most else f"n = {fewest} to {q.plural(most, noun)}."


def _curve(axes: Axes, arm: ArmSummary, start: int, style: Json, banded: bool) -> None:
    mean, sd = (x[start:] for x in _over_seeds(arm.curves))
    epochs = np.arange(start + 1, start + 1 + mean.size)
    axes.plot(epochs, mean, **style)
    if banded:
        axes.fill_between(epochs, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)


def _marked(index: int, longest: int, points: int) -> tuple[int, int]:
    """The first marker of a line of some points and the step to the next, apart from those of other lines.

    A line of few points has all its markers: of a single one, nothing else is seen.
    """
    step = max(1, min(longest // 8, points // 4))
    return index % min(4, step), step


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


def _far_out(reaches: list[float], least: float) -> set[int]:
    """Rows that would squeeze all others: beyond 4 times the middle row, and beyond 4 times `least`.

    A ladder begins at a mixer that mixes nothing, far below the rest; drawn to scale, it would hide them.
    """
    known = sorted(reach for reach in reaches if math.isfinite(reach))
    if not known:
        return set()
    limit = 4 * max(known[(len(known) - 1) // 2], least)
    return {row for row, reach in enumerate(reaches) if reach > limit}


def _outliers(arms: list[ArmSummary], study: Study) -> dict[str, int]:
    """Arms too far below the best of their case to share a scale with it, and on which side they lie.

    One that reaches no further below what is drawn than that extends itself, with the other cases, stays.
    """
    direction, margin = study.metric.direction, study.margin or 0.0
    means = {arm.name: direction * arm.test.mean for arm in arms if math.isfinite(arm.test.mean)}
    far = [name for rivals in _by_case(arms) for name in _far_below(rivals, means, margin)]
    drawn = [mean for name, mean in means.items() if name not in far]
    if not drawn:
        return {}
    lowest = min(drawn) - (max(drawn) - min(drawn))
    return {name: -direction for name in far if means[name] < lowest}


def _far_below(rivals: list[ArmSummary], means: dict[str, float], margin: float) -> list[str]:
    """Names of the arms that would squeeze the others of their case, `means` being better when higher."""
    known = [arm.name for arm in rivals if arm.name in means]
    best = max((means[name] for name in known), default=math.nan)
    far = _far_out([best - means[name] for name in known], least=margin)
    near = [means[name] for row, name in enumerate(known) if row not in far]
    if not near or max(near) - min(near) <= margin:  # nothing would be squeezed
        return []
    return [known[row] for row in sorted(far)]


def _off_scale(axes: Axes, row: int, text: str, side: int) -> None:
    """A number with an arrow at the edge, for a row that lies outside."""
    arrow = "\N{BLACK RIGHT-POINTING TRIANGLE}" if side > 0 else "\N{BLACK LEFT-POINTING TRIANGLE}"
    label = f"{text} {arrow}" if side > 0 else f"{arrow} {text}"
    place = (0.99, row) if side > 0 else (0.01, row)
    align = "right" if side > 0 else "left"
    axes.annotate(label, place, xycoords=("axes fraction", "data"), ha=align, va="center", color=INK)


def _at_most(limit: int, items: list[Item]) -> tuple[list[Item], str]:
    if len(items) <= limit:
        return items, ""
    return items[:limit], f" Drawn: the first {limit} of {len(items)}; the data file has all."


def _curve_rows(arm: ArmSummary) -> list[Json]:
    mean, sd = _over_seeds(arm.curves)
    count = np.isfinite(arm.curves).sum(axis=0)
    return [
        {
            "arm": arm.name,
            "epoch": epoch + 1,
            "mean": float(mean[epoch]),
            "sd": float(sd[epoch]),
            "n": int(count[epoch]),
        }
        for epoch in range(mean.size)
    ]


def _over_seeds(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the seeds that reached each epoch; the latter is 0 for one seed."""
    count = np.isfinite(stack).sum(axis=0)
    mean = np.nansum(stack, axis=0) / np.maximum(count, 1)
    variance = np.nansum((stack - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
    return np.where(count, mean, math.nan), np.sqrt(variance)


def _cost_axis(axes: Axes, values: list[float | None], in_bytes: bool) -> None:
    known = [value for value in values if value is not None and value > 0]
    if in_bytes:  # counted in powers of two
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(known) / 2, max(known) * 2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: whole_bytes(value)))
        return
    if max(known) > 8 * min(known):
        axes.set_xscale("log")
        decades = math.log10(max(known) / min(known))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < 2 else (1.0,), numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(known) / 1.6, max(known) * 1.6)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        # At least a tenth to either side: arms matched to a percent should look alike.
        room = max(0.25 * (max(known) - min(known)), 0.1 * max(known))
        axes.set_xlim(min(known) - room, max(known) + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value, trim=True)))


def _legend_room(names: list[str], least: float) -> float:
    """Height in inches at which the legend of all names fits beside the panels."""
    lines = sum(legend_label(name).count("\n") + 1 for name in names)
    return max(least, 0.12 * lines + 0.05 * len(names) + 0.2)
