"""The four figures of a study, each with the data it was drawn from.

`seeds` shows every finished trial, `differences` what the verdict rests on, `curves` whether training was
done, `costs` the price. Sizes are those of a paper column (3.25 in) or page (6.75 in); `paper.mplstyle` has
the rest. Arms are told apart by colour, marker and line style at once, so that a figure survives grey
printing and colour blindness. A figure is the same bytes for the same records: matplotlib's Figure is used
directly, under its own defaults, with no date and a fixed id salt.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import quantities as q
from analysis.records import Json, Study
from analysis.summary import ArmSummary
from analysis.tables import write_csv
from analysis.verdict import Comparison

Item = TypeVar("Item")

STYLE = Path(__file__).parent / "paper.mplstyle"
COLUMN, PAGE = 3.25, 6.75  # inches

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
GREY, ZONE = "#8A8A8A", "#E9EEF2"

GAP = 6 * "\N{NO-BREAK SPACE}"  # ordinary spaces collapse in SVG
STEPS = [1, 2, 2.5, 5, 10]  # tick distances people count in

# Beyond these a figure can no longer be read; the caption says how many are drawn, the CSV beside it has all.
MOST_ROWS, MOST_LINES = 40, 21


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its files by suffix (png, svg, pdf, csv), a title and a caption."""

    name: str
    title: str
    caption: str
    width: float  # inches
    files: dict[str, bytes]


def draw_all(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> list[Drawing]:
    """Draw what the records allow; a figure without any data is left out."""
    with _paper_style():
        drawings = [
            seeds(study, list(arms.values())),
            differences(study, comparisons),
            curves(study, list(arms.values())),
            costs(study, list(arms.values())),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def seeds(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Every seed as a dot, lines between the same seed in neighbouring arms, mean and t interval below."""
    name = study.metric.name
    rows = [
        {"arm": trial.arm, "seed": trial.seed, "status": trial.status, name: trial.metric("test", name)}
        for trial in study.trials
    ]
    arms, left_out = _at_most(MOST_ROWS, [arm for arm in arms if arm.test.n])
    if not arms:
        return None
    figure = Figure(figsize=(COLUMN, 0.55 + 0.4 * len(arms)), layout="constrained")
    axes = figure.add_subplot()
    values = [arm.arm.values("test", name) for arm in arms]
    planned = sorted({seed for by_seed in values for seed in by_seed})
    # Each seed has its own height within a row: equal values stay visible side by side.
    height = dict(zip(planned, np.linspace(-0.12, 0.12, len(planned)), strict=True))
    for seed in planned:
        line = [by_seed.get(seed, math.nan) for by_seed in values]
        axes.plot(line, np.arange(len(arms)) + height[seed], color=GREY, alpha=0.45, linewidth=0.6, zorder=1)
    for row, (arm, by_seed) in enumerate(zip(arms, values, strict=True)):
        heights = [row + height[seed] for seed in by_seed]
        axes.plot(
            list(by_seed.values()), heights, linestyle="", markersize=3.4, alpha=0.85, zorder=2, **_look(row)
        )
        _interval_bar(axes, arm.test.mean, arm.test.low, arm.test.high, row + 0.32)
    axes.set_yticks(range(len(arms)), [_wrap(arm.name, 18) for arm in arms])
    axes.set_ylim(len(arms) - 0.45, -0.35)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"test {name} ({study.metric.unit})")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.grid(axis="x")
    caption = (
        f"Test {name} of every seed (coloured), lines joining the same seed; below, mean and "
        f"{q.percent(1 - study.alpha)} t interval over seeds. For the comparison look at the differences: "
        f"pairing removes what the seeds have in common." + left_out
    )
    return _drawing("seeds", "Seeds", caption, figure, rows)


def differences(study: Study, comparisons: list[Comparison]) -> Drawing | None:
    """Paired differences with both intervals against the equivalence zone; the verdict at the side."""
    rows = [
        {"arm": c.arm, "baseline": c.baseline, "seed": seed, "difference": difference}
        for c in comparisons
        for seed, difference in zip(c.seeds, c.differences, strict=True)
    ]
    comparisons, left_out = _at_most(MOST_ROWS, comparisons)
    if not any(c.n for c in comparisons):
        return None
    figure = Figure(figsize=(PAGE, 0.75 + 0.32 * len(comparisons)), layout="constrained")
    axes = figure.add_subplot()
    if study.margin is not None:
        axes.axvspan(-study.margin, study.margin, color=ZONE, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.7, zorder=1)
    for row, c in enumerate(comparisons):
        heights = row - 0.2 + np.linspace(-0.1, 0.1, c.n)
        axes.plot(c.differences, heights, linestyle="", marker="o", markersize=2.4, color=GREY, alpha=0.8)
        _interval_bar(axes, c.interval.mean, c.interval.low, c.interval.high, row + 0.12)
        axes.plot(
            [c.inner.low, c.inner.high],
            [row + 0.12] * 2,
            color="#222222",
            linewidth=2.4,
            solid_capstyle="butt",
        )
        axes.annotate(
            c.label,
            (1.015, row),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
            fontweight="bold" if c.word in ("helps", "hurts", "equivalent") else "normal",
        )
    axes.set_yticks(
        range(len(comparisons)), [_wrap(f"{c.arm} {q.MINUS} {c.baseline}", 34) for c in comparisons]
    )
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    left, right = ("worse", "better") if study.metric.higher_is_better else ("better", "worse")
    what = f"difference in test {study.metric.name} ({study.metric.difference_unit})"
    axes.set_xlabel(f"\N{LEFTWARDS ARROW} {left}{GAP}{what}{GAP}{right} \N{RIGHTWARDS ARROW}")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    inner, outer = q.percent(1 - 2 * study.alpha), q.percent(1 - study.alpha)
    zone = (
        f"Shaded: the equivalence zone, ±{q.with_unit(study.margin, study.metric.difference_unit)}. "
        if study.margin
        else ""
    )
    caption = (
        f"Difference of each pair of seeds (dots), mean with {outer} t interval (thin) and {inner} t interval "
        f"(thick). {zone}An arm helps or hurts when the thin interval leaves out zero, and is equivalent when the "
        f"thick one lies inside the zone; over several comparisons Holm's adjustment asks for more than the intervals show."
        + left_out
    )
    return _drawing("differences", "Paired differences", caption, figure, rows)


def curves(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Validation metric by epoch, mean and standard deviation over seeds; at the right, the last half enlarged."""
    rows = [row for arm in arms for row in _curve_rows(arm)]
    arms, left_out = _at_most(MOST_LINES, [arm for arm in arms if arm.curves.size])
    if not arms:
        return None
    longest = max(arm.curves.shape[1] for arm in arms)
    figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
    whole, late = figure.subplots(1, 2)
    for index, arm in enumerate(arms):
        mean, sd = _over_seeds(arm.curves)
        epochs = np.arange(1, mean.size + 1)
        look = _look(index)
        for axes, start in ((whole, 0), (late, longest // 2)):
            shown = slice(start, None)
            axes.plot(
                epochs[shown],
                mean[shown],
                color=look["color"],
                linestyle=DASHES[index % len(DASHES)],
                marker=look["marker"],
                markersize=3,
                markevery=(index % 4, max(1, longest // 8)),
                label=_legend_label(arm.name),
            )
            axes.fill_between(
                epochs[shown],
                (mean - sd)[shown],
                (mean + sd)[shown],
                color=look["color"],
                alpha=0.15,
                linewidth=0,
            )
    for axes, title in ((whole, "all epochs"), (late, "last half")):
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
    whole.set_ylabel(f"validation {study.metric.name} ({study.metric.unit})")
    _legend(figure, whole)
    stopped = [arm.name for arm in arms if arm.under_trained]
    still = f" Still improving at the end: {q.listing(stopped)}." if stopped else ""
    caption = (
        f"Validation {study.metric.name}, mean over finished seeds; bands: ± one standard deviation."
        f"{still}{left_out}"
    )
    return _drawing("curves", "Learning curves", caption, figure, rows)


def costs(study: Study, arms: list[ArmSummary]) -> Drawing | None:
    """Test metric against parameters, MACs and measured throughput."""
    prices = [
        ("params", "parameters", [arm.costs.params for arm in arms]),
        ("macs", "MACs per example, forward", [arm.costs.macs for arm in arms]),
        ("images_per_second", "images / s, training", [arm.costs.images_per_second for arm in arms]),
    ]
    rows = [
        {"arm": arm.name, "mean": arm.test.mean, "low": arm.test.low, "high": arm.test.high}
        | {key: values[index] for key, _, values in prices}
        for index, arm in enumerate(arms)
    ]
    drawn, left_out = _at_most(MOST_LINES, [index for index, arm in enumerate(arms) if arm.test.n])
    if not drawn:
        return None
    figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (_, label, values) in zip(panels, prices, strict=True):
        for place, index in enumerate(drawn):
            value, test = values[index], arms[index].test
            error = [[test.mean - test.low], [test.high - test.mean]] if test.n > 1 else None
            x = math.nan if value is None else value
            axes.errorbar(
                x,
                test.mean,
                error,
                elinewidth=0.8,
                linestyle="",
                label=_legend_label(arms[index].name),
                **_look(place),
            )
        _cost_axis(axes, [values[index] for index in drawn])
        axes.set_xlabel(label)
        axes.grid(axis="y")
    panels[0].set_ylabel(f"test {study.metric.name} ({study.metric.unit})")
    _legend(figure, panels[0])
    caption = (
        f"Test {study.metric.name} (mean, {q.percent(1 - study.alpha)} t interval over seeds) against what an arm "
        f"costs. Throughput is measured while training, on the machine named below." + left_out
    )
    return _drawing("costs", "Cost", caption, figure, rows)


@contextmanager
def _paper_style() -> Iterator[None]:
    """Matplotlib's defaults plus our style, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc_file(STYLE)
        yield


def _drawing(name: str, title: str, caption: str, figure: Figure, rows: list[Json]) -> Drawing:
    # Lay out once: the engine would otherwise run again for every format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    files = {"csv": write_csv(rows).encode()}
    undated = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    for suffix, metadata in undated.items():
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(buffer, format=suffix, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return Drawing(name, title, caption, float(figure.get_figwidth()), files)


def _look(index: int) -> Json:
    """Colour and marker of an arm; the pair is unique up to 49 arms."""
    return {"color": COLOURS[index % 7], "marker": MARKERS[(index + index // 7) % 7]}


def _interval_bar(axes: Axes, mean: float, low: float, high: float, y: float) -> None:
    axes.plot([low, high], [y, y], color="#222222", linewidth=0.9, zorder=3)
    axes.plot([mean], [y], color="#222222", marker="|", markersize=7, markeredgewidth=1.2, zorder=4)


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


def _cost_axis(axes: Axes, values: list[float | None]) -> None:
    known = [value for value in values if value is not None and value > 0]
    if not known:
        axes.set_xticks([])
        axes.annotate("not recorded", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        return
    if max(known) > 8 * min(known):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(known) / 1.6, max(known) * 1.6)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        # At least a tenth to either side: arms matched to a percent should look alike.
        room = max(0.25 * (max(known) - min(known)), 0.1 * max(known))
        axes.set_xlim(min(known) - room, max(known) + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.count(value, trim=True)))


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend beside the panels, where it can hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", ncols=1)


def _legend_label(name: str) -> str:
    return _wrap(name, 22)


def _wrap(name: str, width: int) -> str:
    """Break a long name between words; names are not mathematics, so a dollar sign is a dollar sign."""
    lines = textwrap.wrap(name.replace("(", "( "), width, break_long_words=False)
    return "\n".join(lines).replace("( ", "(").replace("$", r"\$")
