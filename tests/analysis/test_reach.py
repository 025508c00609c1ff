"""Accuracy by distance and by direction, drawn from records that have such numbers."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from matplotlib.axes import Axes

from analysis import reach
from analysis.read_records import load_study
from analysis.report import write_study

METRIC = {"name": "key_accuracy", "unit": "%", "difference_unit": "points", "higher_is_better": True}
# of one, two, three cells, below and above: what a prototype measured
MEASURED = {
    "conv 7x7": [39.0, 11.6, 9.8, 21.2, 15.7],
    "ssm forward": [55.8, 53.8, 55.4, 91.8, 9.2],
    "attention": [96.7, 97.6, 99.0, 97.6, 98.1],
}
PLACES = ("d1", "d2", "d3", "below", "above")


@pytest.fixture
def records(write_records: Any) -> Any:
    written = write_records(
        {arm: [values[0]] * 3 for arm, values in MEASURED.items()},
        metric=METRIC,
        baselines=[{"case": None, "name": "a random class", "value": 10.0}],
    )
    for arm, seed in written.ids:
        shift = seed - 1
        test = {f"key_accuracy_{name}": x + shift for name, x in zip(PLACES, MEASURED[arm], strict=True)}
        test |= {"key_accuracy": MEASURED[arm][0], "own_accuracy": 99.0}
        written.edit(arm, seed, metrics={"test": test, "validation": {"key_accuracy": 50.0}})
    return written


def test_every_place_of_every_arm_with_its_interval(records: Any) -> None:
    drawing = reach.draw(load_study(records.study, records.trials))
    assert drawing is not None
    rows = list(csv.DictReader(io.StringIO(drawing.files["csv"].decode())))
    assert len(rows) == len(MEASURED) * len(PLACES)
    means = {(row["arm"], row["place"].replace("distance ", "d")): float(row["mean"]) for row in rows}
    assert means == pytest.approx(
        {(arm, place): x for arm, values in MEASURED.items() for place, x in zip(PLACES, values, strict=True)}
    )
    assert all(float(row["high"]) - float(row["mean"]) == pytest.approx(2.484, abs=1e-3) for row in rows)
    assert "Dotted: a random class, 10 %" in drawing.caption


def test_marks_of_the_two_directions_lie_apart(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heights: dict[str, set[float]] = {}
    original = Axes.plot

    def plot(axes: Axes, x: Any, y: Any, **style: Any) -> Any:
        if style.get("linestyle") == "":
            heights.setdefault(style["marker"], set()).update(y)
        return original(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    reach.draw(load_study(records.study, records.trials))
    assert sorted(len(each) for each in heights.values()) == [2, 2, 2]


def test_metric_and_chance_are_said_in_words(records: Any) -> None:
    drawing = reach.draw(load_study(records.study, records.trials))
    assert drawing is not None
    said = drawing.files["svg"].decode()
    assert said.count("test accuracy for the framed digit (%)") == 1
    assert said.count(">test accuracy for the<") == said.count(">framed digit (%)<") == 1, "short axis"
    assert said.count(">a random class<") == 2
    assert "key_accuracy" not in said + drawing.caption
    assert "Intervals are drawn no further than 0 and 100 %." in drawing.caption


def test_it_is_part_of_the_report(records: Any) -> None:
    report = write_study(records.study, records.trials)
    assert report.paths["figures/reach.png"].stat().st_size > 10_000
    assert "Range, and the price of one direction" in report.paths["report.html"].read_text()


def test_cases_that_test_the_same_models_are_drawn_once(records: Any) -> None:
    plan = json.loads((records.study / "plan.json").read_text())
    entries = [{"name": name, "at": None, "series": None, "about": "scenes"} for name in ("own", "above")]
    arms = [
        {**arm, "name": f"{arm['name']} @ {case['name']}", "arm": arm["name"], "case": case["name"]}
        for case in entries
        for arm in plan["arms"]
    ]
    records.edit_plan(arms=arms, comparisons=[], cases={"axis": "", "log": False, "entries": entries})
    drawing = reach.draw(load_study(records.study, records.trials))
    assert drawing is not None
    assert len(drawing.files["csv"].decode().splitlines()) == 1 + len(MEASURED) * len(PLACES)


def test_other_studies_have_none(write_records: Any) -> None:
    records = write_records({"conv": [90.0, 91.0], "ssm": [92.0, 93.0]})
    assert reach.draw(load_study(records.study, records.trials)) is None
