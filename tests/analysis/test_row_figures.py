"""Figures with a row each: every mark is where its number is, and looks as the caption says."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis import row_figures
from analysis.comparison import NO_VERDICT, UNDECIDED
from analysis.deciding_intervals import deciding_intervals
from analysis.read_records import load_study
from analysis.records import Study
from analysis.shown_arms import looks_of
from analysis.summary import ArmSummary, summarise
from analysis.verdict import judge

Draw = Callable[..., Figure]
Bar = tuple[float, float]

ACCURACIES = {
    "conv": [95.0, 96.0, 95.5, 94.5, 95.25],
    "better": [97.0, 97.5, 97.25, 96.75, 97.5],
    "the same": [95.25, 95.75, 95.5, 94.75, 95.0],
    "close": [94.5, 97.0, 96.0, 94.0, 95.0],
    "shifted": [96.0, 97.0, 96.5, 95.5, 96.25],
}


@pytest.fixture
def study(write_records: Any) -> Study:
    records = write_records(ACCURACIES)
    return load_study(records.study, records.trials)


def arms_of(study: Study) -> list[ArmSummary]:
    return list(summarise(study).values())


def bars(axes: Axes) -> dict[float, list[Bar]]:
    """What lies from left to right at each height, the thickest first."""
    found: dict[float, list[tuple[float, Bar]]] = defaultdict(list)
    for collection in axes.collections:
        assert isinstance(collection, LineCollection)
        for (left, low), *_, (right, high) in collection.get_segments():
            if low == high:
                found[round(low, 9)].append((collection.get_linewidth()[0], (left, right)))
    return {height: [bar for _, bar in sorted(each, reverse=True)] for height, each in found.items()}


def strokes(axes: Axes) -> set[tuple[float, float]]:
    """Place and height of every upright stroke, at its middle."""
    segments = [each for lines in axes.collections for each in lines.get_segments() if len(each) == 2]
    return {(x, round((low + high) / 2, 9)) for (x, low), (end, high) in segments if x == end and low != high}


def marks(axes: Axes, marker: str) -> list[tuple[float, float]]:
    lines = [line for line in axes.get_lines() if line.get_marker() == marker]
    return [(float(x), round(float(y), 9)) for line in lines for x, y in line.get_xydata()]


def test_bars_are_the_intervals_and_whiskers_those_that_decide(study: Study, drawn: Draw) -> None:
    comparisons = judge(study, summarise(study))
    (axes,) = drawn(row_figures.differences, study, arms_of(study), comparisons).axes
    by_height, ends = bars(axes), strokes(axes)
    for row, (c, deciding) in enumerate(
        zip(comparisons, deciding_intervals(study, comparisons), strict=True)
    ):
        assert c.family_size == 4
        upper, lower = sorted(height for height in by_height if row < height < row + 0.5)
        for height, alone, decides in (
            (upper, c.interval, deciding.interval),
            (lower, c.inner, deciding.inner),
        ):
            expected = [(each.low, each.high) for each in (alone, decides) if math.isfinite(each.low)]
            assert by_height[height] == expected, c.arm
            assert {(end, height) for bar in expected[1:] for end in bar} <= ends
        assert (c.interval.mean, upper) in marks(axes, "|")
        dots = [place for place, height in marks(axes, "o") if row - 0.5 < height < row]
        assert dots == list(c.differences)
    assert len(by_height) == 2 * len(comparisons)
    thin, thick, hairline = (
        min(line.get_linewidth()[0] for line in axes.collections if line.get_linewidth()[0] > least)
        for least in (0.5, 0.9, 0)
    )
    assert hairline < thin < thick


def test_whiskers_do_not_widen_the_axis(write_records: Any, drawn: Draw) -> None:
    """Those of three seeds and four comparisons are twice as long as the intervals."""
    records = write_records({name: values[:3] for name, values in ACCURACIES.items()})
    study = load_study(records.study, records.trials)
    comparisons = judge(study, summarise(study))
    (axes,) = drawn(row_figures.differences, study, arms_of(study), comparisons).axes
    left, right = axes.get_xlim()
    reached = [end for c in comparisons for end in (c.interval.low, c.interval.high, *c.differences)]
    assert left < min(reached)
    assert max(reached) < right
    whiskers = [each.interval for each in deciding_intervals(study, comparisons)]
    assert min(each.low for each in whiskers) < left


def test_a_comparison_alone_has_no_whiskers(write_records: Any, drawn: Draw) -> None:
    records = write_records({name: ACCURACIES[name] for name in ("conv", "close")})
    study = load_study(records.study, records.trials)
    (axes,) = drawn(row_figures.differences, study, arms_of(study), judge(study, summarise(study))).axes
    assert [len(found) for found in bars(axes).values()] == [1, 1]
    assert not strokes(axes)


@pytest.mark.parametrize("margin", [0.5, None])
def test_the_zone_is_the_margin_about_zero(study: Study, drawn: Draw, margin: float | None) -> None:
    study = replace(study, margin=margin)
    comparisons = judge(study, summarise(study))
    (axes,) = drawn(row_figures.differences, study, arms_of(study), comparisons).axes
    zones = [zone.get_bbox() for zone in axes.patches]
    assert [(zone.x0, zone.x1) for zone in zones] == ([] if margin is None else [(-margin, margin)])
    assert [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "None"] == [[0, 0]]
    assert len(bars(axes)) == len(comparisons) * (1 if margin is None else 2)


def test_a_row_is_named_and_judged_beside_its_bars(study: Study, drawn: Draw) -> None:
    comparisons = judge(study, summarise(study))
    assert {c.word for c in comparisons} > {UNDECIDED, NO_VERDICT}
    (axes,) = drawn(row_figures.differences, study, arms_of(study), comparisons).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{c.arm} \N{MINUS SIGN} conv" for c in comparisons
    ]
    assert list(axes.get_yticks()) == [0, 1, 2, 3]
    bottom, top = axes.get_ylim()
    assert top < 0 < 3 < bottom, "the first row is at the top"
    assert [(text.get_text(), text.xy[1], text.get_fontweight()) for text in axes.texts] == [
        (c.label, row, "normal" if c.word in (UNDECIDED, NO_VERDICT) else "bold")
        for row, c in enumerate(comparisons)
    ]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_axis_says_where_better_is(study: Study, drawn: Draw, higher_is_better: bool) -> None:
    study = replace(study, metric=replace(study.metric, higher_is_better=higher_is_better))
    comparisons = judge(study, summarise(study))
    (axes,) = drawn(row_figures.differences, study, arms_of(study), comparisons).axes
    left, what, right = axes.get_xlabel().split(row_figures.GAP)
    sides = ["\N{LEFTWARDS ARROW} worse", "better \N{RIGHTWARDS ARROW}"]
    others = ["\N{LEFTWARDS ARROW} better", "worse \N{RIGHTWARDS ARROW}"]
    assert [left, right] == (sides if higher_is_better else others)
    assert what == "difference in test accuracy (points)"


def test_a_row_far_out_is_a_number_at_its_side(write_records: Any, drawn: Draw) -> None:
    near = {"conv": [70.0, 71.0, 70.5], "near": [70.5, 71.5, 71.0], "by it": [68.5, 70.0, 69.0]}
    records = write_records({"below": [40.0, 41.0, 42.0], **near, "above": [99.0, 98.0, 97.5]})
    pairs = [{"arm": arm, "baseline": "conv"} for arm in ("below", "near", "by it", "above")]
    records.edit_plan(comparisons=pairs)
    study = load_study(records.study, records.trials)
    comparisons = judge(study, summarise(study))
    (axes,) = drawn(row_figures.differences, study, arms_of(study), comparisons).axes
    said = [(text.xy, text.get_horizontalalignment(), text.get_text()) for text in axes.texts[:2]]
    assert [(xy, side) for xy, side, _ in said] == [((0.01, 0), "left"), ((0.99, 3), "right")]
    assert said[0][2].startswith("\N{BLACK LEFT-POINTING TRIANGLE} \N{MINUS SIGN}29.50 [")
    assert said[1][2].startswith("+27.67 [")
    assert said[1][2].endswith("] \N{BLACK RIGHT-POINTING TRIANGLE}")
    assert {math.floor(height) for height in bars(axes)} == {1, 2}
    wide = replace(study, margin=10.0)  # beside whose zone nothing would be squeezed
    (axes,) = drawn(row_figures.differences, wide, arms_of(study), comparisons).axes
    assert {math.floor(height) for height in bars(axes)} == {0, 1, 2, 3}

    arms = [arm for arm in arms_of(study) if arm.name != "above"]
    (axes,) = drawn(row_figures.seeds, study, arms).axes
    (text,) = axes.texts
    assert (text.xy, text.get_text()) == ((0.01, 0), "\N{BLACK LEFT-POINTING TRIANGLE} 41.00")
    assert {math.floor(height) for height in bars(axes)} == {1, 2, 3}


def test_a_seed_has_its_dot_its_height_and_its_line(study: Study, drawn: Draw) -> None:
    arms = arms_of(study)
    (axes,) = drawn(row_figures.seeds, study, arms).axes
    dots = [line for line in axes.get_lines() if line.get_marker() != "|"]
    looks = looks_of(study, arms)
    for row, (arm, line) in enumerate(zip(arms, dots, strict=True)):
        assert list(line.get_xdata()) == ACCURACIES[arm.name]
        assert all(row - 0.5 < height < row + 0.3 for height in line.get_ydata())
        assert (to_hex(line.get_color()), line.get_marker()) == (
            looks[arm.name]["color"].lower(),
            looks[arm.name]["marker"],
        )
    joined = [each for lines in axes.collections for each in lines.get_segments() if len(each) == len(arms)]
    assert [[tuple(point) for point in each] for each in joined] == [
        [(line.get_xdata()[seed], line.get_ydata()[seed]) for line in dots] for seed in range(5)
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ACCURACIES)
    assert axes.get_xlabel() == "test accuracy (%)"
    below = bars(axes)
    for row, (arm, (height, found)) in enumerate(zip(arms, sorted(below.items()), strict=True)):
        assert max(dots[row].get_ydata()) < height < row + 0.5
        assert found == [(arm.test.low, arm.test.high)]
        assert (arm.test.mean, height) in marks(axes, "|")


def test_an_interval_of_percentages_is_cut_and_one_of_differences_is_not(
    write_records: Any, drawn: Draw
) -> None:
    records = write_records({"conv": [90.0, 50.0, 10.0], "ssm": [99.0, 40.0, 98.0]})
    study = load_study(records.study, records.trials)
    arms, (comparison,) = arms_of(study), judge(study, summarise(study))
    (axes,) = drawn(row_figures.seeds, study, arms).axes
    assert [found for (found,) in bars(axes).values()] == [(0, 100), (0, 100)]
    left, right = axes.get_xlim()
    assert -5 < left < 0
    assert 100 < right < 105
    (axes,) = drawn(row_figures.differences, study, arms, [comparison]).axes
    interval, _ = (found for (found,) in bars(axes).values())
    assert interval == (comparison.interval.low, comparison.interval.high)
    assert interval[0] < -20
    assert interval[1] > 100
