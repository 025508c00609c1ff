"""The figure of tasks that ask a pixel for what is elsewhere: accuracy by distance and by direction."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import quantities as q
from analysis.drawing import (
    GREY,
    INK,
    PAGE,
    Drawing,
    axis_label,
    colour_and_marker,
    cut_note,
    drawn_interval,
    finished_drawing,
    legend,
    line_style,
    paper_style,
    wrapped,
)
from analysis.records import Arm, Json, Study
from analysis.statistics import Estimate, t_interval

DIRECTIONS = ("below", "above")
"""Suffixes of the metric; a scan in raster order reads what is below the framed digit after it."""
DODGE = 0.05  # between arms at the same distance, so that intervals do not hide each other
APART = 0.16  # of a row, from its middle to either direction: where both are read alike, marks would coincide


def draw(study: Study) -> Drawing | None:
    """Left, the metric of every arm by distance; right, for what is read after and before what is asked for.

    None for a study whose trials have no such numbers. Cases that test the same trained models are drawn
    once, others below each other.
    """
    groups = {name: arms for name, arms in _groups(study).items() if _distances(study, arms)}
    if not groups:
        return None
    with paper_style():
        tallest = max(len(arms) for arms in groups.values())
        tall = 0.9 + 0.24 * tallest  # inches of a group
        figure = Figure(figsize=(PAGE, tall * len(groups) + 0.2 * tallest), layout="constrained")
        grid = figure.subplots(len(groups), 2, squeeze=False)
        rows: list[Json] = []
        for (left, right), (name, arms) in zip(grid, groups.items(), strict=True):
            metric = q.metric_in_words(study.metric.name)
            left.set_ylabel(axis_label(f"test {metric}", study.metric.unit, tall - 0.5))
            rows += _by_distance(left, study, arms, name) + _by_direction(right, study, arms, name)
            if len(groups) > 1:
                left.set_title(name, loc="left")
        legend(figure, grid[0][0])
        level = q.percent(1 - study.alpha)
        caption = (
            f"Test {q.metric_in_words(study.metric.name)}, mean and {level} t interval over seeds. Left: by "
            "the distance between a digit and the framed one, in cells of 16 pixels. Right: digits below the "
            "framed one (filled marks), which a scan in raster order reads after it, and above it (open "
            "marks), read before it."
        )
        chance = _chance(study)
        if chance is not None:
            caption += f" Dotted: a random class, {chance:g} %."
        caption += cut_note([row[side] for row in rows for side in ("low", "high")], study.metric.unit)
        return finished_drawing("reach", "Range, and the price of one direction", caption, figure, rows)


def _groups(study: Study) -> dict[str, dict[str, Arm]]:
    """Arms by label, for every set of trained models that the cases test; named by its first case."""
    return {
        first or "": {arm.label: arm for arm in study.arms.values() if arm.case == first}
        for first in study.first_cases.values()
    }


def _distances(study: Study, arms: dict[str, Arm]) -> list[int]:
    pattern = re.compile(rf"{re.escape(study.metric.name)}_d(\d+)")
    names = {
        name
        for arm in arms.values()
        for trial in arm.trials
        for name in (trial.result.get("metrics") or {}).get("test", {})
    }
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def _chance(study: Study) -> float | None:
    return next((naive.value for naive in study.baselines if naive.name == "a random class"), None)


def _by_distance(axes: Axes, study: Study, arms: dict[str, Arm], group: str) -> list[Json]:
    distances = _distances(study, arms)
    rows = []
    middle = (len(arms) - 1) / 2
    for index, (label, arm) in enumerate(arms.items()):
        estimates = [_estimate(study, arm, f"d{distance}") for distance in distances]
        rows += [
            _row(group, label, f"distance {distance}", estimate)
            for distance, estimate in zip(distances, estimates, strict=True)
        ]
        x = np.array(distances) + DODGE * (index - middle)
        y = np.array([each.mean for each in estimates])
        low, high = np.array([drawn_interval(each, study.metric.unit) for each in estimates]).T
        axes.errorbar(
            x,
            y,
            np.nan_to_num(np.stack([y - low, high - y])),
            label=label,
            elinewidth=0.8,
            linewidth=1.1,
            markersize=3.6,
            linestyle=line_style(index),
            **colour_and_marker(index),
        )
    axes.set_xticks(distances)
    axes.set_xlabel("distance to the framed digit (cells)")
    _finish(axes, study, "y")
    return rows


def _by_direction(axes: Axes, study: Study, arms: dict[str, Arm], group: str) -> list[Json]:
    rows = []
    for index, (label, arm) in enumerate(arms.items()):
        estimates = [_estimate(study, arm, direction) for direction in DIRECTIONS]
        rows += [
            _row(group, label, direction, estimate)
            for direction, estimate in zip(DIRECTIONS, estimates, strict=True)
        ]
        heights = [index + APART, index - APART]  # above what is above
        axes.plot([each.mean for each in estimates], heights, color=GREY, linewidth=0.8, zorder=1)
        for filled, height, estimate in zip((True, False), heights, estimates, strict=True):
            style = {**colour_and_marker(index), **({} if filled else {"markerfacecolor": "white"})}
            drawn = drawn_interval(estimate, study.metric.unit)
            axes.plot(drawn, [height, height], color=INK, linewidth=0.8, zorder=2)
            axes.plot([estimate.mean], [height], markersize=4.2, linestyle="", zorder=3, **style)
    axes.set_yticks(range(len(arms)), [wrapped(label, 20) for label in arms])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"test {q.metric_in_words(study.metric.name)} ({study.metric.unit})\n"
        "above it (open) and below it (filled)"
    )
    _finish(axes, study, "x")
    return rows


def _finish(axes: Axes, study: Study, along: str) -> None:
    """Chance, a grid across the metric's axis, and that axis from 0 to 100 where it is a percentage."""
    chance = _chance(study)
    mark, limit = (axes.axhline, axes.set_ylim) if along == "y" else (axes.axvline, axes.set_xlim)
    if chance is not None:
        mark(chance, color=GREY, linewidth=0.8, linestyle=(0, (1, 1.2)), zorder=0)
        _chance_label(axes, chance, along)
    if study.metric.unit == "%":
        limit(-4, 104)
    axes.grid(axis="y" if along == "y" else "x")


def _chance_label(axes: Axes, chance: float, along: str) -> None:
    """Says what the dotted line is, where no mark is: below it between two distances, or at its upper end."""
    style: Json = {"ha": "center", "textcoords": "offset points", "fontsize": 6, "annotation_clip": False}
    if along == "y":
        between = float(np.mean(axes.get_xticks()[:2]))
        style |= {"xy": (between, chance), "xytext": (0, -6), "va": "top"}
    else:
        style |= {"xy": (chance, 1.0), "xycoords": ("data", "axes fraction"), "xytext": (0, 1)}
    axes.annotate("a random class", **style)


def _estimate(study: Study, arm: Arm, place: str) -> Estimate:
    return t_interval(list(arm.values("test", f"{study.metric.name}_{place}").values()), study.alpha)


def _row(group: str, label: str, place: str, estimate: Estimate) -> Json:
    return {
        "group": group,
        "arm": label,
        "place": place,
        "n": estimate.n,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
    }
