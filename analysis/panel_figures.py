"""Figures with panels side by side: learning curves, and the test metric against what an arm costs."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import quantities as q
from analysis.drawing import (
    GREY,
    PAGE,
    Drawing,
    axis_label,
    coinciding,
    cut_note,
    drawn_interval,
    finished_drawing,
    keep_to_percentages,
    legend,
    legend_label,
    whole_bytes,
)
from analysis.notes import selection_rule
from analysis.records import Json, Study
from analysis.shown_arms import (
    MOST_LINES,
    STEPS,
    arms_cut_note,
    at_most,
    by_case,
    compared_by,
    legend_room,
    looks_of,
    n_seeds,
    outliers,
    shortest_names,
    without_repeats,
)
from analysis.summary import ArmSummary

PRICES = {
    "params": "parameters",
    "macs": "MACs per example, forward",
    "state_bytes": "carried per sequence",
    "peak_memory_bytes": "memory of training",
    "examples_per_second": "examples / s, training",
}
MORE_IS_BETTER = ("examples_per_second",)
PANEL = 1.3  # inches, least height of a panel's axis
MOST_BANDS = 7  # more bands than this hide the lines
LEAST_ENLARGED = 4  # epochs, of which a half is more than a point


def curves(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Validation metric by epoch, mean and standard deviation over seeds; right, the last half enlarged."""
    rows = [row for arm in arms for row in _curve_rows(arm)]
    looks = looks_of(study, arms)
    arms, again = without_repeats(study, [arm for arm in arms if arm.curves.size])
    arms, left_out = at_most(MOST_LINES, arms, [arm.arm.case for arm in arms])
    if not arms:
        return None
    names = shortest_names(arms)
    longest = max(arm.curves.shape[1] for arm in arms)
    figure = Figure(figsize=(PAGE, legend_room(list(names.values()), 2.3)), layout="constrained")
    starts = [0, longest // 2] if longest >= LEAST_ENLARGED else [0]
    panels = figure.subplots(1, len(starts), squeeze=False)[0]
    outside = outliers(arms, study) if len(starts) > 1 else {}
    banded = len(arms) <= MOST_BANDS and any(len(arm.curves) > 1 for arm in arms)
    for axes, start, title in zip(panels, starts, ("all epochs", "last half"), strict=False):
        for index, arm in enumerate(arms):
            if start == 0 or arm.name not in outside:
                style = looks[arm.name] | {"markersize": 3, "label": legend_label(names[arm.name])}
                marked = _marked(index, longest, arm.curves.shape[1] - start)
                unit = study.metric.unit if banded else None
                _curve(axes, arm, start, style | {"markevery": marked}, unit)
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        keep_to_percentages(axes, study.metric.unit)
    metric = q.metric_in_words(study.metric.name)
    panels[0].set_ylabel(axis_label(f"validation {metric}", study.metric.unit, PANEL))
    legend(figure, panels[0])
    bands = "; bands: ± one standard deviation" if banded else ""
    counted = n_seeds([len(arm.curves) for arm in arms])
    caption = f"Validation {metric}, mean over seeds{bands}. {counted}"
    if again:
        caption += " Cases that test the same trained models share their curves."
    stopped = [names[arm.name] for arm in arms if arm.under_trained]
    if stopped:
        caption += f" Still improving at the end: {q.listing(stopped)}."
    hidden = coinciding({names[arm.name]: [*_over_seeds(arm.curves)[0]] for arm in arms})
    if hidden:
        caption += f" Exactly on one another: {'; '.join(map(q.listing, hidden))}."
    if banded:
        bounds = [row["mean"] + side * row["sd"] for row in rows if row["arm"] in names for side in (-1, 1)]
        caption += cut_note(bounds, study.metric.unit, "Bands")
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
    arms, again = without_repeats(study, [arm for arm in arms if arm.test.n])
    arms, left_out = at_most(MOST_LINES, arms, [arm.arm.case for arm in arms])
    outside = outliers(arms, study)
    arms = [arm for arm in arms if arm.name not in outside]
    known = [price for price in PRICES if any(getattr(arm.costs, price) for arm in arms)]
    if not known:
        return None
    lines = math.ceil(len(known) / 3)
    room = legend_room([arm.name for arm in arms], 0.4 + 1.8 * lines)
    figure = Figure(figsize=(PAGE, room), layout="constrained")
    grid = figure.subplots(lines, 3, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(known) :]:
        axes.axis("off")
    for axes, price in zip(panels, known, strict=False):
        _price_panel(axes, arms, price, looks, study.metric.unit)
        for rivals in by_case(arms):  # another case is another task or another metric
            _front_line(axes, rivals, price, study.metric.direction)
    keep_to_percentages(panels[0], study.metric.unit)  # of all: they share it
    compared = compared_by(study, arms)
    for axes in grid[:, 0]:
        axes.set_ylabel(axis_label(f"test {compared}", study.metric.unit, PANEL))
    legend(figure, panels[0])
    each = " of each case" if len(by_case(arms)) > 1 else ""
    caption = (
        f"Test {compared} (mean, {q.percent(1 - study.alpha)} t interval over seeds) against what "
        f"an arm costs; dotted: the arms{each} that no other beats in both. What is carried from token to "
        f"token exists in recurrent form only. Memory and throughput are measured while training, on the "
        f"machine named below. {n_seeds([arm.test.n for arm in arms])} {selection_rule(study, arms)}"
        f"{arms_cut_note(study, arms)}"
    )
    if again:
        caption += (
            " Cases that test the same trained models have the same costs: drawn is the first of them, "
            f"{q.listing(again)}."
        )
    nothing = [arm.name for arm in arms if arm.costs.state_bytes == 0]
    if nothing and "state_bytes" in known:
        caption += (
            " Carrying 0 bytes, so counted for the dotted line, but not on the logarithmic axis of bytes: "
            f"{q.listing(nothing)}."
        )
    caption += _hidden_marks(arms, known)
    if outside:
        caption += f" Too far out to draw: {q.listing(list(outside))}."
    return finished_drawing("costs", "Cost", caption + left_out, figure, rows)


def pareto_front(arms: list[ArmSummary], price: str, direction: int) -> tuple[list[float], list[float]]:
    """Prices and test means of the arms that none beats in both, in the order of the price.

    Args:
        arms: with at least one finished trial.
        price: an attribute of `Costs`; less is better, except for throughput. None is unknown, 0 a price.
        direction: +1 if a higher test metric is better, -1 if a lower one.
    """
    sign = -1 if price in MORE_IS_BETTER else 1
    prices = [(getattr(arm.costs, price), arm.test.mean) for arm in arms]
    known = [(sign * cost, mean) for cost, mean in prices if cost is not None]
    front: list[tuple[float, float]] = []
    for cost, mean in sorted(known, key=lambda each: (each[0], -direction * each[1])):
        if not front or direction * mean > direction * front[-1][1]:
            front.append((cost, mean))
    front = sorted((sign * cost, mean) for cost, mean in front)
    return [cost for cost, _ in front], [mean for _, mean in front]


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
    """Mean and standard deviation over the seeds that reached each epoch; the latter is NaN for one seed."""
    count = np.isfinite(stack).sum(axis=0)
    mean = np.nansum(stack, axis=0) / np.maximum(count, 1)
    variance = np.nansum((stack - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
    return np.where(count, mean, math.nan), np.where(count > 1, np.sqrt(variance), math.nan)


def _curve(axes: Axes, arm: ArmSummary, start: int, style: Json, unit: str | None) -> None:
    """The mean from an epoch on; with a unit, whose bounds it keeps to, the band of a standard deviation."""
    mean, sd = (x[start:] for x in _over_seeds(arm.curves))
    epochs = np.arange(start + 1, start + 1 + mean.size)
    axes.plot(epochs, mean, **style)
    if unit is not None:
        low, high = mean - sd, mean + sd
        if unit == "%":
            low, high = np.maximum(low, 0), np.minimum(high, 100)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _marked(index: int, longest: int, points: int) -> tuple[int, int]:
    """The first marker of a line of some points and the step to the next, apart from those of other lines.

    A line of few points has all its markers: of a single one, nothing else is seen.
    """
    step = max(1, min(longest // 8, points // 4))
    return index % min(4, step), step


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
    prices, means = pareto_front(rivals, price, direction)
    if axes.get_xscale() == "log":
        prices = [cost or math.nan for cost in prices]
    axes.plot(prices, means, drawstyle=steps, **style)


def _hidden_marks(arms: list[ArmSummary], prices: list[str]) -> str:
    """What a caption says of arms whose marks lie exactly on one another, price by price."""
    found: dict[str, list[str]] = {}
    for price in prices:
        places = {arm.name: (getattr(arm.costs, price), arm.test.mean) for arm in arms}
        known = {name: (cost, mean) for name, (cost, mean) in places.items() if cost is not None}
        for names in coinciding(known):
            found.setdefault(q.listing(names), []).append(PRICES[price].partition(",")[0])
    said = "; ".join(f"{names} ({q.listing(of)})" for names, of in found.items())
    return f" Exactly on one another: {said}." if said else ""


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
