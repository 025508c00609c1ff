"""Weights of MambaOut models, from timm's names or the official checkpoints' to ours.

Ours with the `conv` mixer has timm's names except that the convolution sits in the mixer's slot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from timm.models.mambaout import checkpoint_filter_fn
from torch import Tensor

from mixers.registry import InputError

BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
STEM = ("stem.conv1", "stem.norm1", "stem.conv2", "stem.norm2")
HEAD = ("head.norm", "head.pre_logits.fc", "head.pre_logits.norm", "head.fc")


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's `mambaout_{femto,kobe,tiny,small,base}`, or an official checkpoint, as ours with `conv`.

    Raises:
        InputError: names are missing, or there are names that such a model does not have.
    """
    weights = dict(checkpoint_filter_fn(state_dict, None))  # official names to timm's; timm's stay
    _require(weights)
    return {re.sub(r"(blocks\.\d+)\.conv\.", r"\1.mixer.", name): value for name, value in weights.items()}


def _require(names: Iterable[str]) -> None:
    have = set(names)
    expected = _expected(have)
    if missing := sorted(expected - have):
        raise InputError(f"not the weights of a MambaOut model: {', '.join(missing)} missing")
    if unknown := sorted(have - expected):
        raise InputError(f"not the weights of a MambaOut model with conv: {', '.join(unknown)} unknown")


def _expected(names: set[str]) -> set[str]:
    """All names of a model with as many stages and blocks as the given names speak of."""
    depths: dict[int, int] = {0: 1}
    for match in filter(None, map(BLOCK.match, names)):
        stage, block = int(match[1]), int(match[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    modules = [*STEM, *HEAD]
    for stage in range(max(depths) + 1):
        if stage > 0:
            modules += [f"stages.{stage}.downsample.{part}" for part in ("conv", "norm")]
        for block in range(depths.get(stage, 1)):
            modules += [f"stages.{stage}.blocks.{block}.{part}" for part in ("norm", "fc1", "conv", "fc2")]
    return {f"{module}.{parameter}" for module in modules for parameter in ("weight", "bias")}
