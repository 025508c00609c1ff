"""The table and the figure of a bench, and where one mixer becomes slower than another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis import quantities as q
from analysis.csv_text import write_csv
from analysis.drawing import (
    GREY,
    PAGE,
    Drawing,
    colour_and_marker,
    finished_drawing,
    legend_label,
    line_style,
    paper_style,
    whole_bytes,
    write_drawing,
)
from analysis.latex_table import latex
from analysis.records import Json
from analysis.table import Cell, Column, Table, markdown
from experiments.store import write_bytes

BOTH = "forward + backward"

MOST_IN_CAPTION = 6
"""Crossings that the caption of a figure lists, all that four mixers can have; more stand in bench.md."""

RULE = (
    "A crossing is told where the times of both mixers, from the 20th to the 80th percentile, do not overlap "
    "at a length before it and at one after it, with both measured at every length between. It is "
    "interpolated between medians, to two digits. Where a pair crosses more than once, the last one is told."
)
ROW, AROUND = 0.1, 0.6  # inches: a line of a label, and what a figure has above and below its axes
PEAK = "most memory that it held in tensors at any moment, weights and input included"
BELOW = "only a mixer that returns its input, as identity does, or one whose tokens stay in a cache"


def write(folder: Path, points: Sequence[Json], machine: Json) -> list[Path]:
    """Write bench.csv, bench.md, bench.tex and a figure per width with its caption; returns what to look at.

    Args:
        folder: where to.
        points: fields of `experiments.bench.Point`.
        machine: fields of `experiments.bench.Machine`.
    """
    table = bench_table(points, machine)
    files = {
        "bench.csv": write_csv([{**point, **machine} for point in points]).encode(),
        "bench.md": (markdown(table, "Latency, throughput and memory") + _section(points)).encode(),
        "bench.tex": latex(table, "bench").encode(),
    }
    for name, content in files.items():
        write_bytes(folder / name, content, durable=False)
    written = [folder / "bench.md"]
    with paper_style():
        for dim in dict.fromkeys(point["dim"] for point in points):
            drawing = against_length([point for point in points if point["dim"] == dim], machine)
            if drawing is not None:
                written += write_drawing(folder, drawing)
    return written


def bench_table(points: Sequence[Json], machine: Json) -> Table:
    """One row per point."""
    columns = [
        Column("mixer", "mixer", False),
        Column("dim", "channels", True),
        Column("length", "length", True),
        Column("batch", "batch", True),
        Column("what", "pass", False),
        Column("median", "median (ms)", True),
        Column("throughput", "tokens / s", True),
        Column("memory", "peak memory", True),
        Column("limit", "times the limit", True),
        Column("backend", "backend", False),
    ]
    caption = [
        _where(machine),
        f"A pass is over the whole batch ({_batch_in_words(points)}): its median time, in brackets the 20th "
        f"and 80th percentile, and the {PEAK}.",
        "Limit: moving input, output and weights once at "
        f"the {machine['bytes_per_second'] / 1e9:.3g} GB/s of a large copy, or computing at the "
        f"{q.count(machine['macs_per_second'])} MAC/s of a large matrix product, whichever takes longer. "
        f"Below it lies {BELOW}.",
    ]
    return Table(columns, [_cells(point) for point in points], caption, [])


def crossovers(points: Sequence[Json]) -> list[str]:
    """A sentence for each mixer at each width that becomes slower than others, forward and backward.

    `RULE` says which crossings count. Lengths are in tokens.
    """
    sentences = []
    for dim in dict.fromkeys(point["dim"] for point in points):
        mine = [point for point in points if point["dim"] == dim]
        crossings = sorted(_crossings(mine))
        for name in dict.fromkeys(point["mixer"] for point in mine):
            passed = [(fast, _rounded(length)) for length, slow, fast in crossings if slow == name]
            if passed:
                (first, where), *others = passed
                listed = [f"{first} at a length of about {where} tokens"]
                listed += [f"{fast} at {length}" for fast, length in others]
                sentences.append(f"At {dim:,} channels {name} becomes slower than {q.listing(listed)}.")
    return sentences


def against_length(points: Sequence[Json], machine: Json) -> Drawing | None:
    """Time per token and peak memory against length, forward and backward, one line per mixer."""
    shown = [point for point in points if point["what"] == BOTH and point["median_ms"] is not None]
    if not shown:
        return None
    names = list(dict.fromkeys(point["mixer"] for point in shown))
    dim, batch = shown[0]["dim"], _batch_in_words(points)
    rows = sum(legend_label(name).count("\n") + 1 for name in names)
    figure = Figure(figsize=(PAGE, max(2.5, AROUND + ROW * (rows + 3))), layout="constrained")
    timed, held = figure.subplots(1, 2)
    for index, name in enumerate(names):
        mine = [point for point in shown if point["mixer"] == name]
        lengths = [point["length"] for point in mine]
        style: Json = {
            **colour_and_marker(index),
            "linestyle": line_style(index),
            "markersize": 3,
            "label": legend_label(name),
        }
        timed.plot(lengths, [_per_token(point) for point in mine], **style)
        held.plot(lengths, [point["peak_bytes"] for point in mine], **style)
    least = _moving(shown, machine)
    timed.plot(
        list(least),
        list(least.values()),
        color=GREY,
        linewidth=3,
        alpha=0.4,
        zorder=0,
        label="moving the tokens",
    )
    _scales(timed, held, sorted({point["length"] for point in shown}), batch)
    for axes in (timed, held):
        _name_lines(axes, figure.get_figheight() - AROUND)
    caption = (
        f"Forward and backward pass of a single mixer at {dim:,} channels, {batch}: median time per token "
        f"and the {PEAK}. Wide line: reading and writing the tokens once, at the speed of a large copy; "
        f"below it lies {BELOW}. {_where(machine)} {_crossings_in_caption(points)}"
    )
    return finished_drawing(
        f"bench_{dim}", "Time and memory against length", caption.rstrip(), figure, list(points)
    )


def _scales(timed: Axes, held: Axes, lengths: list[int], batch: str) -> None:
    for axes, what in ((timed, "forward + backward, per token (µs)"), (held, "peak memory of a pass")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(lengths)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(f"length (tokens)\n{batch}")
        axes.set_ylabel(what)
        axes.grid(axis="y")
    timed.set_yscale("log")
    timed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.amount(value)))
    held.set_yscale("log", base=2)
    held.yaxis.set_major_locator(LogLocator(base=4, numticks=12))
    held.yaxis.set_minor_locator(NullLocator())
    held.yaxis.set_major_formatter(FuncFormatter(lambda value, _: whole_bytes(value)))


def _crossings_in_caption(points: Sequence[Json]) -> str:
    if len(_crossings(points)) > MOST_IN_CAPTION:
        return "The lengths at which one mixer becomes slower than another are in bench.md."
    return " ".join(crossovers(points))


def _cells(point: Json) -> dict[str, Cell]:
    measured = point["median_ms"] is not None
    spread = f"({_digits(point['p20_ms'])}, {_digits(point['p80_ms'])})" if measured else ""
    return {
        "mixer": Cell(point["mixer"]),
        "dim": Cell(f"{point['dim']:,}", value=point["dim"]),
        "length": Cell(f"{point['length']:,}", value=point["length"]),
        "batch": Cell(f"{point['batch']:,}", value=point["batch"]),
        "what": Cell(point["what"]),
        "median": Cell(_digits(point["median_ms"]) if measured else point["skipped"], spread),
        "throughput": Cell(
            q.count(point["batch"] * point["length"] / point["median_ms"] * 1e3 if measured else None)
        ),
        "memory": Cell(q.byte_size(point["peak_bytes"])),
        "limit": Cell(f"{point['median_ms'] / point['limit_ms']:.1f}" if measured else q.MISSING),
        "backend": Cell(point["backend"]),
    }


def _digits(value: float) -> str:
    """Three of them, zeros at the end too, and those before the point: ``1.10``, ``0.0123``, ``1,234``."""
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, decimals)}f}"


def _where(machine: Json) -> str:
    threads = f", {q.plural(machine['threads'], 'thread')}" if machine["device"] == "cpu" else ""
    return f"{machine['hardware']}{threads}, {machine['dtype']}, torch {machine['torch']}."


def _section(points: Sequence[Json]) -> str:
    """What follows the table in bench.md, if anything crosses."""
    sentences = crossovers(points)
    if not sentences:
        return ""
    listed = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"\n## Where one becomes slower than another, forward and backward\n\n{listed}\n\n{RULE}\n"


def _batch_in_words(points: Sequence[Json]) -> str:
    """``batch 1``, or ``65,536 tokens at each length`` where the batch differs from length to length."""
    batches = {point["batch"] for point in points}
    if len(batches) > 1:
        return f"{points[0]['batch'] * points[0]['length']:,} tokens at each length"
    return f"batch {', '.join(f'{batch:,}' for batch in batches)}"


def _crossings(points: Sequence[Json]) -> list[tuple[float, str, str]]:
    """Length, the mixer that is slower from there on, and the other, of each pair at one width."""
    passes = [point for point in points if point["what"] == BOTH]
    lengths = sorted({point["length"] for point in passes})
    measured: dict[str, dict[int, Json]] = {}
    for point in passes:
        if point["median_ms"] is not None:
            measured.setdefault(point["mixer"], {})[point["length"]] = point
    found = []
    for one, other in itertools.combinations(measured, 2):
        steps = [_difference(measured[one].get(each), measured[other].get(each)) for each in lengths]
        crossing = _crossing(lengths, [ratio for ratio, _ in steps], [apart for _, apart in steps])
        if crossing is not None:
            length, first_slower = crossing
            found.append((length, one, other) if first_slower else (length, other, one))
    return found


def _difference(one: Json | None, other: Json | None) -> tuple[float, bool]:
    """Logarithm of the ratio of the medians, NaN without both, and whether it is more than they spread."""
    if one is None or other is None:
        return math.nan, False
    apart = max(one["p20_ms"], other["p20_ms"]) > min(one["p80_ms"], other["p80_ms"])
    return math.log(one["median_ms"] / other["median_ms"]), apart


def _crossing(lengths: list[int], ratios: list[float], apart: list[bool]) -> tuple[float, bool] | None:
    """The last length at which two lines cross, and whether the first is the slower one after it.

    Between two lengths the logarithm of the ratio is taken as linear in the logarithm of the length.
    """
    end = None
    for start in reversed(range(len(lengths))):
        if math.isnan(ratios[start]):
            end = None
        elif apart[start]:
            if end is not None and ratios[start] * ratios[end] < 0:
                return _zero(lengths[start : end + 1], ratios[start : end + 1]), ratios[end] > 0
            end = start
    return None


def _zero(lengths: list[int], ratios: list[float]) -> float:
    """The last length at which the ratio changes its sign, as it does between the first and the last."""
    lines = list(itertools.pairwise(zip(lengths, ratios, strict=True)))
    (shorter, before), (longer, after) = [line for line in lines if (line[0][1] > 0) != (line[1][1] > 0)][-1]
    return shorter * (longer / shorter) ** (before / (before - after))


def _rounded(length: float) -> str:
    """Two digits: between two lengths a crossing is not known better."""
    return f"{float(f'{length:.2g}'):,.0f}"


def _per_token(point: Json) -> float:
    return 1e3 * point["median_ms"] / (point["batch"] * point["length"])


def _moving(points: Sequence[Json], machine: Json) -> dict[int, float]:
    """Microseconds per token that reading and writing takes in a forward and backward pass, by length."""
    size = 2 if machine["dtype"] == "bfloat16" else 4
    least = 1e6 * 5 * points[0]["dim"] * size / machine["bytes_per_second"]
    return dict.fromkeys(sorted({point["length"] for point in points}), least)


def _name_lines(axes: Axes, height: float) -> None:
    """The name of each line beside its right end, on axes of a height in inches."""
    axes.set_ylim(axes.get_ylim())  # from here on they stay
    lines = sorted(axes.get_lines(), key=lambda line: float(np.asarray(line.get_xydata())[-1, 1]))
    last = [np.asarray(line.get_xydata())[-1] for line in lines]
    ends = (axes.transData - axes.transAxes).transform(last).tolist()
    rows = [str(line.get_label()).count("\n") + 1 for line in lines]
    places = _moved_apart([end for _, end in ends], [ROW * count / height for count in rows])
    longest = max(right for right, _ in ends)
    for line, (right, end), place in zip(lines, ends, places, strict=True):
        path = [(1.05, place), (1.08, place)]
        if right == longest:  # from one that stops before, it would cross the axes as if it went on
            path.insert(0, (right, end))
        axes.plot(
            *zip(*path, strict=True),
            color=line.get_color(),
            alpha=line.get_alpha(),
            linewidth=0.5,
            marker=line.get_marker(),
            markersize=3,
            markevery=[len(path) - 1],
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.annotate(
            str(line.get_label()), (1, place), (15, 0), "axes fraction", "offset points", va="center", size=6
        )


def _moved_apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Middles of labels between 0 and 1, near where they are wanted, so that none hides another.

    Args:
        wanted: from the lowest to the highest.
        heights: of the labels.
    """
    stacked = np.cumsum(heights) - np.asarray(heights) / 2  # middles, if each stood on the one before
    free = np.asarray(wanted) - stacked  # labels do not overlap where this does not fall
    upwards, downwards = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    placed: list[float] = (np.clip((upwards + downwards) / 2, 0, max(0, 1 - sum(heights))) + stacked).tolist()
    return placed
