"""The page of the demo: a Gradio server on this machine that asks nothing of any other."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.demo import DEPTHS, Choice, Demo, Depth, Picture, drawing, read_picture
from mixers.registry import InputError

P = ParamSpec("P")
R = TypeVar("R")

HOST = "127.0.0.1"
SHOWN_SIDE = 360  # pixels of a picture on the page
FLOOR = 1e-3
"""Influences are shown on a logarithmic scale from here to 1; what is below leaves the picture as it is."""
HEAT = np.array([213, 94, 0]) / 255  # vermilion, which no picture in grey has
INTRODUCTION = """# What do the mixers see?
Draw a digit, upload a photograph or take a bundled picture, and compare what the models answer. **Click into
the picture**: orange shows which pixels the mixer's output at that place depends on, on a logarithmic scale
down to a thousandth of the largest."""
STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 14rem)); gap: 1rem; }
.card { display: grid; grid-row: span 4; grid-template-rows: subgrid; gap: .4rem; align-content: start; }
.card h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
.card p { margin: 0; font-size: .8rem; opacity: .75; }
.card img { display: block; width: 100%; image-rendering: pixelated; }
.card ol { list-style: none; margin: 0; padding: 0; font-size: .85rem; }
.card li { display: grid; grid-template-columns: minmax(0, 1fr) 3.6rem; margin: .2rem 0; }
.card li span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.card li b { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums; }
.card li i { grid-column: 1 / 3; height: 4px; background: #0072b2; }
#seen img { image-rendering: pixelated; cursor: crosshair; }
"""


def cards(chosen: Sequence[Choice], picture: Picture, spot: tuple[float, float], depth: Depth) -> str:
    """For each model its answers and its heat map, as HTML.

    Args:
        chosen: the models.
        picture: what they are asked.
        spot: row and column that was clicked, each from 0 to 1.
        depth: of the mixer whose output is looked at.
    """
    if not chosen:
        return "<p>Choose at least one model.</p>"
    return f'<div class="cards">{"".join(_card(each, picture, spot, depth) for each in chosen)}</div>'


def _card(choice: Choice, picture: Picture, spot: tuple[float, float], depth: Depth) -> str:
    lines = "".join(
        f'<li><span title="{escape(name)}">{escape(name)}</span><b>{value:.1%}</b>'
        f'<i style="width: {value:.1%}"></i></li>'
        for name, value in choice.answers(picture)
    )
    heat = overlay(picture, choice.dependence(picture, *spot, depth), spot)
    said = escape(f"What the {depth} mixer of {choice.name} depends on")
    return (
        f'<section class="card"><h3>{escape(choice.name)}</h3><p>{escape(choice.about)}</p><ol>{lines}</ol>'
        f'<img alt="{said}" src="{_data_url(heat)}"></section>'
    )


def overlay(picture: Picture, influence: NDArray[np.float64], spot: tuple[float, float]) -> NDArray[np.uint8]:
    """The picture in grey, orange where it matters, a cross at the spot: (SHOWN_SIDE, SHOWN_SIDE, 3)."""
    weight = np.clip(np.log10(np.maximum(influence, 1e-12)) / -np.log10(FLOOR) + 1, 0, 1)
    grey = enlarged(np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1))
    alpha = 0.85 * enlarged(weight[..., None])
    mixed = (255 * (grey * (1 - alpha) + HEAT * alpha)).astype(np.uint8)
    row, column = (min(int(place * SHOWN_SIDE), SHOWN_SIDE - 1) for place in spot)
    for width, shade in ((3, 0), (1, 255)):  # white with a dark rim, on any ground
        reach = 9 + width
        for rows, columns in ((reach, width), (width, reach)):
            mixed[max(row - rows, 0) : row + rows + 1, max(column - columns, 0) : column + columns + 1] = (
                shade
            )
    return mixed


def enlarged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, channels) -> (SHOWN_SIDE, SHOWN_SIDE, channels) with visible pixels."""
    rows, columns = (np.arange(SHOWN_SIDE) * size // SHOWN_SIDE for size in values.shape[:2])
    return values[rows][:, columns]


def _bytes(picture: Picture) -> NDArray[np.uint8]:
    return (255 * enlarged(picture)).round().astype(np.uint8)


def _data_url(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def said_on_the_page(what: Callable[P, R]) -> Callable[P, R]:
    """`what`, whose `InputError` the page shows; of any other error it tells nothing."""

    @wraps(what)
    def saying(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return what(*arguments, **options)
        except InputError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    return saying


def page(demo: Demo) -> Any:
    """The page, as Gradio blocks."""

    @said_on_the_page
    def show(picture: Picture, spot: tuple[float, float], depth: Depth, names: list[str]) -> str:
        return cards([demo.choices[name] for name in names], picture, spot, depth)

    def example(event: gr.SelectData) -> tuple[Picture, NDArray[np.uint8]]:
        picture = demo.examples[event.index]
        return picture, _bytes(picture)

    @said_on_the_page
    def uploaded(path: str | None) -> tuple[Any, Any]:
        if path is None:
            return gr.skip(), gr.skip()
        picture = read_picture(Path(path))
        return picture, _bytes(picture)

    def drawn(sketch: dict[str, Any] | None) -> tuple[Any, Any]:
        picture = drawing(np.max([layer[..., 3] for layer in sketch["layers"]], axis=0)) if sketch else None
        if picture is None:
            return gr.skip(), gr.skip()
        return picture, _bytes(picture)

    def clicked(event: gr.SelectData) -> tuple[float, float]:
        column, row = event.index
        return row / SHOWN_SIDE, column / SHOWN_SIDE

    with gr.Blocks(title="What do the mixers see?", analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION)
        picture, spot = gr.State(demo.examples[0]), gr.State((0.5, 0.5))
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                with gr.Tab("Bundled"):
                    gallery = gr.Gallery(
                        [_bytes(each) for each in demo.examples],
                        columns=3, height=260, allow_preview=False, buttons=[], show_label=False,
                        format="png", elem_id="examples",
                    )  # fmt: skip
                with gr.Tab("Draw"):
                    pad = gr.Sketchpad(
                        canvas_size=(320, 320), layers=False, transforms=(), type="numpy", format="png",
                        brush=gr.Brush(default_size=34, colors=["#000000"], color_mode="fixed"),
                        show_label=False, buttons=[], elem_id="pad",
                    )  # fmt: skip
                with gr.Tab("Upload"):
                    # not gr.Image, which fails without a word where the file is no picture
                    file = gr.File(file_types=["image"], show_label=False, height=150, elem_id="upload")
                seen = gr.Image(
                    _bytes(demo.examples[0]), label="the picture: click into it", interactive=False,
                    format="png", buttons=[], elem_id="seen",
                )  # fmt: skip
            with gr.Column(scale=3):
                names = gr.CheckboxGroup(list(demo.choices), value=list(demo.first), label="models")
                depth = gr.Radio(list(DEPTHS), value="last", label="mixer of the block")
                answers = gr.HTML(elem_id="answers")
        asked = [picture, spot, depth, names]
        for changed, how, given in (
            (gallery.select, example, None),
            (file.change, uploaded, file),
            (pad.change, drawn, pad),
        ):
            changed(how, given, [picture, seen], show_progress="hidden").then(show, asked, answers)
        seen.select(clicked, None, spot, show_progress="hidden").then(show, asked, answers)
        for control in (names, depth):
            control.change(show, asked, answers)
        blocks.load(show, asked, answers)
    return blocks


def serve(demo: Demo, port: int) -> Any:
    """Show the page at http://127.0.0.1:port until what is returned is closed.

    Raises:
        InputError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind((HOST, port))
        except OSError:
            raise InputError(
                f"port {port} is taken, perhaps by another demo; --port takes another one"
            ) from None
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blocks = page(demo)
    blocks.launch(
        server_name=HOST, server_port=port, share=False, quiet=True, ssr_mode=False, footer_links=[],
        theme=gr.themes.Default(**fonts), css=STYLE, prevent_thread_lock=True,
    )  # fmt: skip
    return blocks
