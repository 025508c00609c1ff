"""Weights from files: read without running anything, hashed into the trial, and the same model as timm's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_model_data_config

import run_ablation
from experiments import build, command_line, commands, pretrained
from experiments.build import build_model
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS
from experiments.store import Store
from experiments.tasks import TASKS
from experiments.train import run_trial
from experiments.trial import Recipe, Trial
from mixers import MIXERS, InputError


@pytest.fixture(scope="module")
def femto() -> torch.nn.Module:
    torch.manual_seed(3)
    return timm.create_model("mambaout_femto", num_classes=3).eval()


@pytest.fixture(scope="module")
def femto_file(femto: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "femto.safetensors"
    safetensors.torch.save_file(femto.state_dict(), path)
    return path


def trial(
    weights: Path | str,
    classes: int = 3,
    mixer: str = "conv",
    skeleton: str = "mambaout-femto",
    task: str = "",
) -> Trial:
    return build.resolve(
        MIXERS.parse_pattern(mixer),
        SKELETONS.parse(skeleton),
        TASKS.parse(task or f"images(data=nowhere, classes={classes}, size=64)"),
        Recipe(weights=str(weights)),
        seed=0,
    )


def test_evaluate_gives_what_timm_gives(
    femto: torch.nn.Module, femto_file: Path, digit_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same folder, same file: their model behind their transform, and the command."""
    dataset = create_dataset("", str(digit_folder), split="validation")
    config = resolve_model_data_config(femto, {"input_size": (3, 64, 64)})
    transform = create_transform(**config)
    images = []
    for path in dataset.filenames(absolute=True):
        with Image.open(path) as image:
            images.append(transform(image.convert("RGB")))
    labels = torch.tensor([label for _, label in dataset.reader.samples])
    with torch.inference_mode():
        theirs = femto(torch.stack(images))
        ours = build_model(trial(femto_file), new_head=False).eval()(torch.stack(images))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    right = (theirs.argmax(1) == labels).float().mean().item()
    command = (
        f"evaluate --skeleton mambaout-femto --weights {femto_file} --loaders 0 --task.data {digit_folder}"
    )
    assert run_ablation.main([*command.split(), "--task.size", "64"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mambaout-femto(block=gated, ")
    assert f") with conv(kernel_size=7), weights {femto_file}@" in printed
    assert f"top-1 {100 * right:6.2f} %" in printed
    assert "36 images answered, 0 passed over" in printed
    assert printed.endswith("nothing is published for this model with 3 classes\n")


def test_what_is_published_stands_beside_imagenet_alone(femto_file: Path) -> None:
    asked = command_line.parse_evaluate(["--skeleton", "mambaout-femto", "--weights", str(femto_file)])
    assert "published: top-1 78.9 % on ImageNet-1k" in commands._published_top1(asked, 1_000)
    assert commands._published_top1(asked, 2) == "nothing is published for this model with 2 classes"


def test_evaluate_wants_a_classifier(
    femto_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which the weights of a trial on pixels have not."""
    path = tmp_path / "backbone.safetensors"
    weights = build_model(trial(femto_file)).state_dict()
    backbone = {name: value for name, value in weights.items() if not name.startswith("head.")}
    safetensors.torch.save_file(backbone, path)
    assert run_ablation.main(["evaluate", "--weights", str(path), "--task.data", str(tmp_path)]) == 2
    assert f"weights {path} have no classifier of images (head.fc.bias)" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["timm .pth", "official .pth", "ours"])
def test_every_layout_is_the_same_model(
    femto: torch.nn.Module, femto_file: Path, tmp_path: Path, layout: str
) -> None:
    reference = build_model(trial(femto_file))
    path = tmp_path / ("weights.safetensors" if layout == "ours" else "weights.pth")
    if layout == "ours":
        safetensors.torch.save_file(reference.state_dict(), path)
    elif layout == "timm .pth":
        torch.save({"state_dict": femto.state_dict(), "epoch": 3}, path)
    else:
        torch.save({"model": official(femto.state_dict())}, path)
    model = build_model(trial(path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name


def official(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names of the official repository."""
    renamed = {}
    for name, value in weights.items():
        name = name.replace("head.fc.", "head.fc2.").replace("head.pre_logits.fc.", "head.fc1.")
        if name.startswith("head.norm."):
            name = name.removeprefix("head.")
        name = name.replace("head.pre_logits.norm.", "head.norm.")
        name = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        if ".downsample." in name:
            stage = name.split(".")[1]
            name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        renamed[name] = value
    return renamed


def test_a_file_is_part_of_the_trial(femto: torch.nn.Module, femto_file: Path, tmp_path: Path) -> None:
    one = trial(femto_file)
    assert one.train.weights is not None
    assert one.train.weights.startswith(f"{femto_file}@")
    assert Trial.from_dict(one.to_dict()) == one
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(femto_file.read_bytes())
    resolved = trial(copy)
    changed = {name: value + 1 for name, value in femto.state_dict().items()}
    safetensors.torch.save_file(changed, copy)
    with pytest.raises(InputError, match="have changed since this trial was planned"):
        build_model(resolved)
    assert trial(copy).id != resolved.id


def test_another_number_of_classes_gets_a_new_classifier(femto_file: Path) -> None:
    fresh = build_model(trial(femto_file, classes=7)).state_dict()
    stored = build_model(trial(femto_file)).state_dict()
    assert fresh["head.fc.weight"].shape[0] == 7
    assert all(torch.equal(fresh[name], stored[name]) for name in stored if not name.startswith("head.fc."))
    with pytest.raises(InputError, match="answer for 3 classes, but the task has 7"):
        build_model(trial(femto_file, classes=7), new_head=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"mixer": "ssm"},
            "are not of this mambaout-femto: .* in all.*; released .*, a trial's .* trial.json",
        ),
        ({"skeleton": "mambaout-kobe"}, "are not of this mambaout-kobe: stages.2.blocks.10"),
        ({"skeleton": "mambaout-femto(expansion_ratio=3)"}, "is of another shape"),
        (
            {"skeleton": "causal-lm", "task": "parity", "mixer": "identity"},
            "are not of this causal-lm: blocks",
        ),
    ],
)
def test_weights_of_another_model_are_refused(femto_file: Path, change: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_model(trial(femto_file, **change))
    with pytest.raises(InputError, match=f"mixer .*: weights .*{words}"):
        build.check(trial(femto_file, **change))  # before anything trains


def test_weights_that_fit_are_found_to_before_anything_trains(femto_file: Path) -> None:
    build.check(trial(femto_file, classes=7))
    (femto_file.parent / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match=r"mixer conv: .*text\.pth cannot be read as weights"):
        build.check(trial(femto_file.parent / "text.pth"))


def test_what_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"there is no file of weights .*none\.pth"):
        trial(tmp_path / "none.pth")
    with pytest.raises(InputError, match="timm has no weights for mambaout-nano, only for mambaout-femto"):
        trial("timm", skeleton="mambaout-nano")
    with pytest.raises(InputError, match="timm has no weights for isotropic-tiny, only for mambaout-femto"):
        trial("timm", skeleton="isotropic-tiny")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(InputError, match="mambaout_femto are not on this disk, and nothing is downloaded"):
        trial("timm")


class Harmful:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise AssertionError('code from a file of weights ran')",))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    harmful, damaged = tmp_path / "harmful.pth", tmp_path / "damaged.safetensors"
    torch.save({"state_dict": Harmful()}, harmful)
    damaged.write_bytes(b"\0" * 100)
    for path, reason in (
        (harmful, "it is neither safetensors nor a file that torch.save wrote"),
        (damaged, ""),
    ):
        with pytest.raises(InputError, match=f"{path.name} cannot be read as weights: {reason}"):
            build_model(trial(path))


def test_timms_own_are_found_in_its_cache(femto_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cached(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(femto_file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    resolved = trial("timm")
    assert resolved.train.weights == pretrained.with_source(str(femto_file), "").replace(
        str(femto_file), "timm"
    )
    assert asked[0] == (timm.get_pretrained_cfg("mambaout_femto").hf_hub_id, "model.safetensors")
    build_model(resolved)


def test_evaluate_refuses_what_does_not_fit(
    femto_file: Path,
    digit_folder: Path,
    tmp_path: Path,
    write_digits: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*arguments: str) -> str:
        assert run_ablation.main(["evaluate", "--weights", str(femto_file), *arguments]) == 2
        return capsys.readouterr().err

    data = ("--task.data", str(digit_folder))
    assert "nothing" in refused("--train.epochs", "3", *data)
    assert "needs --task.data PATH" in refused("--skeleton", "mambaout-femto")
    assert "are not of this mambaout-tiny" in refused(*data)
    assert "has 3 classes, but the weights answer for 7" in refused(
        "--skeleton", "mambaout-femto", "--task.classes", "7", *data
    )
    assert "must be at least 1" in refused("--threads", "0", *data)
    two = ("--task.data", str(write_digits(tmp_path, {"train": 2, "val": 2}, classes=2)))
    said = refused("--skeleton", "mambaout-femto", "--task.classes", "2", *two)
    assert "answer for 3 classes, but the task has 2" in said, "no classifier that was never trained"


def test_evaluate_counts_what_it_passed_over(
    femto_file: Path, tmp_path: Path, write_digits: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_digits(tmp_path, {"train": 2, "val": 3})
    next((folder / "val" / "digit_1").iterdir()).write_bytes(b"no image")
    command = f"evaluate --skeleton mambaout-femto --weights {femto_file} --loaders 0 --task.data {folder}"
    options = "--task.size 32 --task.unreadable skip --skeleton.act silu"
    assert run_ablation.main([*command.split(), *options.split()]) == 0
    said = capsys.readouterr().out
    assert "8 images answered, 1 passed over" in said
    assert "act=silu" in said


def test_a_detector_starts_from_a_classifier(femto: torch.nn.Module, femto_file: Path) -> None:
    """The backbone is theirs; heads and the norms of the stages are as they were initialised."""
    detector = build.resolve(
        MIXERS.parse_pattern("conv"),
        SKELETONS.parse("mambaout-femto(head=mask-rcnn-slim)"),
        TASKS.parse("coco"),
        Recipe(weights=str(femto_file), label_smoothing=0.0),
        seed=0,
    )
    fresh = build_model(dataclasses.replace(detector, train=Recipe(label_smoothing=0.0))).state_dict()
    loaded = build_model(detector).state_dict()
    assert torch.equal(loaded["stem.conv1.weight"], femto.state_dict()["stem.conv1.weight"])
    for name, value in loaded.items():
        if name.startswith(("head.", "stage_norms.")):
            assert torch.equal(value, fresh[name]), name
    assert not torch.equal(loaded["stages.3.blocks.0.fc1.weight"], fresh["stages.3.blocks.0.fc1.weight"])
    with pytest.raises(InputError, match="are not of this mambaout-femto"):
        build_model(detector, new_head=False)  # whose heads nobody has trained


@pytest.mark.parametrize("mixer", ["identity", "pooling", "random", "conv"])
def test_own_weights_are_told_whatever_the_mixer(
    tiny_trial: Callable[..., Trial], store: Store, tmp_path: Path, mixer: str
) -> None:
    """A mixer without weights leaves no name in the file that is ours alone."""
    first = tiny_trial(mixer, epochs=1, batch_size=256)
    folder = store.folder(first.id)
    run_trial(first, folder, Runtime())
    model = build_model(tiny_trial(mixer, seed=1, weights=str(folder.weights)), new_head=False)
    stored = safetensors.torch.load_file(folder.weights)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    untold = tmp_path / "untold.safetensors"
    safetensors.torch.save_file(stored, untold)
    if any(".mixer." in name for name in stored):
        build_model(tiny_trial(mixer, weights=str(untold)))
    else:
        with pytest.raises(InputError, match="not the weights of a MambaOut model"):
            build_model(tiny_trial(mixer, weights=str(untold)))
