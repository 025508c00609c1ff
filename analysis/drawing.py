"""How every figure is drawn: sizes, colours, the style sheet, and the files that a finished one has.

Sizes are those of a paper column (3.25 in) or page (6.75 in); `paper.mplstyle` has the rest. A figure is the
same bytes for the same records: matplotlib's Figure is used directly, under its own defaults, with no date
and a fixed id salt.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis import quantities as q
from analysis.csv_text import write_csv
from analysis.records import Json
from analysis.statistics import Estimate
from experiments.store import write_bytes

STYLE = Path(__file__).parent / "paper.mplstyle"
COLUMN, PAGE = 3.25, 6.75  # inches
PIXELS_PER_INCH = 300
CHARACTERS_PER_INCH = 21  # of a label at an axis

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
INK, GREY, ZONE = "#222222", "#8A8A8A", "#E9EEF2"


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its files by suffix (png, svg, pdf, csv), a title and a caption."""

    name: str
    title: str
    caption: str
    width: float  # inches
    files: dict[str, bytes]


def colour_and_marker(index: int) -> Json:
    """Colour and marker of one of several things; no two of the first 49 have both in common."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def line_style(index: int) -> Any:
    """Dashes of one of several things, or none."""
    return DASHES[index % len(DASHES)]


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib's defaults plus our style, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc_file(STYLE)
        yield


def finished_drawing(name: str, title: str, caption: str, figure: Figure, rows: list[Json]) -> Drawing:
    # Lay out once: the engine would otherwise run again for every format.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    files = {"csv": write_csv(rows).encode()}
    # `savefig` would draw every figure twice, to learn its extent, which is not asked for here.
    writers: list[tuple[str, Callable[..., None], Json]] = [
        (
            "png",
            partial(FigureCanvasAgg(figure).print_png, pil_kwargs={"compress_level": 3}),
            {"Software": None},
        ),
        ("svg", FigureCanvasSVG(figure).print_svg, {"Date": None, "Creator": None}),
        ("pdf", FigureCanvasPdf(figure).print_pdf, {"CreationDate": None, "Creator": None, "Producer": None}),
    ]
    figure.set_dpi(PIXELS_PER_INCH)
    for suffix, write, metadata in writers:
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            write(buffer, metadata=metadata)
        files[suffix] = buffer.getvalue()
    return Drawing(name, title, caption, float(figure.get_figwidth()), files)


def write_drawing(folder: Path, drawing: Drawing) -> list[Path]:
    """Write the files of a figure and NAME.md, its title and caption; returns the picture and the caption."""
    caption = f"**{drawing.title}.** {drawing.caption}\n"
    for suffix, content in {**drawing.files, "md": caption.encode()}.items():
        write_bytes(folder / f"{drawing.name}.{suffix}", content, durable=False)
    return [folder / f"{drawing.name}.{suffix}" for suffix in ("png", "md")]


def keep_to_percentages(axes: Axes, unit: str, along: Literal["x", "y"] = "y") -> None:
    """An interval of three unlike seeds reaches beyond what a percentage can be; the axis does not."""
    if unit == "%":
        low, high = axes.get_xlim() if along == "x" else axes.get_ylim()
        low, high = max(low, -0.04 * high), min(high, 100 + 0.04 * (100 - low))
        (axes.set_xlim if along == "x" else axes.set_ylim)(low, high)


def drawn_interval(estimate: Estimate, unit: str) -> tuple[float, float]:
    """The interval as far as a percentage can be."""
    if unit != "%":
        return estimate.low, estimate.high
    return max(estimate.low, 0.0), min(estimate.high, 100.0)


def cut_note(bounds: Iterable[float], unit: str, what: str = "Intervals") -> str:
    """What a caption says where a part beyond 0 or 100 % is not drawn; a bound that is NaN is none."""
    cut = unit == "%" and any(bound < 0 or bound > 100 for bound in bounds)
    return f" {what} are drawn no further than 0 and 100 %." if cut else ""


def coinciding(places: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Names of lines or marks that lie exactly on one another, so that only the last is seen.

    Args:
        places: by name, all that places a line or a mark; what is NaN is not drawn.
    """
    found: dict[tuple[float, ...], list[str]] = {}
    for name, values in places.items():
        if all(map(math.isfinite, values)):
            found.setdefault(tuple(round(value, 9) for value in values), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def legend(figure: Figure, *panels: Axes) -> None:
    """One legend of what some panels have, beside them, where it can hide nothing."""
    found = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = ([each for part in parts for each in part] for parts in zip(*found, strict=True))
    figure.legend(handles, labels, loc="outside right upper", ncols=1)


def legend_label(name: str) -> str:
    return wrapped(q.shortened(name, 60), 22)


def whole_bytes(value: float) -> str:
    """A power of two, as a tick says it: ``8 KiB``."""
    return re.sub(r"\.0+ ", " ", q.byte_size(value))


def axis_label(what: str, unit: str, inches: float) -> str:
    """``test accuracy (%)``, broken between words where an axis of this length is too short for it."""
    return "\n".join(textwrap.wrap(f"{what} ({unit})", int(CHARACTERS_PER_INCH * inches)))


def wrapped(name: str, width: int) -> str:
    """Break a long name between words, and words that no line holds. A dollar sign is no mathematics."""
    lines = textwrap.wrap(name.replace("(", "( "), width)
    return "\n".join(lines).replace("( ", "(").replace("$", r"\$")
