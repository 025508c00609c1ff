"""The block: everything around the token mixer that all arms share.

Two meta-architectures. The Gated CNN block of MambaOut (Yu & Wang, arXiv 2405.07992, eq. 8-11), which
is the Mamba block without its SSM, and the MetaFormer block (Yu et al., arXiv 2111.11418, eq. 1-3).
Both have one slot, `mixer`, filled by whatever the factory returns.

Symbols: B batch, `*grid` the token axes, C = dim channels, h hidden channels, m channels of the mixer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from mixers.registry import InputError

BlockName = Literal["gated", "mamba", "metaformer"]
Activation = Literal["gelu", "silu"]
ExpansionRatio = Annotated[float, Field(gt=0, le=64)]
ConvRatio = Annotated[float, Field(gt=0, le=64)] | Literal["all"]
LayerScaleInit = Annotated[float, Field(gt=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}

MixerOfWidth = Callable[[int], nn.Module]
"""Makes the mixer of one block for a number of channels."""


@dataclass(frozen=True)
class BlockOptions:
    """All that determines a block except its width and its mixer.

    Attributes:
        block: which preset; "metaformer" is the MetaFormer block, the others are the gated block.
        expansion_ratio: hidden channels per channel.
        conv_ratio: channels handed to the mixer per channel, or "all" hidden ones (gated blocks only).
        act: of the gate, or of the MLP.
        bias: of the linear layers.
        layer_scale: initial value of LayerScale; None for no LayerScale.
    """

    block: BlockName
    expansion_ratio: float
    conv_ratio: float | Literal["all"] | None
    act: Activation
    bias: bool
    layer_scale: float | None

    def build(self, dim: int, mixer: MixerOfWidth, drop_path: float) -> Block:
        """The block for `dim` channels.

        Raises:
            InputError: the widths do not work out.
        """
        rest = (self.expansion_ratio, self.act, self.bias, self.layer_scale, drop_path)
        if self.block == "metaformer":
            if self.conv_ratio is not None:
                raise InputError("conv_ratio has no meaning in block metaformer: its mixer gets all channels")
            return MetaFormerBlock(dim, mixer, *rest)
        assert self.conv_ratio is not None
        return GatedBlock(dim, mixer, self.conv_ratio, *rest)


PRESETS: dict[BlockName, dict[str, Any]] = {
    # MambaOut's released models
    "gated": {"expansion_ratio": 8 / 3, "conv_ratio": 1.0, "act": "gelu", "bias": True},
    # the block of the Mamba paper (arXiv 2312.00752, section 3.4)
    "mamba": {"expansion_ratio": 2.0, "conv_ratio": "all", "act": "silu", "bias": False},
    # ViT, PoolFormer
    "metaformer": {"expansion_ratio": 4.0, "conv_ratio": None, "act": "gelu", "bias": True},
}
