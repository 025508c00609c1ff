"""Our backbones by timm's contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
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


@pytest.mark.parametrize("mixer", ["conv", "ssm(scan=forward)"])
def test_a_classifier_starts_from_a_classifier(tmp_path: Path, mixer: str) -> None:
    path, x = tmp_path / "classifier.safetensors", torch.randn(1, 3, 64, 64)
    wanted = timm.create_model("ablation_mambaout_pico", mixer=mixer, num_classes=7, seed=1).eval()
    save_file(wanted.state_dict(), path)
    found = timm.create_model(
        "ablation_mambaout_pico", mixer=mixer, num_classes=7, checkpoint_path=str(path)
    ).eval()
    torch.testing.assert_close(found(x), wanted(x))
    with pytest.raises(InputError, match=r"not of this mambaout-pico: head\.fc\.\w+ is of another shape"):
        timm.create_model("ablation_mambaout_pico", mixer=mixer, checkpoint_path=str(path))


def test_a_classifier_starts_from_timms(tmp_path: Path) -> None:
    path, x = tmp_path / "timm.safetensors", torch.randn(1, 3, 64, 64)
    theirs = timm.create_model("mambaout_femto", num_classes=7).eval()
    save_file(theirs.state_dict(), path)
    ours = timm.create_model("ablation_mambaout_femto", num_classes=7, checkpoint_path=str(path)).eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    maps, timms = (model.forward_intermediates(x, intermediates_only=True) for model in (ours, theirs))
    torch.testing.assert_close(maps, timms, rtol=1e-4, atol=1e-4)
    assert resolve_data_config({}, model=ours) == resolve_data_config({}, model=theirs)


def test_what_timms_training_script_asks_of_a_classifier() -> None:
    model = timm.create_model(
        "ablation_mambaout_nano", mixer="ssm", num_classes=7, global_pool="avg", drop_rate=0.1
    )
    theirs = timm.create_model("mambaout_femto", num_classes=7)
    for name in ("num_classes", "num_features", "head_hidden_size"):
        assert isinstance(getattr(model, name), type(getattr(theirs, name)))
    groups = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.5).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.head.fc.weight)] == 1 > scale[id(model.stages[0].blocks[0].norm.weight)]
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    with pytest.raises(InputError, match="global_pool 'max' is not there"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize("features_only", [False, True])
def test_gradients_are_the_same_with_checkpoints(features_only: bool) -> None:
    model = timm.create_model(
        "ablation_mambaout_nano", features_only=features_only, drop_path_rate=0.3, num_classes=7
    )
    names = list(model.state_dict())
    x = torch.randn(4, 3, 16, 16)

    def gradients() -> tuple[list[torch.Tensor], int]:
        """Of every parameter, and how often the first norm ran."""
        model.zero_grad()
        runs: list[int] = []
        first = next(module for name, module in model.named_modules() if name.endswith("blocks.0.norm"))
        hook = first.register_forward_hook(lambda *_: runs.append(1))
        torch.manual_seed(0)
        found = model(x)
        sum(each.square().sum() for each in (found if features_only else [found])).backward()
        hook.remove()
        return [p.grad.clone() for p in model.parameters()], len(runs)

    kept, once = gradients()
    model.set_grad_checkpointing()
    again, twice = gradients()
    torch.testing.assert_close(again, kept)
    assert (once, twice) == (1, 2)
    assert list(model.state_dict()) == names
    model.set_grad_checkpointing(False)
    assert gradients()[1] == 1


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
