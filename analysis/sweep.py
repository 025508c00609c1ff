"""Figures of studies that compare in several cases or choose learning rates: effects along an axis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis import quantities as q
from analysis.comparison import Comparison
from analysis.drawing import (
    GREY,
    INK,
    PAGE,
    ZONE,
    Drawing,
    axis_label,
    colour_and_marker,
    cut_note,
    drawn_interval,
    finished_drawing,
    keep_to_percentages,
    legend,
    legend_label,
    line_style,
    paper_style,
    wrapped,
)
from analysis.notes import selection_rule
from analysis.records import Case, Json, RateSearch, Study
from analysis.shown_arms import legend_room
from analysis.statistics import Estimate
from analysis.summary import ArmSummary

MOST_PANELS = 4  # of learning rates
MOST_UPRIGHT = 14  # rates side by side in all panels, beyond which they are slanted
PANEL = 1.7  # inches, least height of a panel's axis
TICKS = 40  # characters below an axis, of the names of all cases
BESIDE = 0.6  # of the distance between two named cases, over which their points are spread


def draw_all(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> list[Drawing]:
    """Draw what the study has: nothing for one without cases and without a search."""
    with paper_style():
        drawings = [sweep(study, arms, comparisons), learning_rates(study)]
    return [drawing for drawing in drawings if drawing is not None]


def sweep(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> Drawing | None:
    """Left, the metric of every arm from case to case; right, its difference from its baseline."""
    if len(study.cases) < 2:
        return None
    labels = list(dict.fromkeys(arm.arm.label for arm in arms.values()))
    measured = {
        label: {arm.arm.case: arm.test for arm in arms.values() if arm.arm.label == label} for label in labels
    }
    pairs: dict[str, dict[str | None, Estimate]] = {}
    for comparison in comparisons:
        arm, baseline = (study.arms[name] for name in (comparison.arm, comparison.baseline))
        pairs.setdefault(f"{arm.label} {q.MINUS} {baseline.label}", {})[arm.case] = comparison.interval
    baselines = list(dict.fromkeys(pair.partition(f" {q.MINUS} ")[2] for pair in pairs))
    entries = [*labels, *pairs] if len(baselines) > 1 else labels  # of the legend
    figure = Figure(figsize=(PAGE, legend_room(entries, 2.4)), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {label: _style(index) for index, label in enumerate(labels)}
    styles |= _styles_of_pairs(labels, pairs, len(_series(study)) > 1)
    _lines(left, study, measured, styles, study.metric.unit)
    if study.margin is not None:
        right.axhspan(-study.margin, study.margin, color=ZONE, linewidth=0, zorder=0)
    right.axhline(0, color=GREY, linewidth=0.7, zorder=1)
    _lines(right, study, pairs, styles, study.metric.difference_unit)
    for axes in (left, right):
        _case_axis(axes, study)
    keep_to_percentages(left, study.metric.unit)
    compared = study.compared_by(study.arms.values())
    left.set_ylabel(axis_label(f"test {compared}", study.metric.unit, PANEL))
    what = f"difference from {baselines[0]}" if len(baselines) == 1 else "paired difference"
    right.set_ylabel(axis_label(what, study.metric.difference_unit, PANEL))
    legend(figure, left, *([right] if len(baselines) > 1 else []))
    level = q.percent(1 - study.alpha)
    zone = "" if study.margin is None else " Shaded: the equivalence zone."
    if any(comparison.family_size > 1 for comparison in comparisons):
        zone += " Verdicts are after Holm's adjustment, these intervals are not."
    rule = selection_rule(study, arms.values())
    bounds = [bound for arm in arms.values() for bound in (arm.test.low, arm.test.high)]
    caption = (
        f"Left: test {compared} by {study.axis or 'case'}, mean and {level} t interval over seeds. "
        f"Right: paired difference from {_baselines_note(pairs, baselines)}, with {level} t interval.{zone}"
        f"{_series_note(study)}{cut_note(bounds, study.metric.unit)} {rule}"
    )
    rows = [*_rows(study, "metric", measured), *_rows(study, "difference", pairs)]
    return finished_drawing("sweep", f"By {study.axis or 'case'}", caption, figure, rows)


def learning_rates(study: Study) -> Drawing | None:
    """The validation metric at every learning rate that was tried, the chosen one ringed."""
    panels = list(_distinct_searches(study))
    if not panels:
        return None
    rows = [
        {"arm": name, "lr": point.rate, "trial": index, "validation": value, "chosen": search.chosen}
        for name, search in study.searches.items()
        for point in search.points
        for index, value in enumerate(point.values)
    ]
    drawn = panels[:MOST_PANELS]
    labels = list(dict.fromkeys(label for _, searches in drawn for label in searches))
    styles = {label: _style(index) for index, label in enumerate(labels)}
    figure = Figure(figsize=(PAGE, max(2.2, 0.5 + 0.19 * len(labels))), layout="constrained")
    grid = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axes, (title, searches) in zip(grid, drawn, strict=True):
        for label, search in searches.items():
            _rate_line(axes, label, search, styles[label])
        rates = sorted({point.rate for search in searches.values() for point in search.points})
        _rate_axis(axes, rates, upright=len(rates) * len(drawn) <= MOST_UPRIGHT)
        axes.grid(axis="y")
        if len(drawn) > 1:
            axes.set_title(title, loc="left")
    metric = q.metric_in_words(study.metric.name)
    grid[0].set_ylabel(axis_label(f"validation {metric}", study.metric.unit, PANEL))
    legend(figure, grid[0])
    caption = (
        f"Validation {metric} at the end of training for each learning rate of the search, mean "
        f"over {q.seeds_listed(study.search_seeds)} (kept for the search, not reported). Ringed: the rate "
        "chosen for an arm. Every arm of a panel was given the same rates; a missing point diverged or "
        "failed."
    )
    at_edge = [f"{name} ({search.at_edge})" for name, search in study.searches.items() if search.at_edge]
    if at_edge:
        caption += f" Still best at an edge of its grid: {q.listing(at_edge)}."
    if len(panels) > len(drawn):
        caption += f" Drawn: the first {len(drawn)} of {len(panels)} cases; the data file has all."
    return finished_drawing("learning_rates", "Learning rates", caption, figure, rows)


def _style(index: int) -> Json:
    return {**colour_and_marker(index), "linestyle": line_style(index), "markersize": 3.6, "linewidth": 1.1}


def _styles_of_pairs(labels: list[str], pairs: Iterable[str], many: bool) -> dict[str, Json]:
    """Of each comparison the look of its arm; of an arm's second one with another marker, an open one.

    Args:
        labels: of all arms.
        pairs: names of the comparisons.
        many: whether there are several series, which open markers tell apart.
    """
    styles: dict[str, Json] = {}
    seen: Counter[str] = Counter()
    for pair in pairs:
        arm = pair.partition(f" {q.MINUS} ")[0]
        place, again = labels.index(arm), seen[arm]
        styles[pair] = _style(place) | {"marker": colour_and_marker(place + again)["marker"]}
        styles[pair] |= {"markerfacecolor": "white"} if again % 2 and not many else {}
        seen[arm] += 1
    return styles


def _lines(
    axes: Axes,
    study: Study,
    values: dict[str, dict[str | None, Estimate]],
    styles: dict[str, Json],
    unit: str,
) -> None:
    """A line per name through its cases, with intervals; a line of its own for each series of cases.

    Where cases are no numbers there is nothing between them: no lines, and names side by side.
    """
    many = len(_series(study)) > 1
    named = _has_named_cases(study)
    for index, (name, by_case) in enumerate(values.items()):
        aside = BESIDE * ((index + 0.5) / len(values) - 0.5) if named else 0.0
        for number, (series, cases) in enumerate(_series(study).items()):
            known = [case for case in cases if case.name in by_case and by_case[case.name].n]
            if not known:
                continue
            x = [_position(study, case) + aside for case in known]
            estimates = [by_case[case.name] for case in known]
            y = np.array([estimate.mean for estimate in estimates])
            low, high = np.array([drawn_interval(e, unit) for e in estimates]).T
            label = legend_label(f"{name}, {series}" if many else name)
            style = styles[name] | ({} if number == 0 else {"markerfacecolor": "white"})
            if named:
                style["linestyle"] = ""
            error = np.nan_to_num(np.stack([y - low, high - y]))
            axes.errorbar(x, y, error, elinewidth=0.8, label=label, **style)
    axes.grid(axis="y")


def _series(study: Study) -> dict[str | None, list[Case]]:
    found: dict[str | None, list[Case]] = {}
    for case in study.cases:
        found.setdefault(case.series, []).append(case)
    return found


def _baselines_note(pairs: Iterable[str], baselines: list[str]) -> str:
    """The baseline, which is the zero line and has no marks; of several, which arm is held against which."""
    if len(baselines) == 1:
        return f"{baselines[0]} (the zero line)"
    return f"the baseline of each arm (the zero line): {'; '.join(pairs)}"


def _series_note(study: Study) -> str:
    names = [str(series) for series in _series(study)]
    return f" Filled markers: {names[0]}; open: {q.listing(names[1:])}." if len(names) > 1 else ""


def _position(study: Study, case: Case) -> float:
    """Where a case lies on the axis: its place in the list if any has no number."""
    if _has_named_cases(study) or case.at is None:
        return float(study.cases.index(case))
    return case.at


def _has_named_cases(study: Study) -> bool:
    return any(each.at is None for each in study.cases)


def _case_axis(axes: Axes, study: Study) -> None:
    positions = [_position(study, case) for case in study.cases]
    if study.log_axis and min(positions) > 0:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    names = [case.name for case in study.cases]
    if _has_named_cases(study):
        names = [wrapped(name, TICKS // len(names)) for name in names]
    ticks = dict(zip(positions, names, strict=True))
    axes.set_xticks(list(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks.get(value, "")))
    axes.set_xlabel(study.axis or "case")


def _rows(study: Study, what: str, values: dict[str, dict[str | None, Estimate]]) -> list[Json]:
    return [
        {
            "panel": what,
            "name": name,
            "case": case.name,
            "at": case.at,
            "series": case.series,
            "mean": by_case[case.name].mean,
            "low": by_case[case.name].low,
            "high": by_case[case.name].high,
            "n": by_case[case.name].n,
        }
        for name, by_case in values.items()
        for case in study.cases
        if case.name in by_case
    ]


def _distinct_searches(study: Study) -> Iterator[tuple[str, dict[str, RateSearch]]]:
    """The searches of each case by label of the arm; cases that test the same trained models share one."""
    seen = []
    names: list[str | None] = [case.name for case in study.cases]
    for case in names or [None]:
        searches = {
            arm.label: study.searches[name]
            for name, arm in study.arms.items()
            if arm.case == case and name in study.searches
        }
        curves = [[(p.rate, p.values) for p in search.points] for search in searches.values()]
        if searches and curves not in seen:
            seen.append(curves)
            yield case or "", searches


def _rate_axis(axes: Axes, rates: list[float], upright: bool) -> None:
    """Ticks at the rates that were tried, and at no other."""
    axes.set_xscale("log")
    axes.set_xticks(rates)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.tick_params(axis="x", labelrotation=0 if upright else 45)
    axes.set_xlabel("learning rate")


def _rate_line(axes: Axes, label: str, search: RateSearch, style: Json) -> None:
    rates = [point.rate for point in search.points]
    means = [_mean(point.values) for point in search.points]
    axes.plot(rates, means, label=label, **style)
    at = rates.index(search.chosen)
    ring: Json = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgecolor": INK}
    axes.plot([rates[at]], [means[at]], linestyle="", markeredgewidth=0.9, zorder=5, **ring)


def _mean(values: list[float]) -> float:
    """What the search went by: a rate at which a trial diverged or failed has none."""
    return sum(values) / len(values) if values else math.nan
