"""What timm makes of a recipe."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import nn

from experiments.recipe import make_optimizer
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
