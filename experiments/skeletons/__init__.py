"""What is held fixed: blocks, backbones and heads around a slot for the token mixer.

An entry is called with a `MixerFactory`, a `TaskSpec` and its options, and returns a `base.Skeleton`.
Adding one: a subclass with its size as class attributes, and a line below. Importing this module does
not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.interface import Output
from mixers.registry import Component, Registry

if TYPE_CHECKING:
    from experiments.skeletons.base import Skeleton

SKELETONS: Registry[Skeleton] = Registry(
    "skeleton",
    {
        "mambaout-nano": "experiments.skeletons.hierarchical:MambaOutNano",
        "mambaout-pico": "experiments.skeletons.hierarchical:MambaOutPico",
        "mambaout-femto": "experiments.skeletons.hierarchical:MambaOutFemto",
        "mambaout-kobe": "experiments.skeletons.hierarchical:MambaOutKobe",
        "mambaout-tiny": "experiments.skeletons.hierarchical:MambaOutTiny",
        "mambaout-small": "experiments.skeletons.hierarchical:MambaOutSmall",
        "mambaout-base": "experiments.skeletons.hierarchical:MambaOutBase",
        "isotropic-nano": "experiments.skeletons.isotropic:IsotropicNano",
        "isotropic-dense": "experiments.skeletons.isotropic:IsotropicDense",
        "isotropic-tiny": "experiments.skeletons.isotropic:IsotropicTiny",
        "isotropic-small": "experiments.skeletons.isotropic:IsotropicSmall",
        "causal-lm": "experiments.skeletons.causal_lm:CausalLM",
    },
)


def option_defaults(skeleton: Component, output: Output = "one") -> Mapping[str, Any]:
    """What `SKELETONS.resolve` needs to know beyond the signature: the block's preset and the size's values.

    Nothing is built. A block that does not exist is left for `resolve` to refuse.

    Args:
        skeleton: with the options that were given.
        output: of the task, on which the head depends.

    Raises:
        InputError: unknown skeleton.
    """
    entry = SKELETONS.load(skeleton.name)
    return entry.option_defaults(skeleton.options.get("block"), output, skeleton.options.get("mlp"))
