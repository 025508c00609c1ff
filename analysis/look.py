"""Figures of what a token can see, drawn from the maps that `experiments.look` computes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from analysis.drawing import (
    COLOURS,
    GREY,
    PAGE,
    Drawing,
    finished_drawing,
    paper_style,
    wrapped,
    write_drawing,
)
from analysis.records import Json

COLUMNS = 6  # maps side by side
CHARACTERS = 19  # of a title, to an inch
SIDE_OF_ORDERS = 8  # tokens of the grid that scan orders are drawn on
# matplotlib's tab10, which tells ten classes apart
CLASS_COLOURS = [to_hex(colormaps["tab10"](number)) for number in range(10)]
FLOOR = 1e-4
"""Influences are drawn on a logarithmic scale from here to 1; what is below is white, like nothing."""
SCALE, BLUES = LogNorm(FLOOR, 1), "Blues"


def write(folder: Path, rows: Sequence[Json]) -> list[Path]:
    """Draw what the rows hold and write each figure with data and caption; returns what to look at.

    Args:
        folder: where to.
        rows: fields of `experiments.look.Cell`, one dictionary per number.
    """
    with paper_style():
        drawings = [
            drawing
            for drawing in (scan_orders(rows), influence(rows), receptive_fields(rows), scenes(rows))
            if drawing
        ]
    return [path for drawing in drawings for path in write_drawing(folder, drawing)]


def scan_orders(rows: Sequence[Json]) -> Drawing | None:
    """The path of each scan over a small grid, one axes per order and segment."""
    cells = _of("scan_orders", rows)
    walks = list(dict.fromkeys((row["panel"], row["part"]) for row in cells))
    if not walks:
        return None
    scans = [panel for panel, _ in walks]
    titles = [f"{panel}\n{part}" if scans.count(panel) > 1 else panel for panel, part in walks]
    figure, panels = _grid_of_axes(titles, 1.18)
    for walk, axes in zip(walks, panels, strict=True):
        _path(axes, [row for row in cells if (row["panel"], row["part"]) == walk])
    path = LinearSegmentedColormap.from_list("path", [_shade(0), _shade(1)])
    scale = _colour_scale(figure, ScalarMappable(Normalize(0, 1), path), "place in the walk of a segment")
    scale.set_ticks([0, 1], labels=["first token", "last"])
    caption = (
        "The orders in which the scans visit the tokens of an 8 x 8 image, from the circle on, from dark to "
        "light. A segment begins with an empty state. All but forward and atrous are walked both ways."
    )
    return finished_drawing("scan_orders", "Scan orders", caption, figure, cells)


def influence(rows: Sequence[Json]) -> Drawing | None:
    """One heat map per mixer: what the output at the centre depends on."""
    cells = _of("influence", rows)
    names = list(dict.fromkeys(row["panel"] for row in cells))
    if not names:
        return None
    figure, panels = _grid_of_axes(names, 1.18)
    for name, axes in zip(names, panels, strict=True):
        _heat(axes, _matrix([row for row in cells if row["panel"] == name]))
    _colour_scale(
        figure, ScalarMappable(SCALE, BLUES), "mean absolute gradient, as a share of the largest in the map"
    )
    caption = (
        "Influence of each input token on the output at the centre (cross) of a single, fresh mixer: mean "
        "over initialisations, random inputs and projections of the output, the largest value in each map "
        f"being 1, on a logarithmic scale down to {FLOOR:g}. White: no influence."
    )
    return finished_drawing("influence", "What a mixer lets a token see", caption, figure, cells)


def receptive_fields(rows: Sequence[Json]) -> Drawing | None:
    """Two heat maps per trained arm: the effective receptive field before and after training."""
    cells = _of("receptive_fields", rows)
    names = list(dict.fromkeys(row["panel"] for row in cells))
    if not names:
        return None
    titles = [f"{name}\n{part}" for name in names for part in ("before", "after")]
    figure, panels = _grid_of_axes(titles, 1.3)
    places = [(name, part) for name in names for part in ("before", "after")]
    for (name, part), axes in zip(places, panels, strict=True):
        _heat(axes, _matrix([row for row in cells if (row["panel"], row["part"]) == (name, part)]))
    _colour_scale(
        figure, ScalarMappable(SCALE, BLUES), "mean absolute gradient, as a share of the largest in the map"
    )
    caption = (
        "Effective receptive field of the feature at the centre of the last block (cross), in pixels of test "
        "images, before and after training (seed 0): mean absolute gradient, the largest value in each map "
        f"being 1, on a logarithmic scale down to {FLOOR:g}."
    )
    return finished_drawing("receptive_fields", "Effective receptive fields", caption, figure, cells)


def scenes(rows: Sequence[Json]) -> Drawing | None:
    """A line per canvas and question: the canvas, the truth, and the answers of every arm at the digits."""
    cells = _of("scenes", rows)
    panels = [name for name in dict.fromkeys(row["panel"] for row in cells) if name != "canvas"]
    if not panels:
        return None
    maps: dict[tuple[str, str], list[Json]] = {}
    for row in cells:
        maps.setdefault((row["panel"], row["part"]), []).append(row)
    lines = sorted((part for panel, part in maps if panel == "truth"), key=lambda part: part.split()[0])
    columns = len(panels) + 1
    side = min(PAGE / columns, 1.2)
    figure = Figure(figsize=(side * columns, side * 1.06 * len(lines) + 0.45), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for line, axes_of_line in zip(lines, grid, strict=True):
        number, _, question = line.partition(" ")
        canvas = _matrix(maps["canvas", number])
        for panel, axes in zip(("canvas", *panels), axes_of_line, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(visible=True, color=GREY, linewidth=0.5)
            axes.imshow(canvas, cmap="Greys", vmin=0, vmax=1 if panel == "canvas" else 3)
            if panel != "canvas":
                axes.imshow(_coloured(maps.get((panel, line), []), canvas.shape), interpolation="nearest")
            if line == lines[0]:
                axes.set_title(wrapped(panel, int(CHARACTERS * side)), fontsize=5.6, linespacing=1.1)
        axes_of_line[0].set_ylabel({"own": "own class", "key": "framed one's"}[question], fontsize=5.6)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in CLASS_COLOURS]
    names = [str(number) for number in range(len(CLASS_COLOURS))]
    figure.legend(
        handles,
        names,
        title="class",
        loc="outside lower center",
        ncols=len(names),
        fontsize=5.6,
        title_fontsize=5.6,
        handlelength=1,
    )
    caption = (
        "What every arm (seed 0) answers at the pixels of the plain digits of three canvases of the test "
        "split: their own class, and the class of the framed digit, which is the same for all of them."
    )
    return finished_drawing("scenes", "Answers on three canvases", caption, figure, cells)


def _coloured(cells: Sequence[Json], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(H, W, 4): the colour of each answered class, transparent elsewhere."""
    image = np.zeros((*shape, 4))
    for row in cells:
        image[row["row"], row["column"]] = (*to_rgb(CLASS_COLOURS[int(row["value"])]), 1.0)
    return image


def _of(figure: str, rows: Sequence[Json]) -> list[Json]:
    return [row for row in rows if row["figure"] == figure]


def _grid_of_axes(titles: Sequence[str], inches: float) -> tuple[Figure, list[Axes]]:
    lines = math.ceil(len(titles) / COLUMNS)
    figure = Figure(figsize=(PAGE, inches * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False)
    panels = list(grid.flat)
    for axes in panels:
        axes.axis("off")
        axes.set_aspect("equal")
    for axes, title in zip(panels, titles, strict=False):
        text = "\n".join(wrapped(line, 21) for line in title.splitlines())
        axes.set_title(text, fontsize=5.6, linespacing=1.1)
    return figure, panels[: len(titles)]


def _colour_scale(figure: Figure, colours: ScalarMappable, what: str) -> Colorbar:
    """One scale below all maps."""
    scale = figure.colorbar(
        colours, ax=figure.axes, location="bottom", aspect=50, shrink=0.5, pad=0.02, label=what
    )
    scale.outline.set_visible(False)
    scale.minorticks_off()
    return scale


def _path(axes: Axes, cells: Sequence[Json]) -> None:
    walk = sorted(cells, key=lambda row: row["value"])
    points = [(row["column"], row["row"]) for row in walk]
    for step, ((x, y), (next_x, next_y)) in enumerate(itertools.pairwise(points)):
        shade = _shade(step / len(points))
        axes.plot([x, next_x], [y, next_y], color=shade, linewidth=1.0, solid_capstyle="round")
    axes.plot(*points[0], marker="o", markersize=3, color=COLOURS[1], linestyle="")
    side = SIDE_OF_ORDERS
    axes.set_xlim(-0.7, side - 0.3)
    axes.set_ylim(side - 0.3, -0.7)


def _shade(progress: float) -> tuple[float, float, float]:
    """From near black to a light blue."""
    dark, light = np.array([0.05, 0.15, 0.25]), np.array([0.62, 0.80, 0.92])
    red, green, blue = dark + progress * (light - dark)
    return float(red), float(green), float(blue)


def _matrix(cells: Sequence[Json]) -> NDArray[np.float64]:
    height, width = (1 + max(row[axis] for row in cells) for axis in ("row", "column"))
    matrix = np.zeros((height, width))
    for row in cells:
        matrix[row["row"], row["column"]] = row["value"]
    return matrix


def _heat(axes: Axes, values: NDArray[np.float64]) -> None:
    shown = np.maximum(values, FLOOR)  # 0 has no logarithm
    axes.imshow(shown, cmap=BLUES, norm=SCALE, interpolation="nearest")
    height, width = values.shape
    axes.plot([width // 2], [height // 2], marker="+", markersize=4, markeredgewidth=0.7, color=COLOURS[1])
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=GREY, linewidth=0.5))
