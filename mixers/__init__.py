"""What is compared: token mixers, (B, *grid, C) -> (B, *grid, C). The contract is in `mixers.base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixers.registry import Component, InputError, Registry

if TYPE_CHECKING:
    from mixers.base import TokenMixer

MIXERS: Registry[TokenMixer] = Registry(
    "mixer",
    {
        "identity": "mixers.identity:Identity",
        "pooling": "mixers.pooling:Pooling",
        "conv": "mixers.conv:DepthwiseConv",
        "causal-conv": "mixers.conv:CausalConv",
        "ssm": "mixers.ssm:SelectiveSSM",
        "ssd": "mixers.ssd:SSD",
        "mamba": "mixers.mamba:Mamba",
        "mamba2": "mixers.mamba2:Mamba2",
        "mambavision": "mixers.mambavision:MambaVision",
        "s4d": "mixers.s4d:S4D",
        "gru": "mixers.gru:GRU",
        "mingru": "mixers.mingru:MinGRU",
        "causal-attention": "mixers.attention:CausalAttention",
        "attention": "mixers.attention:Attention",
        "window-attention": "mixers.window_attention:WindowAttention",
        "linear-attention": "mixers.linear_attention:LinearAttention",
        "causal-linear-attention": "mixers.linear_attention:CausalLinearAttention",
        "mila-attention": "mixers.mila:MILAAttention",
        "gated-linear-attention": "mixers.gated_linear_attention:GatedLinearAttention",
        "random": "mixers.random_mixing:RandomMixing",
        "sepconv": "mixers.sepconv:SepConv",
        "gated-conv": "mixers.gated_conv:GatedConv",
    },
    own_base="mixers.base:TokenMixer",
)

GATED = frozenset({"mamba", "mamba2", "gated-conv"})
"""Mixers that project and gate by themselves, and so belong in a block that does not."""

__all__ = ["GATED", "MIXERS", "Component", "InputError", "Registry"]
