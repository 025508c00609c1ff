"""What timm makes of a recipe."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import nn

from experiments.recipe import make_optimizer, make_scheduler
from experiments.trial import Recipe


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb"])
def test_optimizers_do_what_the_recipe_says(opt: Literal["adamw", "sgd", "lamb"]) -> None:
    recipe = Recipe(opt=opt, lr=0.03, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.07)
    groups = make_optimizer(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), recipe).param_groups
    assert {group["lr"] for group in groups} == {0.03}
    decays = {parameter.ndim: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {2: 0.07, 1: 0.0}, "neither norms nor biases"
    for group in groups:
        if opt == "sgd":
            assert (group["momentum"], group["nesterov"]) == (0.9, True)
        else:
            assert (tuple(group["betas"]), group["eps"]) == ((0.8, 0.9), 1e-5)


@pytest.mark.parametrize(
    ("sched", "rates"),
    [
        ("multistep", [1e-6, 0.05, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025]),  # halved after 4 and after 6 epochs
        (
            "poly",
            [1e-6, 0.05, *(1e-5 + (0.1 - 1e-5) * (1 - epoch / 8) ** 0.5 for epoch in range(2, 8)), 1e-5],
        ),
    ],
)
def test_learning_rates_fall_as_the_recipe_says(
    sched: Literal["multistep", "poly"], rates: list[float]
) -> None:
    """At the start of each epoch of 10 steps, after 2 epochs of warm-up."""
    recipe = Recipe(
        sched=sched, epochs=8, lr=0.1, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5,
        decay_epochs=(4, 6), decay_rate=0.5, cooldown_epochs=1,
    )  # fmt: skip
    optimizer = make_optimizer(nn.Linear(3, 2), recipe)
    scheduler = make_scheduler(optimizer, recipe, steps_per_epoch=10)
    found = []
    for epoch in range(len(rates)):
        scheduler.step_update(10 * epoch)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(rates, rel=1e-4)
