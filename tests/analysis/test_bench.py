"""Crossovers, the table and the figure of a bench, on made-up points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis import bench
from analysis.bench import BOTH

MACHINE = {
    "device": "cpu",
    "hardware": "a CPU",
    "threads": 1,
    "dtype": "float32",
    "torch": "2",
    "bytes_per_second": 1e10,
    "macs_per_second": 1e10,
}


def point(mixer: str, length: int, milliseconds: float | None, batch: int = 1) -> dict[str, Any]:
    skipped = None if milliseconds else "skipped: a pass would take about 9.0 s"
    fixed = {"what": BOTH, "dim": 8, "batch": batch, "backend": "torch", "macs": 100, "limit_ms": 0.1}
    times = dict.fromkeys(("median_ms", "p20_ms", "p80_ms"), milliseconds)
    held = 64 * length if milliseconds else None
    return {"mixer": mixer, "length": length, "peak_bytes": held, "skipped": skipped, **fixed, **times}


POINTS = [
    *(point("scan", length, length / 100) for length in (256, 1024, 4096)),  # linear
    *(point("attention", length, length**2 / 100_000) for length in (256, 1024, 4096)),  # quadratic
]


def test_a_quadratic_line_crosses_a_linear_one_where_it_must() -> None:
    assert bench.crossovers(POINTS) == [
        "At 8 channels attention becomes slower than scan at a length of about 1,000 tokens."
    ]


def lines(**milliseconds: list[float | None]) -> list[dict[str, Any]]:
    """A line for each mixer through times at 256, 1,024, ... tokens."""
    return [
        point(mixer, 256 * 4**index, each)
        for mixer, times in milliseconds.items()
        for index, each in enumerate(times)
    ]


def test_a_slower_one_names_all_that_it_overtakes_in_order_of_length() -> None:
    points = lines(scan=[4.0, 4.0, 4.0], attention=[1.0, 16.0, 256.0], conv=[2.0, 2.0, 2.0], gru=[9, 9, 2.5])
    assert bench.crossovers(points) == [
        "At 8 channels scan becomes slower than gru at a length of about 2,500 tokens.",
        "At 8 channels attention becomes slower than conv at a length of about 360 tokens, scan at 510 "
        "and gru at 770.",
    ]


@pytest.mark.parametrize(
    ("spread", "told"),
    [
        ([1.0, 1.0, 1.0], True),
        ([1.0, 3.0, 1.0], True),  # they cross at a length where they are alike: before and after they are not
        ([3.0, 1.0, 1.0], True),  # between 1,024 and 4,096 they cross for certain, too
        ([3.0, 3.0, 1.0], False),
        ([1.0, 3.0, 3.0], False),
    ],
)
def test_a_crossing_within_the_spread_of_the_times_is_not_told(spread: list[float], told: bool) -> None:
    points = lines(scan=[4.0, 4.0, 4.0], attention=[2.0, 3.9, 8.0])
    for each, width in zip(points, spread * 2, strict=True):
        each |= {"p20_ms": each["median_ms"] / width, "p80_ms": each["median_ms"] * width}
    sentence = "At 8 channels attention becomes slower than scan at a length of about 1,100 tokens."
    assert bench.crossovers(points) == [sentence] * told


@pytest.mark.parametrize("attention", [[1.0, None, 16.0], [None, None, 16.0], [1.0, 2.0, None]])
@pytest.mark.parametrize("scan", [[4.0, 4.0, 4.0], [4.0, None, 4.0]])
def test_a_crossing_at_a_length_that_was_not_measured_is_not_told(
    attention: list[float | None], scan: list[float | None]
) -> None:
    assert bench.crossovers(lines(scan=scan, attention=attention)) == []


@pytest.mark.parametrize(
    ("ratios", "apart", "crossing"),
    [
        ([-1.0, 1.0, -1.0, 1.0], [True, True, True, True], 4 * 2**0.5),
        ([-1.0, 0.5, -1.0, 1.0], [True, False, False, True], 4 * 2**0.5),
        ([-1.0, 1.0, -0.5, 1.0], [True, True, False, True], 2**0.5),  # what it does in between is chance
    ],
)
def test_the_last_crossing_counts(ratios: list[float], apart: list[bool], crossing: float) -> None:
    assert bench._crossing([1, 2, 4, 8], ratios, apart) == (pytest.approx(crossing), True)


def test_each_width_has_crossings_of_its_own() -> None:
    faster = [point("attention", length, length**2 / 200_000) for length in (256, 1024, 4096)]
    wide = [each | {"dim": 1024} for each in (*POINTS[:3], *faster)]
    assert bench.crossovers([*POINTS, *wide]) == [
        f"At {dim} channels attention becomes slower than scan at a length of about {length} tokens."
        for dim, length in (("8", "1,000"), ("1,024", "2,000"))
    ]


def test_of_many_crossings_the_caption_of_the_figure_says_where_they_are(tmp_path: Path) -> None:
    scans: dict[str, list[float | None]] = {f"scan{index}": [4.0 + index] * 3 for index in range(6)}
    listed = "gru becomes slower than scan0 at a length of about 510 tokens"
    for count, told in ((6, True), (7, False)):
        more: dict[str, list[float | None]] = {"scan6": [99.0] * 3} if count == 7 else {}
        bench.write(tmp_path, lines(**scans, **more, gru=[1.0, 16.0, 256.0]), MACHINE)
        assert (listed in (tmp_path / "bench_8.md").read_text()) == told
        assert ("are in bench.md" in (tmp_path / "bench_8.md").read_text()) != told
        section = (tmp_path / "bench.md").read_text().split("## Where one becomes slower than another")[1]
        assert f"- At 8 channels {listed}" in section
        assert bench.RULE in section


@pytest.mark.parametrize(("batches", "said"), [([3, 3], "batch 3"), ([4, 1], "1,024 tokens at each length")])
def test_table_and_figure_say_what_a_pass_is_over(batches: list[int], said: str, tmp_path: Path) -> None:
    short, long = batches
    points = [point("scan", 256, 5.0, short), point("scan", 1024, None, long)]
    bench.write(tmp_path, points, MACHINE)
    assert f"A pass is over the whole batch ({said})" in (tmp_path / "bench.md").read_text()
    assert f"at 8 channels, {said}: median" in (tmp_path / "bench_8.md").read_text()
    assert (tmp_path / "bench_8.svg").read_text().count(f">{said}<") == 2  # below both panels


def test_names_are_beside_their_lines() -> None:
    axes = Figure().add_subplot()
    for name, values in {"high": [0, 9], "low": [5, 1], "short": [4]}.items():
        axes.plot(values, label=name)
    bench._name_lines(axes, 2.0)
    heights = {text.get_text(): text.xy[1] for text in axes.texts if isinstance(text, Annotation)}
    low, high = axes.get_ylim()
    wanted = {"low": 1, "short": 4, "high": 9}
    assert heights == pytest.approx({name: (end - low) / (high - low) for name, end in wanted.items()})


def test_no_leader_crosses_the_axes_from_a_line_that_stops() -> None:
    axes = Figure().subplots()
    axes.plot([1, 2, 3], [1, 2, 3], label="whole")
    axes.plot([1, 2], [2, 1], label="stopped")
    bench._name_lines(axes, 2.0)
    starts = [line.get_xdata()[0] for line in axes.get_lines()[2:]]
    assert sorted(start > 1 for start in starts) == [False, True]  # in axes' units: 1 is the right edge


def test_names_beside_lines_do_not_overlap_and_stay_within_the_axes() -> None:
    heights = [0.1, 0.2, 0.1, 0.1]
    assert bench._moved_apart([0.1, 0.4, 0.6, 0.9], heights) == pytest.approx([0.1, 0.4, 0.6, 0.9])
    assert bench._moved_apart([0.5, 0.5, 0.5, 0.9], heights) == pytest.approx([0.35, 0.5, 0.65, 0.9])
    assert bench._moved_apart([0.0, 0.0, 0.5, 0.5], heights) == pytest.approx([0.05, 0.2, 0.45, 0.55])
    assert bench._moved_apart([0.8, 1.0, 1.0, 1.0], heights) == pytest.approx([0.55, 0.7, 0.85, 0.95])


def test_parallel_lines_do_not_cross() -> None:
    points = [*POINTS[:3], *(point("slower", length, length / 50) for length in (256, 1024, 4096))]
    assert bench.crossovers(points) == []


def test_forward_passes_and_skipped_points_do_not_count() -> None:
    skipped = [point("attention", 1024, None), *(dict(p, what="forward") for p in POINTS[3:])]
    assert bench.crossovers([*POINTS[:3], *skipped]) == []


def test_the_table_says_what_was_skipped() -> None:
    table = bench.bench_table([*POINTS, point("attention", 16384, None)], MACHINE)
    assert table.rows[-1]["median"].text == "skipped: a pass would take about 9.0 s"
    assert table.rows[0]["limit"].text == "25.6"


def test_an_interval_keeps_its_zeros() -> None:
    close = point("scan", 64, 1.12) | {"p20_ms": 1.1, "p80_ms": 1.16}
    far = point("scan", 64, 1234.5) | {"p20_ms": 0.01234, "p80_ms": 2000.0}
    rows = bench.bench_table([close, far], MACHINE).rows
    assert [row["median"].line for row in rows] == ["1.12 (1.10, 1.16)", "1,234 (0.0123, 2,000)"]


def test_latex_has_every_row_with_its_length_and_pass(tmp_path: Path) -> None:
    same = [point("scan", length, 5.0) | {"what": what} for length in (64, 128) for what in ("forward", BOTH)]
    bench.write(tmp_path, same, MACHINE)
    text = (tmp_path / "bench.tex").read_text()
    rows = [line.split(" & ")[2:5:2] for line in text.splitlines() if line.startswith("scan &")]
    assert rows == [["64", "forward"], ["64", BOTH], ["128", "forward"], ["128", BOTH]]


def test_everything_is_written(tmp_path: Path) -> None:
    written = bench.write(tmp_path, POINTS, MACHINE)
    assert {path.name for path in written} == {"bench.md", "bench_8.png", "bench_8.md"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "bench.csv", "bench.md", "bench.tex", "bench_8.png", "bench_8.svg", "bench_8.pdf", "bench_8.csv",
        "bench_8.md",
    }  # fmt: skip
    assert "Wide line: reading and writing the tokens once" in (tmp_path / "bench_8.md").read_text()
    assert "as identity does" in (tmp_path / "bench_8.md").read_text()


@pytest.mark.parametrize("points", [[], [point("attention", 16, None)]])
def test_without_any_time_there_is_no_figure(points: list[dict[str, Any]], tmp_path: Path) -> None:
    bench.write(tmp_path, points, MACHINE)
    assert not list(tmp_path.glob("*.png"))
