"""Crossovers, the table and the figure of a bench, on made-up points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def point(mixer: str, length: int, milliseconds: float | None) -> dict[str, Any]:
    skipped = None if milliseconds else "a pass would take about 9.0 s"
    fixed = {"what": BOTH, "dim": 8, "batch": 1, "backend": "torch", "macs": 100, "limit_ms": 0.1}
    times = dict.fromkeys(("median_ms", "p20_ms", "p80_ms"), milliseconds)
    held = 64 * length if milliseconds else None
    return {"mixer": mixer, "length": length, "peak_bytes": held, "skipped": skipped, **fixed, **times}


POINTS = [
    *(point("scan", length, length / 100) for length in (256, 1024, 4096)),  # linear
    *(point("attention", length, length**2 / 100_000) for length in (256, 1024, 4096)),  # quadratic
]


def test_a_quadratic_line_crosses_a_linear_one_where_it_must() -> None:
    assert bench.crossovers(POINTS) == [
        "At 8 channels attention becomes slower than scan at about 1,000 tokens."
    ]


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
    assert any("1,000 tokens" in sentence for sentence in table.caption)


def test_an_interval_keeps_its_zeros() -> None:
    close = point("scan", 64, 1.12) | {"p20_ms": 1.1, "p80_ms": 1.16}
    far = point("scan", 64, 1234.5) | {"p20_ms": 0.01234, "p80_ms": 2000.0}
    rows = bench.bench_table([close, far], MACHINE).rows
    assert [row["median"].line for row in rows] == ["1.12 (1.10, 1.16)", "1,234 (0.0123, 2,000)"]


def test_latex_has_every_row_with_its_length_and_pass(tmp_path: Path) -> None:
    same = [point("scan", length, 5.0) | {"what": what} for length in (64, 128) for what in ("forward", BOTH)]
    bench.write(tmp_path, same, MACHINE)
    text = (tmp_path / "bench.tex").read_text()
    rows = [line.split(" & ")[2:4] for line in text.splitlines() if line.startswith("scan &")]
    assert rows == [["64", "forward"], ["64", BOTH], ["128", "forward"], ["128", BOTH]]


def test_everything_is_written(tmp_path: Path) -> None:
    written = bench.write(tmp_path, POINTS, MACHINE)
    assert {path.name for path in written} == {"bench.md", "bench_8.png", "bench_8.md"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "bench.csv", "bench.md", "bench.tex", "bench_8.png", "bench_8.svg", "bench_8.pdf", "bench_8.csv",
        "bench_8.md",
    }  # fmt: skip
    assert "Wide line: reading and writing the tokens once" in (tmp_path / "bench_8.md").read_text()


@pytest.mark.parametrize("points", [[], [point("attention", 16, None)]])
def test_without_any_time_there_is_no_figure(points: list[dict[str, Any]], tmp_path: Path) -> None:
    bench.write(tmp_path, points, MACHINE)
    assert not list(tmp_path.glob("*.png"))
