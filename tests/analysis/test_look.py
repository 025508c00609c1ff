"""The figures of what a token can see: what is on the maps, their scales, and the names above them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from analysis import look
from analysis.drawing import wrapped

ARM = "ladder-without-conv-ssm (digits-ladder)"


def cells(figure: str, panel: str, part: str) -> list[dict[str, Any]]:
    return [
        {"figure": figure, "panel": panel, "part": part, "row": row, "column": column, "value": 0.5**row}
        for row in range(3)
        for column in range(3)
    ]


@pytest.mark.parametrize("figure", ["influence", "receptive_fields"])
def test_maps_have_a_scale_and_whole_names(figure: str, tmp_path: Path) -> None:
    rows = [row for part in ("before", "after") for row in cells(figure, ARM, part)]
    written = look.write(tmp_path, rows)
    assert written == [tmp_path / f"{figure}.png", tmp_path / f"{figure}.md"]
    assert "(cross)" in written[1].read_text(), "the caption"
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / f"{figure}.svg").read_text())
    assert "mean absolute gradient, as a share of the largest in the map" in texts
    assert "ladder-without-conv-" in texts
    assert not [text for text in texts if "…" in text]


@pytest.mark.parametrize("name", [ARM, "a" * 50, "ssm(d_state=16, scan=bidirectional)", "costs $5"])
def test_a_wrapped_name_is_whole(name: str) -> None:
    lines = wrapped(name, 12).replace(r"\$", "$").split("\n")
    assert max(map(len, lines)) <= 12
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")


def of_map(figure: str, panel: str, part: str, values: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"figure": figure, "panel": panel, "part": part, "row": row, "column": column, "value": float(value)}
        for (row, column), value in np.ndenumerate(values)
    ]


def test_a_map_stands_below_its_name_with_a_cross_at_its_centre(drawn: Callable[..., Figure]) -> None:
    numbers = np.random.default_rng(0)
    values = {
        (name, part): numbers.random((5, 7)) for name in ("conv", "ssm") for part in ("before", "after")
    }
    values["ssm", "after"][0, 1] = 0  # has no logarithm: drawn as the least
    rows = [
        row for (name, part), each in values.items() for row in of_map("receptive_fields", name, part, each)
    ]
    figure = drawn(look.receptive_fields, rows[::-1])
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == len(values)
    for axes in panels:
        name, part = axes.get_title().split("\n")
        (image,), (cross,) = axes.images, axes.get_lines()
        np.testing.assert_array_equal(image.get_array(), np.maximum(values[name, part], 1e-4))
        assert (image.norm.vmin, image.norm.vmax) == (1e-4, 1)
        assert (cross.get_xydata().tolist(), cross.get_marker()) == ([[3, 2]], "+")
    rows = of_map("influence", "conv", "", values["conv", "before"])
    (axes, _) = (axes for axes in drawn(look.influence, rows).axes if axes.images or axes.get_xlabel())
    np.testing.assert_array_equal(axes.images[0].get_array(), values["conv", "before"])


def test_a_scan_goes_from_the_dark_circle_to_the_light_end(drawn: Callable[..., Figure]) -> None:
    places = np.array([[2, 1, 0], [3, 4, 5], [8, 7, 6]])  # in the walk
    rows = of_map("scan_orders", "zigzag", "", places)
    rows += of_map("scan_orders", "halves", "left", np.array([[0, 1]]))
    rows += of_map("scan_orders", "halves", "right", np.array([[1, 0]]))
    zigzag, left, right = (axes for axes in drawn(look.scan_orders, rows).axes if axes.get_title())
    assert [axes.get_title() for axes in (zigzag, left, right)] == ["zigzag", "halves\nleft", "halves\nright"]
    *steps, circle = zigzag.get_lines()
    walk = [(int(column), int(row)) for row, column in (np.argwhere(places == step)[0] for step in range(9))]
    assert [[tuple(point) for point in step.get_xydata()] for step in steps] == [
        [walk[step], walk[step + 1]] for step in range(8)
    ]
    assert (circle.get_marker(), circle.get_xydata().tolist()) == ("o", [[2, 0]])
    shades = [sum(to_rgb(step.get_color())) for step in steps]
    assert shades == sorted(shades)
    assert shades[0] < 0.5 < 1.8 < shades[-1]
    bottom, top = zigzag.get_ylim()
    assert top < bottom, "the first row is at the top"
    assert [axes.get_lines()[-1].get_xydata().tolist() for axes in (left, right)] == [[[0, 0]], [[1, 0]]]


def test_answers_have_the_colours_of_their_classes_over_the_canvas(drawn: Callable[..., Figure]) -> None:
    canvas = np.random.default_rng(0).random((4, 4))
    answers = {
        ("truth", "0 own"): 3,
        ("truth", "0 key"): 7,
        ("conv", "0 own"): 3,
        ("conv", "0 key"): 1,
    }
    rows = of_map("scenes", "canvas", "0", canvas)
    for (panel, part), value in answers.items():
        at = {"figure": "scenes", "panel": panel, "part": part, "row": 1, "column": 2}
        rows.append({**at, "value": float(value)})
    figure = drawn(look.scenes, rows)
    grid = np.array(figure.axes).reshape(2, 3)
    assert [axes.get_title() for axes in grid[0]] == ["canvas", "truth", "conv"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["own class", "framed one's"]
    (legend,) = figure.legends
    colours = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert [text.get_text() for text in legend.get_texts()] == [str(number) for number in range(10)]
    for line, question in enumerate(("0 own", "0 key")):
        for axes, panel in zip(grid[line], ("canvas", "truth", "conv"), strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), canvas)
            if panel == "canvas":
                assert len(axes.images) == 1
                continue
            over = np.asarray(axes.images[1].get_array())
            assert np.argwhere(over[..., 3]).tolist() == [[1, 2]]
            assert to_hex(over[1, 2]) == colours[answers[panel, question]]
