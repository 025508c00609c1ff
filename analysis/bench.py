"""The table and the figure of a bench, and where one mixer becomes slower than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

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
    legend,
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
        "bench.md": markdown(table, "Latency, throughput and memory").encode(),
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
    """One row per point, then the crossovers in the caption."""
    columns = [
        Column("mixer", "mixer", False),
        Column("dim", "channels", True),
        Column("length", "length", True),
        Column("what", "pass", False),
        Column("median", "median (ms)", True),
        Column("throughput", "tokens / s", True),
        Column("memory", "peak memory", True),
        Column("limit", "times the limit", True),
        Column("backend", "backend", False),
    ]
    caption = [
        _where(machine),
        "Median, in brackets the 20th and 80th percentile. Limit: moving input, output and weights once at "
        f"the {machine['bytes_per_second'] / 1e9:.3g} GB/s of a large copy, or computing at the "
        f"{q.count(machine['macs_per_second'])} MAC/s of a large matrix product, whichever takes longer.",
        *crossovers(points),
    ]
    return Table(columns, [_cells(point) for point in points], caption, [])


def crossovers(points: Sequence[Json]) -> list[str]:
    """A sentence for each pair of mixers of which one overtakes the other, forward and backward."""
    times = _times(points)
    sentences = []
    for dim in dict.fromkeys(dim for _, dim in times):
        names = [name for name, each in times if each == dim]
        for position, one in enumerate(names):
            for other in names[position + 1 :]:
                found = _crossing(times[one, dim], times[other, dim])
                if found is not None:
                    length, first_slower = found
                    slow, fast = (one, other) if first_slower else (other, one)
                    sentences.append(
                        f"At {dim} channels {slow} becomes slower than {fast} at about {length:,.0f} tokens."
                    )
    return sentences


def against_length(points: Sequence[Json], machine: Json) -> Drawing | None:
    """Time per token and peak memory against length, forward and backward, one line per mixer."""
    shown = [point for point in points if point["what"] == BOTH and point["median_ms"] is not None]
    if not shown:
        return None
    names = list(dict.fromkeys(point["mixer"] for point in shown))
    dim = shown[0]["dim"]
    figure = Figure(figsize=(PAGE, max(2.5, 0.4 + 0.135 * len(names))), layout="constrained")
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
    for axes, what in ((timed, "forward + backward, per token (µs)"), (held, "peak memory")):
        _length_axis(axes, sorted({point["length"] for point in shown}))
        axes.set_ylabel(what)
        axes.grid(axis="y")
    timed.set_yscale("log")
    timed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: q.amount(value)))
    held.set_yscale("log", base=2)
    held.yaxis.set_major_locator(LogLocator(base=4, numticks=12))
    held.yaxis.set_minor_locator(NullLocator())
    held.yaxis.set_major_formatter(FuncFormatter(lambda value, _: whole_bytes(value)))
    legend(figure, timed)
    caption = (
        f"Forward and backward pass of a single mixer at {dim} channels, batch {shown[0]['batch']}: median "
        "time per token and the most memory held in tensors. Wide line: reading and writing the tokens once, "
        f"the least that any mixer must do. {_where(machine)} {' '.join(crossovers(points))}"
    )
    return finished_drawing(f"bench_{dim}", "Time and memory against length", caption, figure, list(points))


def _cells(point: Json) -> dict[str, Cell]:
    measured = point["median_ms"] is not None
    spread = f"({_digits(point['p20_ms'])}, {_digits(point['p80_ms'])})" if measured else ""
    return {
        "mixer": Cell(point["mixer"]),
        "dim": Cell(f"{point['dim']:,}", value=point["dim"]),
        "length": Cell(f"{point['length']:,}", value=point["length"]),
        "what": Cell(point["what"]),
        "median": Cell(_digits(point["median_ms"]) if measured else f"skipped: {point['skipped']}", spread),
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


def _times(points: Sequence[Json]) -> dict[tuple[str, int], dict[int, float]]:
    """Milliseconds by length, of each mixer at each width, forward and backward."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for point in points:
        if point["what"] == BOTH and point["median_ms"] is not None:
            found.setdefault((point["mixer"], point["dim"]), {})[point["length"]] = point["median_ms"]
    return found


def _crossing(one: dict[int, float], other: dict[int, float]) -> tuple[float, bool] | None:
    """The last length at which two lines cross, and whether the first is the slower one after it.

    Between two lengths the logarithm of the ratio is taken as linear in the logarithm of the length.
    """
    both = sorted(set(one) & set(other))
    ratios = [math.log(one[length] / other[length]) for length in both]
    for index in range(len(both) - 2, -1, -1):
        before, after = ratios[index], ratios[index + 1]
        if before * after < 0:
            share = before / (before - after)
            length = both[index] * (both[index + 1] / both[index]) ** share
            return length, after > 0
    return None


def _per_token(point: Json) -> float:
    return 1e3 * point["median_ms"] / (point["batch"] * point["length"])


def _moving(points: Sequence[Json], machine: Json) -> dict[int, float]:
    """Microseconds per token that reading and writing takes in a forward and backward pass, by length."""
    size = 2 if machine["dtype"] == "bfloat16" else 4
    least = 1e6 * 5 * points[0]["dim"] * size / machine["bytes_per_second"]
    return dict.fromkeys(sorted({point["length"] for point in points}), least)


def _length_axis(axes: Axes, lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(lengths)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("length (tokens)")
