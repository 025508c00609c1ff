"""Figures along an axis and of learning rates: every mark is where its number is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis import sweep
from analysis.read_records import load_study
from analysis.records import Study
from analysis.statistics import Estimate
from analysis.summary import summarise
from analysis.verdict import judge

Draw = Callable[..., Figure]

ARMS = {
    "conv @ 64": [98.0, 99.0, 98.4],
    "ssm @ 64": [95.0, 96.2, 95.5],
    "conv @ 256": [70.0, 71.0, 75.0],
    "ssm @ 256": [95.5, 96.5, 94.0],
    "conv @ 1024": [50.0, 51.0, 49.5],
    "ssm @ 1024": [95.2, 96.0, 95.1],
}
LENGTHS = ("64", "256", "1024")
RATES = (1e-3, 1e-2, 1e-1)


@pytest.fixture
def records(write_records: Any) -> Any:
    """Two arms at three lengths, and a search of each whose best rate is the middle one."""
    entries = [
        {"name": name, "at": float(name), "series": None, "about": f"induction(length={name})"}
        for name in LENGTHS
    ]
    written = write_records(
        ARMS,
        cases={"axis": "length, in tokens", "log": True, "entries": entries},
        comparisons=[{"arm": f"ssm @ {name}", "baseline": f"conv @ {name}"} for name in LENGTHS],
    )
    plan = json.loads((written.study / "plan.json").read_text())
    for arm in plan["arms"]:
        arm["arm"], _, arm["case"] = arm["name"].partition(" @ ")
    found = []
    for arm in ARMS:
        trials = [[written.ids[arm, seed], written.ids[arm, (seed + 1) % 3]] for seed in range(3)]
        points = [{"lr": rate, "trials": each} for rate, each in zip(RATES, trials, strict=True)]
        found.append({"name": arm, "chosen": 0.01, "at_edge": None, "points": points})
    search = {"metric": "accuracy", "seeds": [1000, 1001], "arms": found}
    written.edit_plan(arms=plan["arms"], search=search)
    return written


@pytest.fixture
def study(records: Any) -> Study:
    return load_study(records.study, records.trials)


def check_line(container: Any, places: list[float], estimates: list[Estimate]) -> None:
    """Points at the means, from left to right, each with the bar of its interval."""
    line, _, (bars,) = container.lines
    assert line.get_xydata().tolist() == [[x, each.mean] for x, each in zip(places, estimates, strict=True)]
    for x, each, bar in zip(places, estimates, bars.get_segments(), strict=True):
        assert bar.tolist() == [pytest.approx([x, each.low]), pytest.approx([x, each.high])]


def colour(container: Any) -> str:
    return to_hex(container.lines[0].get_color())


def test_a_sweep_has_means_left_and_differences_right(study: Study, drawn: Draw) -> None:
    arms = summarise(study)
    comparisons = judge(study, arms)
    left, right = drawn(sweep.sweep, study, arms, comparisons).axes
    places = [64.0, 256.0, 1024.0]
    for container, label in zip(left.containers, ("conv", "ssm"), strict=True):
        assert container.get_label() == label
        check_line(container, places, [arms[f"{label} @ {name}"].test for name in LENGTHS])
    (difference,) = right.containers
    check_line(difference, places, [c.interval for c in comparisons])
    assert colour(left.containers[0]) != colour(left.containers[1]) == colour(difference)
    (zone,) = (patch.get_bbox() for patch in right.patches)
    assert (zone.y0, zone.y1) == (-1, 1), "the margin"
    assert [0, 0] in [list(line.get_ydata()) for line in right.get_lines()], "no difference"
    for axes in (left, right):
        assert axes.get_xlabel() == "length, in tokens"
        assert axes.get_xscale() == "log"
        assert names_below(axes) == dict(zip(places, LENGTHS, strict=True))


def names_below(axes: Axes) -> dict[float, str]:
    labels = [label.get_text() for label in axes.get_xticklabels()]
    return dict(zip(map(float, axes.get_xticks()), labels, strict=True))


def test_a_second_series_has_open_markers_and_a_line_of_its_own(study: Study, drawn: Draw) -> None:
    series = ("one layer", "one layer", "two layers")
    cases = [replace(case, series=name) for case, name in zip(study.cases, series, strict=True)]
    study = replace(study, cases=cases, log_axis=False)
    arms = summarise(study)
    comparisons = judge(study, arms)
    left, right = drawn(sweep.sweep, study, arms, comparisons).axes
    assert left.get_xscale() == "linear"
    for axes in (left, right):
        for container in axes.containers:
            line = container.lines[0]
            second = container.get_label().replace("\n", " ").endswith(", two layers")
            assert list(line.get_xdata()) == ([1024] if second else [64, 256])
            assert (line.get_markerfacecolor() == "white") == second


def test_the_data_of_a_sweep_have_the_intervals_and_the_caption_the_series(study: Study) -> None:
    series = ("one layer", "one layer", "two layers")
    cases = [replace(case, series=name) for case, name in zip(study.cases, series, strict=True)]
    study = replace(study, cases=cases)
    arms = summarise(study)
    comparisons = judge(study, arms)
    drawing = sweep.sweep(study, arms, comparisons)
    assert drawing is not None
    assert "Filled markers: one layer; open: two layers." in drawing.caption
    assert "Verdicts are after Holm's adjustment, these intervals are not." in drawing.caption
    rows = list(csv.DictReader(drawing.files["csv"].decode().splitlines()))
    found = {(row["panel"], row["name"], row["case"]): row for row in rows}
    assert len(found) == 9
    for estimate, key in (
        (arms["conv @ 256"].test, ("metric", "conv", "256")),
        (comparisons[1].interval, ("difference", "ssm \N{MINUS SIGN} conv", "256")),
    ):
        row = found[key]
        numbers = [float(row[name]) for name in ("mean", "low", "high", "n", "at")]
        assert numbers == [estimate.mean, estimate.low, estimate.high, 3, 256]


def test_cases_that_test_the_same_models_share_a_panel(study: Study, drawn: Draw) -> None:
    same = {f"{arm} @ 256": study.searches[f"{arm} @ 64"] for arm in ("conv", "ssm")}
    panels = drawn(sweep.learning_rates, replace(study, searches=study.searches | same)).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["64", "1024"]


def test_cases_without_numbers_stand_side_by_side_at_their_names(study: Study, drawn: Draw) -> None:
    study = replace(study, cases=[replace(case, at=None) for case in study.cases])
    arms = summarise(study)
    left, _ = drawn(sweep.sweep, study, arms, judge(study, arms)).axes
    first, second = (list(container.lines[0].get_xdata()) for container in left.containers)
    middles = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
    assert middles == pytest.approx([0, 1, 2])
    assert all(0 < other - one < 0.5 for one, other in zip(first, second, strict=True))
    assert names_below(left) == {0.0: "64", 1.0: "256", 2.0: "1024"}


def test_the_chosen_rate_is_ringed(study: Study, drawn: Draw) -> None:
    panels = drawn(sweep.learning_rates, study).axes
    assert [axes.get_title(loc="left") for axes in panels] == list(LENGTHS)
    assert panels[0].get_ylabel().replace("\n", " ") == "validation accuracy (%)"
    for axes in panels:
        lines = [line for line in axes.get_lines() if line.get_label() in ("conv", "ssm")]
        rings = [line for line in axes.get_lines() if line not in lines]
        for line, ring in zip(lines, rings, strict=True):
            search = study.searches[f"{line.get_label()} @ {axes.get_title(loc='left')}"]
            means = [sum(point.values) / len(point.values) for point in search.points]
            assert all(len(point.values) == 2 for point in search.points)
            assert line.get_xydata().tolist() == [*map(list, zip(RATES, means, strict=True))]
            assert ring.get_xydata().tolist() == [[0.01, means[1]]]
            assert ring.get_markerfacecolor() == "none"
            assert ring.get_markersize() > line.get_markersize()
        assert (axes.get_xlabel(), axes.get_xscale()) == ("learning rate", "log")


def test_beyond_four_panels_the_caption_says_what_is_left_out(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MOST_PANELS", 2)
    edge = {"ssm @ 256": replace(study.searches["ssm @ 256"], at_edge="high")}
    drawing = sweep.learning_rates(replace(study, searches=study.searches | edge))
    assert drawing is not None
    assert "Still best at an edge of its grid: ssm @ 256 (high)." in drawing.caption
    assert drawing.caption.endswith(" Drawn: the first 2 of 3 cases; the data file has all.")
    assert "mean over seeds 1000 and 1001 (kept for the search, not reported)" in drawing.caption
    assert drawing.files["csv"].decode().count("ssm @ 1024") == 6
