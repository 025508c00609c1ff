"""The published tables: read whole, checked, and the differences drawn from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis import published
from analysis.published import PublishedError
from experiments import commands
from experiments.request import EvaluateRequest


@pytest.mark.parametrize("name", published.names())
def test_every_table_is_read_with_its_source(name: str) -> None:
    table = published.load(name)
    lines = (published.FOLDER / f"{name}.csv").read_text().splitlines()
    assert len(table.rows) == len(lines) - 1
    assert table.source[0].isupper(), "a caption begins with it"
    assert table.convention[0].isupper()
    assert [row.line for row in table.rows] == list(range(2, len(lines) + 1))


def test_every_file_has_an_entry_and_every_entry_a_file() -> None:
    assert {path.stem for path in published.FOLDER.glob("*.csv")} == set(published.names())


def test_known_values() -> None:
    imagenet = published.load("mambaout_table1_imagenet")
    row = imagenet.find(model="MambaOut-Tiny")
    assert (row.number("params_M"), row.number("macs_G"), row.number("top1")) == (27, 4.5, 82.7)
    line = (published.FOLDER / "mambaout_table1_imagenet.csv").read_text().splitlines()[row.line - 1]
    assert line.startswith("tiny,MambaOut-Tiny,")
    assert imagenet.find(model="Mamba-2D-S").cells["macs_G"] is None
    assert imagenet.find(model="Mamba-2D-S").text("macs_G") == ""


def test_a_number_is_shown_as_its_source_writes_it() -> None:
    row = published.load("mambaout_table2_coco").find(backbone="MambaOut-Tiny")
    assert (row.number("APm"), row.text("APm")) == (41, "41.0")


def test_two_numbers_of_one_paper_are_both_there() -> None:
    """MambaVision's table and its prose."""
    row = published.load("discrepancies").find(paper="MambaVision, Table 5", quantity="ImageNet top-1 (%)")
    quoted = published.load("mambavision_ablation_mixer").find(variant=row.text("model"))
    assert row.number("quoted") == quoted.number("imagenet_top1") == 80.5
    assert row.number("elsewhere") == 80.9


@pytest.mark.parametrize(
    ("component", "points"),
    [  # as the papers or their readers state them
        ("no mixer in place of pooling", -2.9),
        ("depthwise conv in place of no mixer", +3.8),
        ("causal in place of full attention, ViT-Ti", -1.6),
        ("causal in place of full attention, ViT-S", -0.9),
        ("causal in place of full attention, DeiT-B", -1.7),
        ("one scan in place of four, with depthwise conv", -0.34),
        ("one scan in place of four, without depthwise conv", -1.37),
        ("four scans without depthwise conv", -0.35),
        ("1 state in place of 16", -0.44),
        ("without gate, parameters not matched", -0.07),
        ("Mamba's whole block design on linear attention", +1.8),
        ("Mamba's block design in the attention sub-block only, linear attention", +3.3),
        ("regular in place of causal conv before the SSM (0.0 by the paper's prose)", +0.4),
        ("overlapping in place of patch downsampling, stage 2 of 2 layers in place of 4", +0.7),
        ("middle class token in place of mean pooling", +2.2),
    ],
)
def test_effects_are_what_the_papers_say(component: str, points: float) -> None:
    (effect,) = [effect for effect in published.effects() if effect.component == component]
    assert effect.points == pytest.approx(points, abs=0.005)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "published: top-1 82.7 %"),
        ({"mixer": "conv(kernel_size=7)"}, "published: top-1 82.7 %"),
        ({"mixer": "conv(kernel_size=3)"}, "nothing is published"),
        ({"mixer": "conv*2,ssm"}, "nothing is published"),
        ({"skeleton": "mambaout-tiny(expansion_ratio=3)"}, "nothing is published"),
        ({"options": {"skeleton": {"expansion_ratio": "3"}}}, "nothing is published"),
        ({"skeleton": "isotropic-nano"}, "nothing is published"),
    ],
)
def test_a_number_is_cited_for_the_published_model_only(asked: dict[str, Any], said: str) -> None:
    assert commands._published_top1(EvaluateRequest(**asked), 1000).startswith(said)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(published.FOLDER, tmp_path / "published"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("ViT-Ti,causal,70.6", "ViT-Ti,causal,seventy", ":3: imagenet_top1 is 'seventy', not a number"),
        ("ViT-Ti,causal,70.6", "ViT-Ti,causal,706", ":3: imagenet_top1 is 706, outside of 0 to 100"),
        ("ViT-Ti,causal,70.6", "ViT-Ti,causal", ":3: 2 cells under 3 columns"),
        ("ViT-S,causal", "ViT-Ti,causal", ":5: has the same model, attention_mode as line 3"),
        ("model,attention_mode", "model,mode", "sources.toml names columns it lacks: attention_mode"),
    ],
)
def test_damage_is_named_with_its_line(damaged: Path, before: str, after: str, message: str) -> None:
    path = damaged / "mambaout_fig3_causal_vit.csv"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(PublishedError, match="mambaout_fig3_causal_vit") as caught:
        published.load("mambaout_fig3_causal_vit", damaged)
    assert message in str(caught.value)


def test_unknown_tables_and_rows() -> None:
    with pytest.raises(PublishedError, match="not among the published tables"):
        published.load("mambaout_table_9")
    with pytest.raises(PublishedError, match="0 rows"):
        published.load("mambaout_table1_imagenet").find(model="MambaOut-Huge")
    with pytest.raises(PublishedError, match="not a number"):
        published.load("mambaout_table1_imagenet").rows[0].number("model")


def test_a_table_without_its_file(damaged: Path) -> None:
    (damaged / "stm_evaluation.csv").unlink()
    with pytest.raises(PublishedError, match=r"stm_evaluation.csv: cannot be read"):
        published.load("stm_evaluation", damaged)
