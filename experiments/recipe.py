"""timm's optimizer, schedule and mixup, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from experiments.trial import Precision, Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer; norms, biases and `model.no_weight_decay()` are not decayed.

    The update is PyTorch's fused one where it has one; on a CPU a small model's takes a sixth of the time.
    sgd is with Nesterov momentum, by timm's default.
    """
    own: dict[str, Any] = {} if recipe.opt == "lamb" else {"fused": True}
    if recipe.opt != "sgd":
        own |= {"betas": recipe.betas, "eps": recipe.eps}
    return create_optimizer_v2(
        model,
        opt=recipe.opt,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=0.9,
        **own,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """timm's schedule with linear warm-up, stepped at every update."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        decay_milestones=list(recipe.decay_epochs),
        decay_rate=recipe.decay_rate,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]  # times the steps of an epoch
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler


def make_average(model: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """timm's moving average of the weights, or None; it starts as a copy of the model."""
    return None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)


def make_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler:
    """Scales losses so that gradients do not vanish in float16; does nothing at other precisions."""
    return torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Matrix products at that precision inside of it."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def make_mixup(recipe: Recipe, classes: int) -> Mixup | None:
    """timm's mixup and cutmix, or None when both are off."""
    if recipe.mixup == 0 and recipe.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )
