"""timm's optimizer, schedule and mixup, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from experiments.trial import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer; norms, biases and `model.no_weight_decay()` are not decayed."""
    adaptive: dict[str, Any] = {} if recipe.opt == "sgd" else {"betas": recipe.betas, "eps": recipe.eps}
    return create_optimizer_v2(
        model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=0.9, **adaptive
    )


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> Any:
    """timm's schedule with linear warm-up, stepped at every update."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        decay_milestones=list(recipe.decay_epochs),
        decay_rate=recipe.decay_rate,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]  # times the steps of an epoch
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler


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
