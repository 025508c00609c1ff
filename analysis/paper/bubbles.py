"""Figure 1(b) of MambaOut (arXiv 2405.07992): accuracy against MACs, area by parameters, ours beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import published
from analysis import quantities as q
from analysis.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    PAGE,
    Drawing,
    colour_and_marker,
    finished_drawing,
    legend_label,
)
from analysis.paper.evidence import (
    HOLLOW,
    LOOKS,
    NO_SPREAD,
    bounds,
    reservations,
    still_improving,
    t_interval_of,
)
from analysis.paper.ours import OurStudy, widest
from analysis.records import Json
from analysis.summary import ArmSummary

FAMILIES = {
    "MambaOut": ("MambaOut-",),
    "VMamba": ("VMamba-",),
    "VMamba V9": ("VMambaV9-",),
    "PlainMamba": ("PlainMamba-",),
    "Vision Mamba": ("Vim-",),
    "other SSM": ("LocalVim-", "LocalVMamba-", "EfficientVMamba-", "Mamba-2D-"),
}
"""The families that Figure 1(b) shows, and the other SSM models of Table 1, by the beginnings of names."""

AREA_PER_MILLION = 0.9  # square points of a bubble per million parameters, whatever its shape


def accuracy_against_macs(studies: Sequence[OurStudy]) -> Drawing:
    """Figure 1(b): accuracy against MACs, area by parameters; beside it the arms of one study of ours."""
    ours = widest(studies)
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1)) if ours else (figure.subplots(), None)
    rows = _published_bubbles(left)
    shown = [] if ours is None else _with_macs(ours)
    if ours is not None and right is not None:
        rows += _our_bubbles(right, ours, shown)
    caption = (
        "Left: ImageNet-1K top-1 against multiply-accumulates, area by parameters, as published (MambaOut, "
        "Table 1; grey: other models without an SSM); models of one family are joined."
    )
    if ours is not None:
        caption += (
            f" Right ({ours.label}): {ours.place}, mean and {t_interval_of([ours])}. {what_differs(ours)}"
        )
        if still_improving(shown):
            caption += " Hollow markers: under-trained."
        if any(arm.test.without_spread for arm in shown):
            caption += " Crossed: the same on all seeds, so without an interval."
        caption += reservations([(ours, [arm.name for arm in shown])])
    return finished_drawing("figure_1b", "Figure 1(b): accuracy, MACs, size", caption, figure, rows)


def _published_bubbles(axes: Axes) -> list[Json]:
    table = published.load("mambaout_table1_imagenet")
    family_of = {row.text("model"): _family(row.text("model")) for row in table.rows}
    rows = []
    drawn = [row for row in table.rows if not math.isnan(row.number("macs_G"))]
    for row in sorted(drawn, key=lambda row: -row.number("params_M")):  # small bubbles stay visible
        family = family_of[row.text("model")]
        place = None if family is None else list(FAMILIES).index(family)
        marker = "o" if place is None else MARKERS[place]
        axes.scatter(
            [row.number("macs_G")],
            [row.number("top1")],
            s=AREA_PER_MILLION * row.number("params_M") / marker_area(marker),
            marker=marker,
            facecolor=GREY if place is None else COLOURS[place],
            alpha=0.18 if family is None else 0.6,
            edgecolor="white",
            linewidth=0.4,
            zorder=1 if family is None else 3,
        )
        rows.append(
            {
                "ours": 0,
                "name": row.text("model"),
                "family": family,
                "macs": 1e9 * row.number("macs_G"),
                "params": 1e6 * row.number("params_M"),
                "accuracy": row.number("top1"),
                "low": None,
                "high": None,
                "origin": row.origin,
            }
        )
    for family, colour in zip(FAMILIES, COLOURS, strict=False):
        if family != "other SSM":
            line = sorted(
                (r.number("macs_G"), r.number("top1")) for r in drawn if family_of[r.text("model")] == family
            )
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, alpha=0.7, zorder=2)
    handles = [
        Line2D([], [], marker=marker, linestyle="", markersize=4, color=colour, label=family)
        for family, colour, marker in zip(FAMILIES, COLOURS, MARKERS, strict=False)
    ]
    handles.append(
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            markersize=4,
            color=GREY,
            alpha=0.4,
            label="other, without an SSM",
        )
    )
    for millions in (10, 50, 90):
        size = math.sqrt(AREA_PER_MILLION * millions / marker_area("o"))
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                linestyle="",
                markersize=size,
                markerfacecolor="none",
                markeredgecolor=GREY,
                markeredgewidth=0.6,
                label=f"{millions} M",
            )
        )
    axes.legend(handles=handles, loc="lower right", labelspacing=0.5)
    axes.set_xlabel("MACs (G), forward, 224 x 224")
    axes.set_ylabel("ImageNet top-1 (%), published")
    axes.grid(axis="y")
    return rows


def marker_area(marker: str) -> float:
    """Area of a marker of `scatter` at s = 1: that of its outline, in square points."""
    style = MarkerStyle(marker)
    (outline,) = style.get_path().transformed(style.get_transform()).to_polygons()
    x, y = np.asarray(outline).T
    return float(abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2)


def what_differs(ours: OurStudy) -> str:
    """How the arms of a study differ, for a caption."""
    size = {"none": "", "params": "parameters", "macs": "MACs"}.get(ours.study.match, ours.study.match)
    width = f", and in the hidden width, which makes up for the difference in {size}" if size else ""
    return f"Its arms differ in what the study asks about{width}."


def _with_macs(ours: OurStudy) -> list[ArmSummary]:
    return [arm for arm in ours.arms.values() if arm.test.n and arm.costs.macs is not None]


def _our_bubbles(axes: Axes, ours: OurStudy, arms: list[ArmSummary]) -> list[Json]:
    rows: list[Json] = []
    for index, arm in enumerate(arms):
        test = arm.test
        low, high = bounds(test)
        error = None if low is None or high is None else [[test.mean - low], [high - test.mean]]
        style: Json = {"linestyle": "", "elinewidth": 0.8, "markersize": 5, "label": legend_label(arm.name)}
        style |= colour_and_marker(index) | (HOLLOW if arm.under_trained else {})
        axes.errorbar([arm.costs.macs or math.nan], [test.mean], error, **style)
        if test.without_spread:
            axes.plot([arm.costs.macs or math.nan], [test.mean], zorder=4, **LOOKS[NO_SPREAD])
        rows.append(
            {
                "ours": 1,
                "name": arm.name,
                "family": ours.study.name,
                "macs": arm.costs.macs,
                "params": arm.costs.params,
                "accuracy": test.mean,
                "low": low,
                "high": high,
                "seeds": test.n,
                "under_trained": int(arm.under_trained),
                "origin": f"studies/{ours.study.name}.csv",
            }
        )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above, where it hides nothing
    axes.set_xlabel("MACs of an example, forward")
    axes.set_ylabel(f"test {ours.study.metric.name} ({ours.study.metric.unit}), ours: {ours.study.name}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value, trim=True)))
    axes.grid(axis="y")
    return rows


def _family(model: str) -> str | None:
    return next((family for family, starts in FAMILIES.items() if model.startswith(starts)), None)
