"""Learning curves and costs: lines, bands and bars, what is on the front, what lies on one another."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.drawing import coinciding, colour_and_marker, cut_note, paper_style
from analysis.panel_figures import costs, curves, pareto_front
from analysis.read_records import load_study
from analysis.records import Study
from analysis.shown_arms import looks_of
from analysis.summary import summarise


def draw(figure: Any, study: Study) -> Any:
    with paper_style():
        drawing = figure(study, list(summarise(study).values()))
    assert drawing is not None
    return drawing


def same_colour(mark: Any, look: dict[str, Any]) -> bool:
    return to_hex(mark.get_color()) == to_hex(look["color"]) and mark.get_marker() == look["marker"]


def test_a_curve_is_the_mean_over_seeds_and_its_band_their_standard_deviation(
    write_records: Any, drawn: Callable[..., Figure]
) -> None:
    records = write_records(
        {"conv": [80.0, 81.0, 80.5], "ssm": [83.0, 84.0, 88.5], "gru": [81.0, 85.0, 84.0]}, rising=("ssm",)
    )
    study = load_study(records.study, records.trials)
    arms = list(summarise(study).values())
    looks = looks_of(study, arms)
    everything, enlarged = drawn(curves, study, arms).axes
    assert [axes.get_title(loc="left") for axes in (everything, enlarged)] == ["all epochs", "last half"]
    for axes, first in ((everything, 1), (enlarged, 11)):
        assert axes.get_xlabel() == "epoch"
        for arm, line, band in zip(arms, axes.get_lines(), axes.collections, strict=True):
            stack = arm.curves[:, first - 1 :]
            mean, sd = stack.mean(0), stack.std(0, ddof=1)
            assert list(line.get_xdata()) == list(range(first, 21))
            np.testing.assert_allclose(line.get_ydata(), mean)
            assert same_colour(line, looks[arm.name])
            assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
            edge = band.get_paths()[0].vertices
            for epoch, low, high in zip(range(first, 21), mean - sd, mean + sd, strict=True):
                at = edge[edge[:, 0] == epoch, 1]
                assert (at.min(), at.max()) == pytest.approx((low, high))
    assert everything.get_ylabel().replace("\n", " ") == "validation accuracy (%)"


def test_the_data_of_a_curve_are_those_of_the_figure(write_records: Any) -> None:
    records = write_records({"conv": [80.0, 81.0, 80.5], "ssm": [83.0, 84.0, 88.5]}, rising=("ssm",))
    study = load_study(records.study, records.trials)
    drawing = draw(curves, study)
    assert "bands: ± one standard deviation. n = 3 seeds." in drawing.caption
    assert "Still improving at the end: ssm." in drawing.caption
    ssm = summarise(study)["ssm"].curves
    rows = list(csv.DictReader(io.StringIO(drawing.files["csv"].decode())))
    last = rows[-1]
    assert [row["epoch"] for row in rows if row["arm"] == "ssm"] == [str(epoch) for epoch in range(1, 21)]
    assert (float(last["mean"]), float(last["sd"])) == pytest.approx(
        (ssm[:, -1].mean(), ssm[:, -1].std(ddof=1))
    )


def test_an_arm_far_below_is_not_in_the_enlarged_panel(
    write_records: Any, drawn: Callable[..., Figure]
) -> None:
    records = write_records(
        {"identity": [40.0, 42.0], "conv": [95.0, 96.0], "ssm": [97.0, 97.5], "gru": [93.0, 94.0]}
    )
    study = load_study(records.study, records.trials)
    everything, enlarged = drawn(curves, study, list(summarise(study).values())).axes
    assert [line.get_label() for line in everything.get_lines()] == ["identity", "conv", "ssm", "gru"]
    assert [line.get_label() for line in enlarged.get_lines()] == ["conv", "ssm", "gru"]
    assert enlarged.get_ylim()[0] > 80


def test_many_lines_have_no_bands(write_records: Any, drawn: Callable[..., Figure]) -> None:
    for count, banded in ((7, True), (8, False)):
        records = write_records({f"arm{number}": [80.0 + number, 81.0 + number] for number in range(count)})
        study = load_study(records.study, records.trials)
        figure = drawn(curves, study, list(summarise(study).values()))
        assert {len(axes.collections) for axes in figure.axes} == {count if banded else 0}


WHAT = {
    "parameters": "params",
    "MACs per example, forward": "macs",
    "carried per sequence": "state_bytes",
    "memory of training": "peak_memory_bytes",
    "examples / s, training": "examples_per_second",
}


def test_an_arm_stands_at_its_price_with_its_interval(
    write_records: Any, drawn: Callable[..., Figure]
) -> None:
    records = write_records(
        {"cheap": [80.0, 81.0, 80.5], "dear": [83.0, 84.0, 88.5], "close": [99.0, 100.0, 92.0]}
    )
    for place, arm in enumerate(("cheap", "dear", "close")):
        for seed in range(3):
            stored = json.loads((records.folder(arm, seed) / "result.json").read_text())["costs"]
            records.edit(
                arm, seed, costs=stored | {"macs": (1e6, 4e7, 3e7)[place], "state_bytes": 512 << place}
            )
    study = load_study(records.study, records.trials)
    arms = list(summarise(study).values())
    looks = looks_of(study, arms)
    panels = [axes for axes in drawn(costs, study, arms).axes if axes.axison]
    assert [axes.get_xlabel() for axes in panels] == list(WHAT)
    assert panels[0].get_ylabel().replace("\n", " ") == "test accuracy (%)"
    for axes in panels:
        price = WHAT[axes.get_xlabel()]
        for arm, container in zip(arms, axes.containers, strict=True):
            mark, _, (bar,) = container.lines
            assert container.get_label() == arm.name
            cost = getattr(arm.costs, price)
            assert mark.get_xydata().tolist() == [[cost, arm.test.mean]]
            assert same_colour(mark, looks[arm.name])
            top = min(arm.test.high, 100)  # as far as a percentage can be
            np.testing.assert_allclose(bar.get_segments()[0], [[cost, arm.test.low], [cost, top]])
        left, right = axes.get_xlim()
        known = [getattr(arm.costs, price) for arm in arms]
        assert left < 0.95 * min(known)
        assert 1.05 * max(known) < right
        front = [line for line in axes.get_lines() if line.get_drawstyle() != "default"]
        # What an arm reaches, it reaches at every higher price too, or at every lower throughput.
        assert [line.get_drawstyle() for line in front] == [
            "steps-pre" if price == "examples_per_second" else "steps-post"
        ]
    assert [axes.get_xscale() for axes in panels] == ["linear", "log", "log", "log", "linear"]
    labels = [label.get_text() for label in panels[2].get_xticklabels()]
    assert {"512 B", "1 KiB", "2 KiB"} & set(labels)


@pytest.mark.parametrize(
    ("price", "direction", "front"),
    [
        ("params", 1, [(100, 90), (300, 95)]),
        ("params", -1, [(100, 85), (200, 80)]),
        ("examples_per_second", 1, [(300, 95)]),
        ("examples_per_second", -1, [(200, 80), (300, 95)]),
    ],
)
def test_of_equal_price_the_better_and_of_throughput_the_higher_is_on_the_front(
    price: str, direction: int, front: list[tuple[int, int]]
) -> None:
    found = [(100, 85), (100, 90), (200, 80), (None, 99), (300, 95), (150, 86)]
    arms: Any = [
        SimpleNamespace(costs=SimpleNamespace(**{price: cost}), test=SimpleNamespace(mean=mean))
        for cost, mean in found
    ]
    assert [*zip(*pareto_front(arms, price, direction), strict=True)] == front


def test_the_data_of_the_costs_have_the_bounds(write_records: Any) -> None:
    records = write_records({"conv": [80.0, 81.0, 80.5], "ssm": [83.0, 84.0, 88.5]})
    study = load_study(records.study, records.trials)
    rows = list(csv.DictReader(io.StringIO(draw(costs, study).files["csv"].decode())))
    for row, arm in zip(rows, summarise(study).values(), strict=True):
        found = [float(row[name]) for name in ("mean", "low", "high", "params")]
        assert found == [arm.test.mean, arm.test.low, arm.test.high, arm.costs.params]


def test_the_first_49_looks_are_distinct() -> None:
    assert len({tuple(colour_and_marker(index).values()) for index in range(49)}) == 49


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
    assert coinciding({"a": [1.0], "b": [1.0 + 1e-12], "c": [1.001]}) == [["a", "b"]]


@pytest.mark.parametrize(
    ("bounds", "unit", "said"),
    [
        ([0.0, 100.0], "%", False),
        ([-0.1, 50.0], "%", True),
        ([50.0, 100.1], "%", True),
        ([float("nan")], "%", False),
        ([-5.0, 500.0], "bits", False),
    ],
)
def test_what_is_cut_is_said(bounds: list[float], unit: str, said: bool) -> None:
    assert bool(cut_note(bounds, unit)) == said


def test_a_bar_ends_where_its_interval_ends() -> None:
    import matplotlib

    with paper_style():
        assert matplotlib.rcParams["lines.solid_capstyle"] == "butt"
