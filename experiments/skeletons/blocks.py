"""The block: everything around the token mixer that all arms share.

Two meta-architectures, each with one slot, `mixer`, filled by whatever the factory returns: the Gated
CNN block of MambaOut (Yu & Wang, arXiv 2405.07992, eq. 8-11), which is the Mamba block without its SSM,
and the MetaFormer block (Yu et al., arXiv 2111.11418, eq. 1-3).

Symbols: C = dim channels, h hidden channels, m channels of the mixer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from experiments.skeletons.moe import PLAIN, ExpertOptions, MixtureOfExperts
from mixers.registry import InputError

BlockName = Literal["gated", "mamba", "metaformer"]
Activation = Literal["gelu", "silu"]
ExpansionRatio = Annotated[float, Field(gt=0, le=64)]
ConvRatio = Annotated[float, Field(gt=0, le=64)] | Literal["all"]
LayerScaleInit = Annotated[float, Field(gt=0, le=1)]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
NORM_EPS = 1e-6

PRESETS: dict[str, dict[str, Any]] = {
    # the released MambaOut models
    "gated": {"expansion_ratio": 8 / 3, "conv_ratio": 1.0, "act": "gelu", "bias": True},
    # the block of the Mamba paper (arXiv 2312.00752, section 3.4)
    "mamba": {"expansion_ratio": 2.0, "conv_ratio": "all", "act": "silu", "bias": False},
    # ViT and PoolFormer; its mixer always gets all C channels
    "metaformer": {"expansion_ratio": 4.0, "conv_ratio": None, "act": "gelu", "bias": True},
}

MixerOfWidth = Callable[[int], nn.Module]
"""Makes the mixer of one block, given its channels."""


class Block(nn.Module):
    """(B, *grid, C) -> (B, *grid, C), with a token mixer in `mixer` that it never looks into."""

    mixer: nn.Module


class GatedBlock(Block):
    """x + fc2(act(g) * cat(i, mixer(v))), where g, i, v = split(fc1(norm(x))).

    g has h channels, v has m, i the other h - m. MambaOut's Gated CNN block has a 7 x 7 depthwise
    convolution for a mixer and m = C.

    Args:
        dim: C.
        make_mixer: fills the slot.
        expansion_ratio: h = int(expansion_ratio * C).
        conv_ratio: m = int(conv_ratio * C), or "all" for m = h.
        act: of the gate.
        bias: in fc1 and fc2.
        layer_scale: initial LayerScale (arXiv 2103.17239); None for none.
        drop_path: rate of stochastic depth.

    Raises:
        InputError: h < m, or no channels for the mixer.
    """

    def __init__(
        self,
        dim: int,
        make_mixer: MixerOfWidth,
        *,
        expansion_ratio: float = 8 / 3,
        conv_ratio: float | Literal["all"] = 1.0,
        act: Activation = "gelu",
        bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(expansion_ratio * dim)
        mixed = hidden if conv_ratio == "all" else int(conv_ratio * dim)
        if not 1 <= mixed <= hidden:
            raise InputError(
                f"expansion_ratio {expansion_ratio:g} makes {hidden} hidden channels of {dim}, but "
                f"conv_ratio {conv_ratio} hands {mixed} to the mixer, which needs from 1 to all of them"
            )
        self.widths = (hidden - mixed, mixed)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=bias)
        self.act = ACTIVATIONS[act]()
        self.mixer = make_mixer(mixed)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.residual = residual_branch(dim, layer_scale, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # The channels of i and those of v never meet before the sum in fc2, so each go their own way:
        # slicing the weights is free, slicing and concatenating activations is not.
        z = self.norm(x)
        (g_i, i), (g_v, v) = self._expand(z)
        w_i, w_v = self.fc2.weight.split(self.widths, dim=1)
        y = F.linear(self.act(g_v) * self.mixer(v), w_v, self.fc2.bias)
        if i.shape[-1] > 0:
            y = y + F.linear(self.act(g_i) * i, w_i)
        return x + self.residual(y)

    def _expand(self, z: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """fc1 in four parts: (*, C) -> gate and value past the mixer, gate and value through it."""
        weights = self.fc1.weight.split(self.widths * 2)
        biases = [None] * 4 if self.fc1.bias is None else self.fc1.bias.split(self.widths * 2)
        g_i, g_v, i, v = (F.linear(z, w, b) for w, b in zip(weights, biases, strict=True))
        return (g_i, i), (g_v, v)


class MetaFormerBlock(Block):
    """x + mixer(norm(x)), then x + mlp(norm(x)), where the mlp may be a mixture of several.

    Args:
        dim: C, all of which the mixer gets.
        make_mixer: fills the slot.
        expansion_ratio: h = int(expansion_ratio * C), of the MLP.
        act: of the MLP.
        bias: in the MLP.
        layer_scale: initial LayerScale of both branches; None for none.
        drop_path: rate of stochastic depth, drawn for each branch.
        experts: of the mixture; None for a plain MLP.

    Raises:
        InputError: no hidden channels.
    """

    def __init__(
        self,
        dim: int,
        make_mixer: MixerOfWidth,
        *,
        expansion_ratio: float = 4.0,
        act: Activation = "gelu",
        bias: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        experts: ExpertOptions | None = None,
    ) -> None:
        super().__init__()
        hidden = int(expansion_ratio * dim)
        if hidden < 1:
            raise InputError(f"expansion_ratio {expansion_ratio:g} leaves no hidden channels of {dim}")
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mixer = make_mixer(dim)
        self.residual1 = residual_branch(dim, layer_scale, drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        make_mlp = partial(Mlp, dim, hidden, act_layer=ACTIVATIONS[act], bias=bias)
        self.mlp = make_mlp() if experts is None else MixtureOfExperts(dim, make_mlp, experts)
        self.residual2 = residual_branch(dim, layer_scale, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.residual1(self.mixer(self.norm1(x)))
        return x + self.residual2(self.mlp(self.norm2(x)))


def residual_branch(dim: int, layer_scale: float | None, drop_path: float) -> nn.Sequential:
    """What happens to a branch before it is added: LayerScale, then stochastic depth; often nothing."""
    branch = nn.Sequential()
    if layer_scale is not None:
        branch.add_module("layer_scale", LayerScale(dim, init_values=layer_scale))
    if drop_path > 0:
        branch.add_module("drop_path", DropPath(drop_path))
    return branch


@dataclass(frozen=True)
class BlockOptions:
    """All that determines the blocks of a skeleton except their width, mixer and drop path.

    A value of None is taken from the preset, except for `layer_scale`, where it means none.
    """

    block: BlockName
    expansion_ratio: float | None = None
    conv_ratio: float | Literal["all"] | None = None
    act: Activation | None = None
    bias: bool | None = None
    layer_scale: float | None = None
    experts: ExpertOptions = PLAIN

    def build(self, dim: int, make_mixer: MixerOfWidth, drop_path: float, *, has_experts: bool) -> Block:
        """One block of `dim` channels; `has_experts` is whether its channel MLP is a mixture of them.

        Raises:
            InputError: the options do not fit the block or each other.
        """
        options: dict[str, Any] = {"layer_scale": self.layer_scale, "drop_path": drop_path}
        for name, default in PRESETS[self.block].items():
            given = getattr(self, name)
            options[name] = default if given is None else given
        if self.block != "metaformer":
            self._require_plain()
            return GatedBlock(dim, make_mixer, **options)
        if options.pop("conv_ratio") is not None:
            raise InputError("conv_ratio has no meaning in block metaformer: its mixer gets all channels")
        return MetaFormerBlock(dim, make_mixer, **options, experts=self.experts if has_experts else None)

    def _require_plain(self) -> None:
        if self.experts != PLAIN:
            raise InputError(
                "experts, experts_per_token, moe_every and balance have no meaning in block "
                f"{self.block}: it has no channel MLP to replace; choose block metaformer"
            )


def mixer_slots(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The name and the content of every block's slot."""
    for name, module in model.named_modules():
        if isinstance(module, Block):
            yield f"{name}.mixer", module.mixer
