"""Learning curves and costs: what a band is, what is on the front, what lies on one another."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from matplotlib.axes import Axes

from analysis.drawing import coinciding, paper_style
from analysis.panel_figures import costs, curves, pareto_front
from analysis.read_records import load_study
from analysis.records import Study
from analysis.summary import summarise


def draw(figure: Any, study: Study) -> Any:
    with paper_style():
        drawing = figure(study, list(summarise(study).values()))
    assert drawing is not None
    return drawing


def bands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Lower and upper edges of what is filled from now on."""
    found = []
    original = Axes.fill_between

    def fill_between(axes: Axes, x: Any, low: Any, high: Any, **style: Any) -> Any:
        found.append((low, high))
        return original(axes, x, low, high, **style)

    monkeypatch.setattr(Axes, "fill_between", fill_between)
    return found


def test_one_seed_has_no_standard_deviation(write_records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write_records({"conv": [90.0], "ssm": [92.0]})
    filled = bands(monkeypatch)
    drawing = draw(curves, load_study(records.study, records.trials))
    rows = list(csv.DictReader(io.StringIO(drawing.files["csv"].decode())))
    assert {row["sd"] for row in rows} == {""}
    assert {row["n"] for row in rows} == {"1"}
    assert not filled
    assert "bands" not in drawing.caption


def test_a_band_ends_at_100_percent(write_records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write_records({"conv": [90.0, 91.0, 90.5], "ssm": [99.8, 99.9, 91.0]})
    for seed, last in enumerate((100.0, 100.0, 91.0)):
        path = records.folder("ssm", seed) / "curve.csv"
        path.write_text(re.sub(r"[\d.]+$", str(last), path.read_text().rstrip()) + "\n")
    filled = bands(monkeypatch)
    drawing = draw(curves, load_study(records.study, records.trials))
    assert max(high.max() for _, high in filled) == 100
    assert "Bands are drawn no further than 0 and 100 %." in drawing.caption


def test_a_price_of_zero_counts_for_the_front(write_records: Any) -> None:
    records = write_records({"free": [95.0, 95.2], "paid": [90.0, 90.2], "best": [97.0, 97.4]})
    for arm, state in (("free", 0), ("paid", 1024), ("best", 4096)):
        for seed in range(2):
            stored = json.loads((records.folder(arm, seed) / "result.json").read_text())["costs"]
            records.edit(arm, seed, costs=stored | {"state_bytes": state})
    study = load_study(records.study, records.trials)
    prices, _ = pareto_front(list(summarise(study).values()), "state_bytes", 1)
    assert prices == [0, 4096], "what is free and better leaves the other no place"
    assert "Carrying 0 bytes" in draw(costs, study).caption


def test_marks_on_one_another_are_named(write_records: Any) -> None:
    records = write_records({"conv": [90.0, 91.0], "same": [90.0, 91.0], "ssm": [92.0, 93.0]})
    study = load_study(records.study, records.trials)
    assert "Exactly on one another: conv and same (memory of training)." in draw(costs, study).caption


def test_what_is_not_drawn_hides_nothing() -> None:
    nan = float("nan")
    assert coinciding({"a": [1.0, nan], "b": [1.0, nan], "c": [2.0], "d": [2.0]}) == [["c", "d"]]


def test_a_bar_ends_where_its_interval_ends() -> None:
    import matplotlib

    with paper_style():
        assert matplotlib.rcParams["lines.solid_capstyle"] == "butt"
