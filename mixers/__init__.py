"""What is compared: token mixers, (B, *grid, C) -> (B, *grid, C). The contract is in `mixers.base`."""

from mixers.registry import Component, InputError, Registry

MIXERS = Registry(
    "mixer",
    {
        "identity": "mixers.identity:Identity",
        "pooling": "mixers.pooling:Pooling",
        "conv": "mixers.conv:DepthwiseConv",
        "causal-conv": "mixers.conv:CausalConv",
        "ssm": "mixers.ssm:SelectiveSSM",
        "causal-attention": "mixers.attention:CausalAttention",
        "attention": "mixers.attention:Attention",
    },
)

__all__ = ["MIXERS", "Component", "InputError", "Registry"]
