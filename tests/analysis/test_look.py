"""The figures of what a token can see: their scales, and the names above the maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

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
