"""MambaOut's measure of a long sequence, against the numbers of the paper."""

from __future__ import annotations

import pytest

from analysis.paper import long_sequences as long


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
