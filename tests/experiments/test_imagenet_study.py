"""The checked-in ImageNet study is the paper's recipe: every field of Table 5 of arXiv 2405.07992."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.layers.drop import DropPath
from torchvision.transforms import ColorJitter, InterpolationMode, RandomHorizontalFlip

from experiments import build, command_line, resolve_study, stored_plan
from experiments.plan import Plan
from experiments.recipe import make_mixup, make_optimizer, make_scheduler
from experiments.requested_study import requested_study
from experiments.skeletons import SKELETONS
from experiments.tasks.images import Images
from experiments.trial import Recipe, Trial
from mixers import MIXERS

DROP_PATH = {"femto": 0.025, "kobe": 0.025, "tiny": 0.2, "small": 0.4, "base": 0.6}
IMAGES = 1_281_167


@pytest.fixture(scope="module")
def planned(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    asked = command_line.parse(["--study", "imagenet-ladder", "--task.data", str(digit_folder)])
    _, wanted = requested_study(asked)
    with pytest.MonkeyPatch.context() as patch:  # the folder has fewer images than the paper has in a batch
        patch.setattr(resolve_study, "_check_batches", lambda *_: None)
        return stored_plan.make("imagenet-ladder", wanted, tmp_path_factory.mktemp("plan") / "plan.json")


@pytest.fixture(scope="module")
def trial(planned: Plan) -> Trial:
    return planned.arm("conv @ femto").template


def test_the_recipe_is_table_5(trial: Trial) -> None:
    recipe = trial.train
    assert recipe == Recipe(
        epochs=300,
        cooldown_epochs=10,  # the released script's default
        batch_size=4096,
        opt="adamw",
        betas=(0.9, 0.999),
        eps=1e-8,
        lr=1e-3 * 4096 / 1024,
        weight_decay=0.05,
        sched="cosine",
        warmup_epochs=20,
        warmup_lr=1e-6,
        min_lr=1e-5,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        mixup_prob=1.0,
        mixup_switch_prob=0.5,
        clip_grad=None,
        ema_decay=None,
        precision="float32",
        weights=None,
        selection="last",
    )


def test_the_learning_rate_follows_it(trial: Trial) -> None:
    """Over the steps of ImageNet: linear from 1e-6 in 20 epochs, cosine to 1e-5 at 300, flat to 310."""
    model = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(model, trial.train)
    steps = IMAGES // trial.train.batch_size
    scheduler = make_scheduler(optimizer, trial.train, steps)

    def rate(epoch: float) -> float:
        scheduler.step_update(int(epoch * steps))
        return optimizer.param_groups[0]["lr"]

    assert [rate(0), rate(20)] == pytest.approx([1e-6, rate(20)])
    cosine = [
        1e-5 + (4e-3 - 1e-5) * (1 + torch.tensor(torch.pi * e / 300).cos().item()) / 2 for e in (20, 150)
    ]
    assert [rate(20), rate(150)] == pytest.approx(cosine, rel=1e-4)
    assert [rate(10)] == pytest.approx([(1e-6 + 4e-3) / 2], rel=1e-3)
    assert [rate(300), rate(309.9)] == pytest.approx([1e-5, 1e-5])
    assert trial.train.all_epochs == 310
    group = optimizer.param_groups
    assert {each["weight_decay"] for each in group} == {0.0, 0.05}, "biases and norms are not decayed"
    assert {each["betas"] for each in group} == {(0.9, 0.999)}
    assert {each["eps"] for each in group} == {1e-8}


def test_augmentation_is_table_5(trial: Trial) -> None:
    task = build.create_task(trial.task)
    assert isinstance(task, Images)
    assert task.spec.grid == (224, 224)
    steps: dict[type, Any] = {type(step): step for step in task.transform(training=True).transforms}
    crop = steps[RandomResizedCropAndInterpolation]
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert len(crop.interpolation) == 2, "bilinear or bicubic, at random"
    assert steps[RandomHorizontalFlip].p == 0.5
    policy = steps[RandAugment]
    assert policy.num_layers == 2
    assert {(op.magnitude, op.magnitude_std) for op in policy.ops} == {(9, 0.5)}
    assert any(op.name == "PosterizeIncreasing" for op in policy.ops), "inc1"
    erasing = steps[RandomErasing]
    assert (erasing.probability, erasing.mode, erasing.min_count, erasing.max_count) == (0.25, "pixel", 1, 1)
    assert trial.task.options["color_jitter"] == 0.4
    assert ColorJitter not in steps, "timm leaves it out under RandAugment"


def test_evaluation_is_the_papers(trial: Trial) -> None:
    task = build.create_task(trial.task)
    assert isinstance(task, Images)
    resize, crop, _, normalise = task.transform(training=False).transforms
    assert (resize.size, resize.interpolation) == (224, InterpolationMode.BICUBIC)
    assert crop.size == (224, 224)
    assert normalise.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert normalise.std.tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_mixing_is_table_5(trial: Trial) -> None:
    mixup = make_mixup(trial.train, 1000)
    assert mixup is not None
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mixup.mode, mixup.label_smoothing) == ("batch", 0.1)


@pytest.mark.parametrize("size", DROP_PATH)
def test_stochastic_depth_grows_to_that_of_the_size(trial: Trial, size: str) -> None:
    sized = build.resolve(
        MIXERS.parse_pattern("conv"), SKELETONS.parse(f"mambaout-{size}"), trial.task, trial.train, seed=0
    )
    with torch.device("meta"):
        model = build.build_model(sized)
    blocks = [block for stage in model.stages for block in stage.blocks]  # type: ignore[union-attr,attr-defined]
    found = [
        next((module.drop_prob for module in block.modules() if isinstance(module, DropPath)), 0.0)
        for block in blocks
    ]
    assert found == pytest.approx(torch.linspace(0, DROP_PATH[size], len(blocks)).tolist())
    assert sized.skeleton.options["layer_scale"] is None


def test_arms_are_of_one_size_and_conv_is_the_released_model(planned: Plan) -> None:
    for case, params in (("femto", 7.3e6), ("tiny", 26.5e6)):
        conv = planned.arm(f"conv @ {case}")
        assert conv.matching is None, "nothing of the paper's model is changed"
        thousand = conv.template.task.with_options({"classes": 1000})
        released = build.resolve(
            conv.template.mixer, conv.template.skeleton, thousand, conv.template.train, seed=0
        )
        assert build.count_costs(released).params == pytest.approx(params, rel=0.01)
        for arm in planned.arms:
            if arm.case == case and arm.matching is not None:
                assert abs(arm.matching["mismatch"]) < 0.02
