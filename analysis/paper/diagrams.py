"""Figures 1(a), 3(a) and 4 of the paper, drawn from what the modules are made of (`experiments.outline`)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from analysis import quantities as q
from analysis.drawing import COLOURS, COLUMN, GREY, INK, PAGE, Drawing, finished_drawing
from analysis.records import Json

OUTLINE = Path(__file__).parent / "outline.json"

KINDS = {
    "DepthwiseConv": "depthwise conv",
    "SelectiveScan": "selective scan",
}
LEFT, RIGHT, MIDDLE = 0.24, 0.81, 0.55  # columns of a block: mixer, gate, and what both share
STEP = 1.0  # rows of a block
SHARED, MIXER, GATE = "#EEF1F4", "#FBE3D6", "#E3EEF6"


def blocks() -> Drawing:
    """Figure 1(a): the Gated CNN block and the Mamba block, which differ in what is in the mixer."""
    outline = _outline()["blocks"]
    figure = Figure(figsize=(PAGE, 4.2), layout="constrained")
    rows = 6 + max(len(_merged(block["mixer"])) for block in outline.values())
    for axes, (name, block) in zip(figure.subplots(1, len(outline)), outline.items(), strict=True):
        _block(axes, name, block, rows)
    records = [
        {"block": name, "part": part["kind"], "parameters": part["parameters"], "dim": block["dim"]}
        for name, block in outline.items()
        for part in [{"kind": "whole block", "parameters": block["parameters"]}, *block["mixer"]]
    ]
    caption = (
        "A block of the first stage of mambaout-tiny, as built here with the mixers conv and ssm; sizes are "
        "read off the modules. Some of the value's channels go through the mixer (orange), the rest past it; "
        "then they are put together again. Orange is the difference that a study asks about; where its arms "
        "are matched in size, the hidden width makes up for it."
    )
    return finished_drawing("figure_1a", "Figure 1(a): the block and its slot", caption, figure, records)


def masks() -> Drawing:
    """Figure 3(a): which tokens an output may depend on, fully visible and causal."""
    found = _outline()["masks"]
    figure = Figure(figsize=(COLUMN, 1.75), layout="constrained")
    for axes, (mixer, mask), title in zip(
        figure.subplots(1, len(found)), found.items(), ("fully visible", "causal"), strict=True
    ):
        for row, column in itertools.product(range(len(mask)), repeat=2):
            colour = COLOURS[0] if mask[row][column] == "1" else "white"
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor=GREY, linewidth=0.5))
        axes.set_xlim(-0.55, len(mask) - 0.45)
        axes.set_ylim(len(mask) - 0.45, -0.55)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(f"{title}\n{mixer}", loc="center")
        axes.set_xlabel("input tokens")
    figure.axes[0].set_ylabel("output tokens")
    records = [
        {"mixer": mixer, "output": row, "input": column, "visible": int(mask[row][column])}
        for mixer, mask in found.items()
        for row, column in itertools.product(range(len(mask)), repeat=2)
    ]
    caption = (
        "Two modes of token mixing, as the mixers attention and causal-attention declare them: a filled "
        "square where the output of a row may depend on the input of a column. A causal output depends on no "
        "later token."
    )
    return finished_drawing("figure_3a", "Figure 3(a): fully visible and causal", caption, figure, records)


def stages() -> Drawing:
    """Figure 4: the four stages."""
    outline = _outline()
    parts = outline["parts"]
    figure = Figure(figsize=(PAGE, 1.55), layout="constrained")
    axes = _canvas(figure.subplots(), width=len(parts) + 0.6, height=3)
    channels, height, width = outline["input"]
    _text(axes, 0.28, 1.5, f"image\n{height} x {width}\n{channels} channels")
    for place, part in enumerate(parts, start=1):
        tall = 0.75 + 0.17 * (len(parts) - place)
        colour = MIXER if part["blocks"] else SHARED
        _box(axes, place + 0.1, 1.5, 0.72, 2 * tall * 0.7, colour, _part_text(part))
        _arrow(axes, (place - 0.43 + 0.03 * (place == 1), 1.5), (place - 0.27, 1.5))
    rows = [{**part, "out": " x ".join(map(str, part["out"]))} for part in parts]
    caption = (
        f"The backbone {outline['backbone']}: tokens and channels after each part, blocks and parameters in "
        "it, read off the modules. Stages 2 to 4 begin with a convolution of stride 2. The block of Figure "
        "4(b) is the Gated CNN block of Figure 1(a)."
    )
    return finished_drawing("figure_4", "Figure 4: four stages", caption, figure, rows)


def _outline() -> Json:
    found: Json = json.loads(OUTLINE.read_text(encoding="utf-8"))
    return found


def _part_text(part: Json) -> str:
    *grid, channels = part["out"]
    lines = [part["name"]]
    if grid:
        lines.append(" x ".join(map(str, grid)))
    lines.append(f"{channels:,} {'channels' if grid else 'classes'}")
    if part["blocks"]:
        lines.append(q.plural(part["blocks"], "block"))
    return "\n".join([*lines, f"{q.count(part['parameters'])} params"])


def _block(axes: Axes, name: str, block: Json, rows: int) -> None:
    parts = _merged(block["mixer"])
    _canvas(axes, width=1, height=rows + 1)
    axes.set_title(f"{name}, {q.count(block['parameters'])} params", loc="center")
    dim, hidden, mixed = block["dim"], block["hidden"], block["mixed"]
    y = rows + 0.45
    _text(axes, MIDDLE, y, f"x: tokens of {dim} channels")
    _box(axes, MIDDLE, y - STEP, 0.5, 0.6, SHARED, "LayerNorm")
    _box(axes, MIDDLE, y - 2 * STEP, 0.5, 0.6, SHARED, f"Linear, {dim} to 2 x {hidden}")
    _arrow(axes, (MIDDLE, y - 0.2), (MIDDLE, y - STEP + 0.3))
    _arrow(axes, (MIDDLE, y - STEP - 0.3), (MIDDLE, y - 2 * STEP + 0.3))
    split = y - 2 * STEP - 0.3
    place = beside = split - 0.8
    _arrow(axes, (MIDDLE - 0.14, split), (LEFT, place + 0.3))
    _arrow(axes, (MIDDLE + 0.14, split), (RIGHT, place + 0.3))
    for part in parts:
        _box(axes, LEFT, place, 0.38, 0.6, MIXER, part)
        if part is not parts[-1]:
            _arrow(axes, (LEFT, place - 0.3), (LEFT, place - STEP + 0.3))
            place -= STEP
    _text(axes, LEFT, split - 0.2, f"{mixed} of {hidden}", align="right")
    _text(axes, MIDDLE + 0.02, beside, f"{hidden - mixed}", align="left")
    _text(axes, RIGHT, split - 0.2, f"{hidden}", align="left")
    _box(axes, RIGHT, beside, 0.26, 0.6, GATE, f"gate: {block['act']}")
    together = place - STEP
    _arrow(axes, (LEFT, place - 0.3), (LEFT, together + 0.3))
    _arrow(axes, (MIDDLE, split), (MIDDLE, together + 0.3))
    _box(axes, (LEFT + MIDDLE) / 2, together, 0.42, 0.6, SHARED, f"concatenate, {hidden}")
    joined = together - STEP + 0.1
    _arrow(axes, ((LEFT + MIDDLE) / 2, together - 0.3), (MIDDLE - 0.04, joined + 0.12))
    _arrow(axes, (RIGHT, beside - 0.3), (MIDDLE + 0.04, joined + 0.12))
    _text(axes, MIDDLE, joined, "\N{MULTIPLICATION SIGN}", size=10)
    _box(axes, MIDDLE, joined - 0.85, 0.5, 0.6, SHARED, f"Linear, {hidden} to {dim}")
    _arrow(axes, (MIDDLE, joined - 0.2), (MIDDLE, joined - 0.55))
    _arrow(axes, (MIDDLE, joined - 1.15), (MIDDLE, joined - 1.45))
    _text(axes, MIDDLE, joined - 1.62, "+", size=10)
    axes.plot(
        [MIDDLE - 0.2, 0.02, 0.02, MIDDLE - 0.05],
        [y, y, joined - 1.62, joined - 1.62],
        color=GREY,
        linewidth=0.8,
    )
    axes.set_ylim(0.6, rows + 0.9)


def _merged(parts: Sequence[Json]) -> list[str]:
    """A line per kind of part, in order; the SiLU between convolution and scans belongs to the mixer."""
    kinds = list(dict.fromkeys(part["kind"] for part in parts))
    lines = []
    for kind in kinds:
        same = [part["parameters"] for part in parts if part["kind"] == kind]
        times = f"{len(same)} x " if len(same) > 1 else ""
        before = "SiLU, " if kind == "SelectiveScan" and len(kinds) > 1 else ""
        lines.append(f"{before}{times}{KINDS.get(kind, kind)}\n{q.count(sum(same))} params")
    return lines


def _canvas(axes: Axes, width: float, height: float) -> Axes:
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str) -> None:
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(
        FancyBboxPatch(
            corner, width, height, boxstyle="square,pad=0", facecolor=colour, edgecolor=GREY, linewidth=0.6
        )
    )
    axes.annotate(text, (x, y), ha="center", va="center", color=INK, fontsize=6.2)


def _text(axes: Axes, x: float, y: float, text: str, size: float = 6.2, align: str = "center") -> None:
    axes.annotate(text, (x, y), ha=align, va="center", color=INK, fontsize=size)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {
        "arrowstyle": "-|>",
        "color": COLOURS[6],
        "linewidth": 0.6,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 6,
    }
    axes.annotate("", end, start, arrowprops=style)
