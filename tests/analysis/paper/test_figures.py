"""The paper's figures: every mark is where its number is, and looks as legend and caption say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import published
from analysis.deciding_intervals import deciding_intervals
from analysis.paper import bubbles, figures, long_sequences, ours
from analysis.paper.tables import margins

Draw = Callable[..., Figure]
Write = Callable[..., Any]

DIAMOND, FILLED, HOLLOW, CROSS = ("D", True), ("o", False), ("o", True), ("x", False)
"""Marker, and whether it is open: published, decided, undecided, without spread."""


@pytest.fixture(autouse=True)
def nothing_checked_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.paper.ours.CHECKED_IN", tmp_path / "none")


@pytest.fixture
def study(write_records: Write) -> ours.OurStudy:
    """Pairs that differ in causality: decided, undecided and without spread."""
    records = write_records(
        {
            "conv": [97.0, 97.5, 97.25, 97.25],
            "causal conv": [94.0, 94.25, 94.5, 94.0],
            "gru": [95.0, 96.0, 95.5, 94.0],
            "causal gru": [96.0, 94.5, 95.5, 95.0],
            "ssm": [90.0, 91.0, 92.0, 93.0],
            "causal ssm": [89.0, 90.0, 91.0, 92.0],
        },
        rising=("ssm",),
    )
    pairs = [{"arm": f"causal {name}", "baseline": name} for name in ("conv", "gru", "ssm")]
    records.edit_plan(comparisons=pairs)
    (found,), _ = ours.find_studies([Path(records.study).parents[1]])
    return found


def look(mark: Line2D) -> tuple[Any, bool]:
    return mark.get_marker(), mark.get_markerfacecolor() == "white"


def row_of(axes: Axes, place: int) -> tuple[list[Line2D], list[list[float]]]:
    """Single marks at a height, and the ends of all lines there, the shortest first."""
    lines = [line for line in axes.get_lines() if set(line.get_ydata()) == {place}]
    spans = [list(line.get_xdata()) for line in lines if len(line.get_xdata()) == 2]
    marks = [line for line in lines if len(line.get_xdata()) == 1]
    return marks, sorted(spans, key=lambda span: span[1] - span[0])


def names_of(axes: Axes) -> list[str]:
    """Of the rows, from the top."""
    bottom, top = axes.get_ylim()
    assert top < 0 < bottom
    assert list(axes.get_yticks()) == list(range(len(axes.get_yticks())))
    return [label.get_text() for label in axes.get_yticklabels()]


def legend_of(figure: Figure) -> dict[str, tuple[Any, bool]]:
    (legend,) = figure.legends
    return {line.get_label(): look(line) for line in legend.get_lines()}


LEGEND = {
    "published: one training, no interval": DIAMOND,
    "ours, decided": FILLED,
    "ours, undecided or no verdict": HOLLOW,
    "ours, the same on all seeds": CROSS,
}


def test_the_price_of_causality_has_its_marks_and_intervals(study: ours.OurStudy, drawn: Draw) -> None:
    figure = drawn(figures.causality, [study])
    left, right = figure.axes
    assert names_of(left)[-3:] == ["conv (ours)", "gru (ours)", "ssm (ours)"]
    first = len(names_of(left)) - 3
    deciding = deciding_intervals(study.study, study.comparisons)
    looks = []
    for place, (c, decides) in enumerate(zip(study.comparisons, deciding, strict=True), start=first):
        (full, causal), ((start, end),) = row_of(left, place)
        means = [study.arms[name].test.mean for name in (c.baseline, c.arm)]
        assert [full.get_xdata()[0], causal.get_xdata()[0]] == [start, end] == means
        assert [look(full), look(causal)] == [FILLED, HOLLOW]
        (mark,), spans = row_of(right, place)
        assert mark.get_xdata()[0] == c.interval.mean
        looks.append(look(mark))
        if looks[-1] != CROSS:
            assert spans == [[each.low, each.high] for each in (c.interval, decides.interval)]
    assert looks == [FILLED, HOLLOW, CROSS]
    assert row_of(right, first + 2)[1] == []
    for axes in (left, right):
        assert [first - 0.5] * 2 in [list(line.get_ydata()) for line in axes.get_lines()], "ours are below"
    vit = published.load("mambaout_fig3_causal_vit")
    means = [
        vit.find(model="ViT-Ti", attention_mode=mode).number("imagenet_top1")
        for mode in ("fully_visible", "causal")
    ]
    assert [mark.get_xdata()[0] for mark in row_of(left, 0)[0]] == means
    (mark,), spans = row_of(right, 0)
    assert (mark.get_xdata()[0], look(mark), spans) == (means[1] - means[0], DIAMOND, [])
    assert legend_of(figure) == LEGEND
    drawn_as = {line.get_label(): look(line) for line in left.get_legend().get_lines()}
    assert drawn_as == {"fully visible": FILLED, "causal": HOLLOW}
    assert right.get_xlabel() == "causal \N{MINUS SIGN} fully visible (points)"


def test_an_ingredient_stands_at_what_it_was_worth(study: ours.OurStudy, drawn: Draw) -> None:
    figure = drawn(figures.ingredients, [study])
    top, bottom = figure.axes
    effects = {f"{each.component} ({each.paper})": each.points for each in published.effects()}
    assert sorted(names_of(top)) == sorted(effects)
    for place, name in enumerate(names_of(top)):
        (mark,), ((start, end),) = row_of(top, place)
        assert (mark.get_xdata()[0], look(mark)) == (effects[name], DIAMOND)
        assert (start, end) == (0, effects[name])
    assert names_of(bottom) == [
        f"causal {name} in place of {name} (demo_study)" for name in ("conv", "gru", "ssm")
    ]
    for place, c in enumerate(study.comparisons):
        (mark,), spans = row_of(bottom, place)
        assert mark.get_xdata()[0] == c.interval.mean
        assert look(mark) == (FILLED, HOLLOW, CROSS)[place]
        assert spans[:1] == ([] if c.interval.without_spread else [[c.interval.low, c.interval.high]])
    assert bottom.get_xscale() == "symlog"
    assert bottom.xaxis.get_transform().linthresh == 1, "as the caption says"
    ticks = {
        tick: label.get_text()
        for tick, label in zip(bottom.get_xticks(), bottom.get_xticklabels(), strict=True)
    }
    assert ticks[-3] == "\N{MINUS SIGN}3"
    assert legend_of(figure) == LEGEND


def test_ingredients_of_another_task_or_metric_are_on_no_axis_of_ours(
    write_records_in: Write, tmp_path: Path, drawn: Draw
) -> None:
    values = {"conv": [97.0, 97.5, 97.2], "ssm": [97.1, 97.9, 97.0], "gru": [97.1, 97.9, 97.4]}
    key = {"name": "key_accuracy", "unit": "%", "difference_unit": "points", "higher_is_better": True}
    found = []
    for name, changes in (("here", {}), ("elsewhere", {"task": "mqar"}), ("by-key", {"metric": key})):
        arms = values if name == "here" else {arm: values[arm] for arm in ("conv", "ssm")}
        records = write_records_in(tmp_path / name, arms, **changes)
        records.edit_plan(study={"name": name})
        for arm, seed in records.ids:
            accuracy = arms[arm][seed]
            records.edit(arm, seed, metrics={"test": {"accuracy": accuracy, "key_accuracy": accuracy}})
        records.study.rename(records.study.with_name(name))
        found.append(Path(records.study).parents[1])
    studies, _ = ours.find_studies(found)
    assert {each.study.name for each in studies} == {"here", "elsewhere", "by-key"}
    _, bottom = drawn(figures.ingredients, studies).axes
    assert names_of(bottom) == [f"{name} in place of conv (here)" for name in ("ssm", "gru")]


def test_a_margin_is_a_bar_of_its_height_below_its_task(drawn: Draw) -> None:
    (axes,) = drawn(figures.claim_margins).axes
    found = margins()
    assert [round(bar.get_x() + bar.get_width() / 2, 9) for bar in axes.patches] == list(range(len(found)))
    assert [bar.get_height() for bar in axes.patches] == [margin.points for margin in found]
    assert [label.get_text() for label in axes.get_xticklabels()] == [margin.size for margin in found]
    low, high = axes.get_ylim()
    assert low < min(margin.points for margin in found) - 0.2
    assert max(margin.points for margin in found) + 0.2 < high
    said = axes.texts[: len(found)]
    for margin, bar, text in zip(found, axes.patches, said, strict=True):
        assert float(text.get_text().replace("\N{MINUS SIGN}", "-")) == pytest.approx(margin.points, abs=0.05)
        assert text.xy[1] == margin.points
        named = min(axes.texts[len(found) :], key=lambda text, bar=bar: abs(text.xy[0] - bar.get_x()))
        assert named.get_text() == margin.task
        assert to_hex(named.get_color()) == to_hex(bar.get_facecolor())


def test_a_stage_stands_at_its_length_over_6_d(drawn: Draw) -> None:
    (axes,) = drawn(figures.sequence_lengths).axes
    zone = axes.patches[0].get_bbox()
    assert (zone.x0, axes.get_xscale()) == (1, "log"), "long begins at 1"
    rows = [name.split(", ") for name in names_of(axes)]
    records = long_sequences.analysis()
    colours: dict[str, set[str]] = {}
    for place, (backbone, task) in enumerate(rows):
        of_row = [each for each in records if (each["backbone"], each["task"]) == (backbone, task)]
        texts = [text for text in axes.texts if text.xy[1] == place]
        numbers = {text.get_text(): text.xy[0] for text in texts}
        assert numbers == {str(each["stage"]): each["ratio"] for each in of_row if each["stage"] is not None}
        dots = [line for line in row_of(axes, place)[0] if line.get_marker() == "o"]
        plain = [each["ratio"] for each in of_row if each["stage"] is None]
        assert [line.get_xdata()[0] for line in dots] == plain
        assert len(numbers) + len(plain) in (1, 4)
        found = {to_hex(line.get_color()) for line in dots}
        found |= {to_hex(text.get_bbox_patch().get_facecolor()) for text in texts}
        colours.setdefault(task, set()).update(found)
        left, right = axes.get_xlim()
        assert all(left < float(str(each["ratio"])) < right for each in of_row)
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(colours) == 3


def test_what_is_carried_and_its_time_are_told_apart(drawn: Draw) -> None:
    rows = [
        {
            "mixer": name,
            "context": context,
            "microseconds_per_token": time,
            "state_bytes": size,
            "machine": "a",
        }
        for name, time, size in (("ssm", 80, 4096), ("causal-attention", 40, 65536), ("identity", 1, 0))
        for context in (64, 128)
    ]
    carried, timed = drawn(figures.memory, rows).axes
    for axes, values in ((carried, (4096, 65536)), (timed, (80, 40))):
        assert [line.get_label() for line in axes.get_lines()] == ["ssm", "causal-attention"]
        for line, value in zip(axes.get_lines(), values, strict=True):
            assert line.get_xydata().tolist() == [[64, value], [128, value]]
    assert [axes.get_ylabel() for axes in (carried, timed)] == [
        "carried to the next token",
        "time of a token (µs)",
    ]
    assert "16 KiB" in [label.get_text() for label in carried.get_yticklabels()]
    assert "50" in [label.get_text() for label in timed.get_yticklabels()]
    assert all((axes.get_xscale(), axes.get_yscale()) == ("log", "log") for axes in (carried, timed))


def test_an_arm_of_ours_stands_at_its_macs_with_its_interval(write_records: Write, drawn: Draw) -> None:
    records = write_records(
        {"conv": [97.0, 98.0, 97.25], "ssm": [96.0, 97.0, 95.5], "tied": [95.0] * 3}, rising=("ssm",)
    )
    (study,), _ = ours.find_studies([Path(records.study).parents[1]])
    left, right = drawn(bubbles.accuracy_against_macs, [study]).axes
    for arm, container in zip(study.arms.values(), right.containers, strict=True):
        mark, _, bars = container.lines
        assert container.get_label() == arm.name
        assert mark.get_xydata().tolist() == [[arm.costs.macs, arm.test.mean]]
        assert (mark.get_markerfacecolor() == "white") == (arm.name == "ssm"), "hollow: under-trained"
        ends = [end for bar in bars for end in bar.get_segments()[0][:, 1]]
        assert ends == pytest.approx([] if arm.name == "tied" else [arm.test.low, arm.test.high])
    crosses = [line.get_xydata().tolist() for line in right.get_lines() if line.get_marker() == "x"]
    assert crosses == [[[study.arms["tied"].costs.macs, 95.0]]]
    assert right.get_ylabel() == "test accuracy (%), ours: demo_study"
    rows = [
        row for row in published.load("mambaout_table1_imagenet").rows if not math.isnan(row.number("macs_G"))
    ]
    places = sorted(tuple(bubble.get_offsets()[0]) for bubble in left.collections)
    assert places == sorted((row.number("macs_G"), row.number("top1")) for row in rows)
    of_mambaout = sorted(
        (row.number("macs_G"), row.number("top1"))
        for row in rows
        if row.text("model").startswith("MambaOut-")
    )
    assert of_mambaout in [[tuple(point) for point in line.get_xydata()] for line in left.get_lines()]
