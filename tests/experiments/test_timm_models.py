"""Our backbones by timm's contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2

from experiments import timm_models
from mixers import InputError

FOUR_STAGES = [name for name in timm_models.NAMES if not name.endswith("nano")]


def test_every_hierarchical_skeleton_is_there() -> None:
    assert "ablation_mambaout_tiny" in timm_models.NAMES
    assert set(timm_models.NAMES) <= set(timm.list_models("ablation_*"))
    assert len(timm_models.NAMES) >= 7


@pytest.mark.parametrize("name", FOUR_STAGES)
def test_maps_are_what_feature_info_says(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, mixer="identity", features_only=True, out_indices=(0, 1, 2, 3))
        maps = model(torch.zeros(2, 3, 200, 333))
    assert model.output_fmt == "NCHW"
    assert [tuple(x.shape[2:]) for x in maps] == [(50, 84), (25, 42), (13, 21), (7, 11)]
    assert [x.shape[1] for x in maps] == model.feature_info.channels()
    assert model.feature_info.reduction() == [4, 8, 16, 32]


def test_nano_has_two_maps() -> None:
    model = timm.create_model("ablation_mambaout_nano", features_only=True)
    assert model.feature_info.reduction() == [2, 4]
    assert len(model(torch.randn(1, 3, 16, 16))) == 2


def test_channels_and_strides_are_those_of_timms_mambaout() -> None:
    with torch.device("meta"):
        ours = timm.create_model("ablation_mambaout_femto", features_only=True)
        theirs = timm.create_model("mambaout_femto", features_only=True)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("mixer", ["conv", "ssm", "attention(head_dim=8)", "conv,conv,ssm,attention"])
def test_any_mixer_trains_in_it(mixer: str) -> None:
    model = timm.create_model(
        "ablation_mambaout_pico", mixer=mixer, features_only=True, out_indices=(1, -1), in_chans=1
    )
    maps = model(torch.randn(1, 1, 40, 50))
    assert [tuple(x.shape) for x in maps] == [(1, 64, 5, 7), (1, 192, 2, 2)]
    assert model.feature_info.channels() == [64, 192]
    sum(x.square().mean() for x in maps).backward()
    assert model.model.stem.conv1.weight.grad.abs().sum() > 0


def test_a_classifier_without_features_only() -> None:
    model = timm.create_model("ablation_mambaout_pico", num_classes=7, drop_path_rate=0.1)
    assert model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_without_classes_it_gives_what_the_classifier_reads() -> None:
    with torch.device("meta"):
        x = torch.zeros(2, 3, 64, 64)
        ours, theirs = (
            timm.create_model(f"{name}mambaout_femto", num_classes=0) for name in ("ablation_", "")
        )
        assert ours(x).shape == theirs(x).shape


@pytest.mark.parametrize("features_only", [False, True])
def test_timms_optimizers_leave_the_mixers_parameters_alone(features_only: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model("ablation_mambaout_nano", mixer="ssm", features_only=features_only)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    of_a_log = {decay[id(p)] for name, p in model.named_parameters() if name.endswith("A_log")}
    assert of_a_log == {0.0}
    assert set(decay.values()) == {0.0, 0.05}


@pytest.mark.parametrize("out_indices", [(1,), (0, 2), (3,), None])
def test_it_has_only_what_its_maps_need(out_indices: tuple[int, ...] | None) -> None:
    model = timm.create_model("ablation_mambaout_pico", features_only=True, out_indices=out_indices)
    whole = timm.create_model("ablation_mambaout_pico", features_only=True)
    x = torch.randn(1, 3, 64, 64)
    maps = model(x)
    for stage, found in zip(out_indices or range(4), maps, strict=True):
        torch.testing.assert_close(found, whole(x)[stage])
    sum(each.sum() for each in maps).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("out_indices", [(1,), None])
@pytest.mark.parametrize("mixer", ["conv", "ssm(scan=forward)"])
def test_a_backbone_starts_from_a_classifier(
    tmp_path: Path, mixer: str, out_indices: tuple[int, ...] | None
) -> None:
    path = tmp_path / "classifier.safetensors"
    name = "ablation_mambaout_pico"
    classifier = timm.create_model(name, mixer=mixer, num_classes=7, seed=1)
    save_file(classifier.state_dict(), path)
    options = {"mixer": mixer, "features_only": True, "out_indices": out_indices}
    backbone = timm.create_model(name, checkpoint_path=str(path), **options)
    theirs = classifier.state_dict()
    for key, value in backbone.model.state_dict().items():
        assert key.startswith("stage_norms.") or torch.equal(value, theirs[key])
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    again = timm.create_model(name, checkpoint_path=str(tmp_path / "backbone.pth"), **options)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again.eval()(x), backbone.eval()(x))
    with pytest.raises(
        InputError, match=r"weights of this checkpoint are not of this mambaout-pico: stages\."
    ):
        timm.create_model(name, checkpoint_path=str(path), **{**options, "mixer": "attention(head_dim=8)"})


def test_a_backbone_starts_from_timms_classifier(tmp_path: Path) -> None:
    theirs = timm.create_model("mambaout_femto", num_classes=7)
    path = tmp_path / "timm.safetensors"
    save_file(theirs.state_dict(), path)
    backbone = timm.create_model("ablation_mambaout_femto", checkpoint_path=str(path), features_only=True)
    assert torch.equal(
        backbone.model.stages[3].blocks[2].mixer.weight, theirs.stages[3].blocks[2].conv.weight
    )


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(InputError, match="no weights to download"):
        timm.create_model("ablation_mambaout_pico", pretrained=True)
    with pytest.raises(InputError, match="unknown mixer 'sssm'; did you mean 'ssm'"):
        timm.create_model("ablation_mambaout_pico", mixer="sssm")


def test_nothing_is_registered_unasked() -> None:
    code = (
        "import sys, timm, mixers, experiments.build; "
        "sys.exit(len(timm.list_models('ablation_*')))"  # 0 is what a shell calls success
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
