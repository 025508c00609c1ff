"""The bench: its counting of memory and limits, what it skips, and the command."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import run_ablation
from experiments import bench

MACHINE = bench.Machine("cpu", "test", 1, "float32", torch.__version__, 1e10, 1e10)


def test_live_bytes_counts_what_is_alive_at_the_same_time() -> None:
    x = torch.zeros(1000)  # float32
    with bench.LiveBytes() as live:
        y = x + 1  # 4000 bytes
        z = y * 2  # 8000
        del y
        z = z + 1  # 8000 again, then 4000
        z[:10].add_(1)  # a view, in place: nothing new
    assert live.peak == 8000
    assert z.sum() > 0


def test_live_bytes_counts_what_the_backward_pass_must_keep() -> None:
    x = torch.ones(1000, requires_grad=True)
    with bench.LiveBytes() as live:
        torch.autograd.grad(x.exp().exp().sum(), x)
    assert live.peak >= 2 * 4000  # both results are needed for the gradient


def test_the_memory_of_a_gpu_is_what_a_pass_takes_and_not_what_a_library_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allocator = {"now": 1000, "peak": 0}

    def call() -> None:
        allocator["now"] = 1000 + 2**25  # the work space that the first call takes stays
        allocator["peak"] = max(allocator["peak"], allocator["now"] + 600)

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocator["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocator["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: allocator.update(peak=0))
    x: Any = SimpleNamespace(device=torch.device("cuda"), nbytes=100)
    assert bench._peak_bytes(call, torch.nn.Linear(3, 1), x) == 100 + 4 * 4 + 600


def test_points_have_times_limits_and_memory() -> None:
    points = list(bench.bench(["conv(kernel_size=3)"], [8], {64: 2, 16: 2}, 0.01, MACHINE))
    assert [(p.length, p.what) for p in points] == [
        (length, what) for length in (16, 64) for what in (bench.FORWARD, bench.BOTH)
    ]
    for point in points:
        assert point.skipped is None
        assert point.p20_ms <= point.median_ms <= point.p80_ms
        assert point.peak_bytes >= 2 * point.length * 8 * 4 * 2  # input and output
    forward, both = points[2:]
    assert forward.macs == 2 * 64 * 8 * 3
    assert both.macs == 3 * forward.macs
    moved = (2 * 2 * 64 * 8 + 8 * 3 + 8) * 4
    assert forward.limit_ms == pytest.approx(1e3 * max(moved, forward.macs) / 1e10)


def test_what_would_take_too_long_is_skipped_and_said() -> None:
    before = bench.Point("ssm", bench.FORWARD, 8, 16, 1, "cpu", 1000, 1.0, median_ms=100.0)
    after = bench.Point("ssm", bench.FORWARD, 8, 64, 1, "cpu", 4000, 1.0)
    assert bench._too_slow(after, before, seconds=1.0) is None
    skipped = bench._too_slow(after, before, seconds=0.01)
    assert skipped is not None
    assert skipped.skipped == "skipped: a pass would take about 0.4 s"
    assert skipped.median_ms is None


def test_as_many_tokens_without_macs_are_expected_to_take_equally_long() -> None:
    before = bench.Point("pooling", bench.FORWARD, 8, 16, 64, "torch", 0, 1.0, median_ms=50.0)
    after = bench.Point("pooling", bench.FORWARD, 8, 1024, 1, "torch", 0, 1.0)
    assert bench._too_slow(after, before, seconds=0.01) is None
    assert bench._too_slow(replace(after, batch=2), before, seconds=0.01) is not None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("no"), "out of memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), "out of memory"),
        (
            RuntimeError("CUDA error: an illegal memory access\nwas"),
            "failed: RuntimeError: CUDA error: an illegal",
        ),
    ],
)
def test_an_error_is_one_point_and_told_from_memory(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*arguments: object) -> None:
        raise error

    measured = bench._pass
    monkeypatch.setattr(
        bench, "_pass", lambda mixer, x, what: measured(mixer, x, what) if what == bench.FORWARD else broken()
    )
    forward, both = bench.bench(["conv"], [8], {16: 1}, 0.01, MACHINE)
    assert forward.skipped is None
    assert both.skipped.startswith(said)
    options = "--mixer conv --length 8 --dim 8 --seconds 0.01"
    code = run_ablation.main(["bench", *options.split(), "--runs", str(tmp_path)])
    failed = said.startswith(bench.FAILED)
    assert code == int(failed)
    assert f"| forward + backward | {said}" in (tmp_path / "bench" / "bench.md").read_text()
    which = (
        "failed: 1 of 2 points, and bench.md says why: conv at 8 channels and 8 tokens (forward + backward)"
    )
    assert (capsys.readouterr().out.splitlines()[-1] == which) == failed


def test_what_was_measured_before_an_interruption_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = bench.bench(["conv"], [8], {16: 1}, 0.01, MACHINE)

    def interrupted(*arguments: object) -> Iterator[bench.Point]:
        yield next(points)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "bench", interrupted)
    assert run_ablation.main(["bench", "--mixer", "conv", "--runs", str(tmp_path)]) == 130
    assert "kept until the same command measures all of it anew" in capsys.readouterr().err
    assert "| conv | 8 | 16 | 1 | forward |" in (tmp_path / "bench" / "bench.md").read_text()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--mixer conv causal-attention(head_dim=4) --length 8 32 --dim 8 --seconds 0.01"
    assert run_ablation.main(["bench", *options.split(), "--runs", str(tmp_path)]) == 0
    assert "forward + backward" in capsys.readouterr().out
    with open(tmp_path / "bench" / "bench.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["device"] for row in rows} == {"cpu"}
    assert all(float(row["bytes_per_second"]) > 1e8 for row in rows)
    assert (tmp_path / "bench" / "bench_8.png").stat().st_size > 0
    assert "| conv | 8 | 32 | 1 | forward |" in (tmp_path / "bench" / "bench.md").read_text()


def test_what_is_named_twice_is_measured_once(tmp_path: Path) -> None:
    """A line through the same lengths twice would go back and forth."""
    options = "--mixer identity identity --length 8 8 --dim 8 8 --seconds 0.001"
    assert run_ablation.main(["bench", *options.split(), "--runs", str(tmp_path)]) == 0
    with open(tmp_path / "bench" / "bench.csv", newline="") as file:
        assert [row["what"] for row in csv.DictReader(file)] == [bench.FORWARD, bench.BOTH]


@pytest.mark.parametrize(
    ("options", "batches"), [("--tokens 32", {8: 4, 16: 2, 32: 1}), ("--batch 3", {8: 3, 16: 3, 32: 3})]
)
def test_tokens_are_equal_at_each_length_or_the_batch_is(
    options: str, batches: dict[int, int], tmp_path: Path
) -> None:
    fixed = "--mixer identity --length 8 16 32 --dim 8 --seconds 0.001"
    assert run_ablation.main(["bench", *fixed.split(), *options.split(), "--runs", str(tmp_path)]) == 0
    with open(tmp_path / "bench" / "bench.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["length"]): int(row["batch"]) for row in rows} == batches
    # the input, and in the backward pass its gradient: x itself is the output
    assert {int(row["peak_bytes"]) for row in rows} <= {
        count * length * 8 * 4 * kept for length, count in batches.items() for kept in (1, 2)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mixer convv", "unknown mixer 'convv'; did you mean 'conv'?"),
        ("--length 0", "--length must be at least 1"),
        ("--dim 0", "--dim must be at least 1"),
        ("--batch 0", "--batch must be at least 1"),
        ("--tokens 0", "--tokens must be at least 1"),
        ("--tokens 1024 --batch 1", "--tokens sets the batch of each length: give it or --batch, not both"),
        (
            "--tokens 1024 --length 8 100 1024 2048",
            "--tokens 1,024 cannot be cut into sequences of --length 100 or 2,048",
        ),
        ("--seconds -1", "--seconds must be positive"),
        ("--seconds nan", "--seconds must be positive"),
        ("--mixer ssm(scan=cross) --dim 8", "ssm(scan=cross) at 8 channels: scan=cross is for images"),
        ("--device cuda", "no CUDA GPU"),
        ("--dtype float16", "float16"),
    ],
)
def test_bad_input_is_one_sentence(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert run_ablation.main(["bench", *options.split(), "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") <= 2
