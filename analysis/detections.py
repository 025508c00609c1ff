"""The figure of what detectors found: boxes and masks on the same images, arm beside arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.drawing import COLOURS, PAGE, Drawing, finished_drawing, paper_style, wrapped, write_drawing
from analysis.records import Json

SURE = 0.5
"""Detections below this score are not drawn."""
COLUMNS_MAX = 7


def write(folder: Path, sights: Sequence[Json]) -> list[Path]:
    """Write the figure with its data and caption, if there is anything to show; returns what to look at.

    Args:
        folder: where to.
        sights: fields of `experiments.detections.Sight`, one dictionary per image and panel.
    """
    drawing = draw(sights)
    if drawing is None:
        return []
    return write_drawing(folder, drawing)


def draw(sights: Sequence[Json]) -> Drawing | None:
    """A line per image, a column for the truth and each arm; None if there is nothing to show."""
    if not sights:
        return None
    panels = list(dict.fromkeys(each["panel"] for each in sights))[:COLUMNS_MAX]
    numbers = sorted({each["number"] for each in sights})
    categories = sorted({category for each in sights for category in each["categories"]})
    colours = {category: COLOURS[index % len(COLOURS)] for index, category in enumerate(categories)}
    with paper_style():
        side = min(PAGE / len(panels), 1.7)
        size = (side * len(panels), (side + 0.05) * len(numbers) + 0.35)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(numbers), len(panels), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for each in sights:
            if each["panel"] in panels:
                _panel(grid[numbers.index(each["number"]), panels.index(each["panel"])], each, colours)
        for panel, axes in zip(panels, grid[0], strict=True):
            axes.set_title(wrapped(panel, 21), fontsize=6)
        handles = [Patch(color=colour, label=f"category {key}") for key, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
        caption = (
            f"What every arm (seed 0) finds in {len(numbers)} images of the test split: boxes with their "
            f"scores in %, from {100 * SURE:.0f} on, and masks, coloured by category; at the left, what is "
            "there. The data beside the figure hold all detections."
        )
        return finished_drawing("detections", "Detections", caption, figure, _rows(sights))


def _panel(axes: Axes, sight: Json, colours: dict[int, str]) -> None:
    image = np.array(sight["image"])
    axes.imshow(image, cmap="Greys", vmin=0, vmax=1.6, interpolation="nearest")
    truth = sight["panel"] == "truth"
    objects = zip(sight["boxes"], sight["categories"], sight["scores"], sight["masks"], strict=True)
    for (left, top, right, bottom), category, score, mask in objects:
        if score < SURE:
            continue
        layer = np.zeros((*image.shape, 4))
        layer[..., :3] = to_rgb(colours[category])
        layer[..., 3] = 0.55 * np.array(mask)
        axes.imshow(layer, interpolation="nearest")
        corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
        axes.add_patch(
            Rectangle(corner, width, height, fill=False, edgecolor=colours[category], linewidth=0.8)
        )
        if not truth:
            axes.text(
                left,
                top,
                f"{100 * score:.0f}",
                color=colours[category],
                fontsize=4,
                va="top",
                clip_on=True,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
            )


def _rows(sights: Sequence[Json]) -> list[Json]:
    """One row per object: where, what, how sure, and the pixels of its mask."""
    return [
        {
            "panel": each["panel"],
            "image": each["number"],
            "left": box[0],
            "top": box[1],
            "right": box[2],
            "bottom": box[3],
            "category": category,
            "score": score,
            "mask_pixels": int(np.sum(mask)),
        }
        for each in sights
        for box, category, score, mask in zip(
            each["boxes"], each["categories"], each["scores"], each["masks"], strict=True
        )
    ]
