"""MambaOut's measure of a long sequence, against the numbers of the paper."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import run_ablation
from analysis.paper import long_sequences as long

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("backbone", "tau", "imagenet", "coco", "ade20k"),
    [  # arXiv 2405.07992, section 3.3, and the ratios that follow
        ("ViT-Ti", 1152, 0.170, 3.472, 3.556),
        ("ViT-S", 2304, 0.085, 1.736, 1.778),
        ("ViT-B", 4608, 0.043, 0.868, 0.889),
    ],
)
def test_plain_vits_as_in_the_paper(
    backbone: str, tau: float, imagenet: float, coco: float, ade20k: float
) -> None:
    records = {record["task"]: record for record in long.analysis() if record["backbone"] == backbone}
    assert {record["threshold"] for record in records.values()} == {tau}
    found = [records[task]["ratio"] for task in ("ImageNet", "COCO", "ADE20K")]
    assert found == pytest.approx([imagenet, coco, ade20k], abs=5e-4)
    assert records["COCO"]["tokens"] == 4000
    assert records["ADE20K"]["tokens"] == 4096


def test_the_first_stage_is_long_everywhere_and_the_last_nowhere() -> None:
    staged = [record for record in long.analysis() if record["stage"] is not None]
    assert all(record["ratio"] > 1 for record in staged if record["stage"] == 1)
    assert all(record["ratio"] < 1 for record in staged if record["stage"] == 4)
    tiny = [r["ratio"] for r in staged if r["backbone"] == "mambaout_tiny" and r["task"] == "ImageNet"]
    assert tiny == pytest.approx([5.444, 0.681, 0.085, 0.014], abs=5e-4)


@pytest.mark.parametrize("dim", [64, 768])
@pytest.mark.parametrize(("mlp_ratio", "causal"), [(4.0, False), (4.0, True), (2.0, False)])
def test_at_the_threshold_both_parts_are_equal(dim: int, mlp_ratio: float, causal: bool) -> None:
    length = long.threshold(dim, mlp_ratio, causal)
    assert length == int(length)
    linear = long.linear_operations(dim, int(length), mlp_ratio)
    assert linear == long.quadratic_operations(dim, int(length), causal)


def test_patches_at_the_border_are_filled_up() -> None:
    assert long.tokens(224, 224, 16) == 196
    assert long.tokens(225, 224, 16) == 15 * 14


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Rows of the table that `long` prints, each from the number of tokens on."""
    assert run_ablation.main(["long", *arguments]) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
    return [line.split() for line in table]


def test_the_command_prints_the_numbers_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed(capsys, "--backbone", "ViT-S", "mambaout_tiny")
    assert len(rows) == 3 * (1 + 4), "three resolutions for each stage"
    assert rows[1][:10] == [
        "ViT-S",
        "\N{EN DASH}",
        "COCO",
        "800",
        "x",
        "1280",
        "4,000",
        "384",
        "2,304",
        "1.736",
    ]
    assert [row[-1] == "long" for row in rows[:3]] == [False, True, True]
    assert [row[9] for row in rows if row[2] == "ImageNet"][1:] == ["5.444", "0.681", "0.085", "0.014"]


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        ([], "(MambaOut, eq. 6 and 7)"),
        (["--causal"], "(after MambaOut, eq. 6 and 7)"),
        (["--mlp-ratio", "2"], "(after MambaOut, eq. 6 and 7)"),
    ],
)
def test_the_paper_is_cited_for_its_own_formula_only(
    capsys: pytest.CaptureFixture[str], arguments: list[str], source: str
) -> None:
    assert run_ablation.main(["long", "--dims", "64", "--patch", "16", *arguments]) == 0
    assert source in " ".join(capsys.readouterr().out.split())


def test_the_command_takes_any_backbone_and_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed(capsys, "--dims", "32", "80", "--patch", "4", "14", "--size", "64x30", "28")
    assert [row[5] for row in rows] == ["128", "49", "15", "4"], "tokens, the last row and column filled up"
    assert {tuple(row[6:8]) for row in rows} == {("32", "192"), ("80", "480")}
    (causal,) = printed(capsys, "--dims", "64", "--size", "224", "--mlp-ratio", "2", "--causal")
    assert causal[5:9] == ["196", "64", "512", "0.383"], "16 D^2 L + 2 D L^2 are equal at 8 D"
    assert len(printed(capsys)) == len(long.analysis()), "all that is published"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backbone", "vit-x"], "--backbone vit-x is not published here; did you mean 'vit-s'?"),
        (["--dims", "64", "128"], "--patch must have a number for each of the 2 stages of --dims, got none"),
        (["--dims", "64", "--patch", "4", "8"], "for each of the 1 stages of --dims, got 4 8"),
        (["--patch", "4"], "--patch has no effect without --dims"),
        (["--dims", "0"], "--dims must be at least 1, got 0"),
        (["--size", "224x"], "--size must be pixels such as 224 or 512x2048 (height first), got '224x'"),
        (["--mlp-ratio", "-1"], "--mlp-ratio must be finite and not negative, got -1"),
    ],
)
def test_bad_input_is_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run_ablation.main(["long", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_needs_no_torch() -> None:
    code = "import sys, run_ablation; run_ablation.main(['long']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
