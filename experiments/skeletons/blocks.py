"""The block: everything around the token mixer that all arms share.

Two meta-architectures, each with one slot, `mixer`, filled by whatever the factory returns: the Gated
CNN block of MambaOut (Yu & Wang, arXiv 2405.07992, eq. 8-11), which is the Mamba block without its SSM,
and the MetaFormer block (Yu et al., arXiv 2111.11418, eq. 1-3).

Symbols: C = dim channels, h hidden channels, m channels of the mixer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.interface import Mixer, MixerState
from experiments.skeletons.moe import PLAIN, ExpertOptions, MixtureOfExperts
from mixers.registry import InputError

BlockName = Literal["gated", "mamba", "metaformer"]
Activation = Literal["gelu", "silu"]
MlpName = Literal["plain", "swiglu", "none"]
ExpansionRatio = Annotated[float, Field(gt=0, le=64)]
ConvRatio = Annotated[float, Field(gt=0, le=64)] | Literal["all"]
LayerScaleInit = Annotated[float, Field(gt=0, le=1)]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
LAYER_SCALE = "layer_scale"
"""Name of every LayerScale among a branch's modules."""
NORM_EPS = 1e-6

PRESETS: dict[str, dict[str, Any]] = {
    # the released MambaOut models
    "gated": {"expansion_ratio": 8 / 3, "conv_ratio": 1.0, "act": "gelu", "bias": True, "gate": True},
    # the block of the Mamba paper (arXiv 2312.00752, section 3.4)
    "mamba": {"expansion_ratio": 2.0, "conv_ratio": "all", "act": "silu", "bias": False, "gate": True},
    # ViT and PoolFormer; its mixer always gets all C channels
    "metaformer": {"expansion_ratio": 4.0, "act": "gelu", "bias": True, "mlp": "plain"},
}


def preset(block: str, mlp: str | None = None) -> dict[str, Any]:
    """The options of a block that were left out, none for a block that does not exist.

    A SwiGLU has its name from SiLU, which is Swish (arXiv 2002.05202); with act=gelu it is a GEGLU.
    """
    options = PRESETS.get(block, {})
    return {**options, "act": "silu"} if mlp == "swiglu" and "mlp" in options else options


MixerOfWidth = Callable[[int], Mixer]
"""Makes the mixer of one block, given its channels."""

WITHOUT = {
    "conv_ratio": "its mixer gets all channels",
    "gate": "it has none",
    "mlp": "it has none; choose block metaformer",
}
"""Why an option of one block has no meaning in another."""

Kept = tuple[Tensor, ...]
"""What goes past the mixer from one half of a block to the other."""


class Block(nn.Module, ABC):
    """(B, *grid, C) -> (B, *grid, C), with a token mixer in `mixer` that it never looks into.

    A block is what comes before its mixer and what comes after it. Neither moves information between
    tokens, so the same two serve a whole sequence and, with a mixer that can `step`, a single token.
    """

    mixer: Mixer

    @abstractmethod
    def before(self, x: Tensor) -> tuple[Tensor, Kept]:
        """(*, C) -> what the mixer gets, (*, m), and what goes past it."""

    @abstractmethod
    def after(self, x: Tensor, mixed: Tensor, kept: Kept) -> Tensor:
        """The block's input, its mixer's output and what went past it -> (*, C)."""

    def forward(self, x: Tensor) -> Tensor:
        v, kept = self.before(x)
        return self.after(x, self.mixer(v), kept)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """One token: (B, C) and the mixer's state -> (B, C) and its next state.

        Raises:
            TypeError: the mixer has no recurrent form.
        """
        v, kept = self.before(x)
        mixed, state = self.mixer.step(v, state)
        return self.after(x, mixed, kept), state


class GatedBlock(Block):
    """x + fc2(act(g) * cat(i, mixer(v))), where g, i, v = split(fc1(norm(x))).

    g has h channels, v has m, i the other h - m. MambaOut's Gated CNN block has a 7 x 7 depthwise
    convolution for a mixer and m = C. Without the gate it is x + fc2(act(cat(i, mixer(v)))), the
    inverted bottleneck of MobileNetV2, so that the gate can be judged like a mixer.

    Args:
        dim: C.
        make_mixer: fills the slot.
        expansion_ratio: h = int(expansion_ratio * C).
        conv_ratio: m = int(conv_ratio * C), or "all" for m = h.
        act: of the gate, or in its place.
        bias: in fc1 and fc2.
        gate: whether there is g.
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
        gate: bool = True,
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
        self.gate = gate
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc1 = nn.Linear(dim, 2 * hidden if gate else hidden, bias=bias)
        self.act = ACTIVATIONS[act]()
        self.mixer = make_mixer(mixed)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.residual = residual_branch(dim, layer_scale, drop_path)

    # The channels of i and those of v never meet before the sum in fc2, so each go their own way:
    # slicing the weights is free, slicing and concatenating activations is not.

    def before(self, x: Tensor) -> tuple[Tensor, Kept]:
        widths = self.widths * 2 if self.gate else self.widths
        weights = self.fc1.weight.split(widths)
        biases = [None] * len(widths) if self.fc1.bias is None else self.fc1.bias.split(widths)
        z = self.norm(x)
        *gates, i, v = (F.linear(z, w, b) for w, b in zip(weights, biases, strict=True))
        return v, (i, *gates)

    def after(self, x: Tensor, mixed: Tensor, kept: Kept) -> Tensor:
        i, *gates = kept
        w_i, w_v = self.fc2.weight.split(self.widths, dim=1)
        g_i, g_v = gates if self.gate else (None, None)
        y = F.linear(self._activate(mixed, g_v), w_v, self.fc2.bias)
        if i.shape[-1] > 0:
            y = y + F.linear(self._activate(i, g_i), w_i)
        return x + self.residual(y)

    def _activate(self, value: Tensor, gate: Tensor | None) -> Tensor:
        return self.act(value) if gate is None else self.act(gate) * value


class MetaFormerBlock(Block):
    """x + mixer(norm(x)), then x + mlp(norm(x)), where the mlp may be a mixture of several, or absent.

    Args:
        dim: C, all of which the mixer gets.
        make_mixer: fills the slot.
        expansion_ratio: h = int(expansion_ratio * C), of the MLP.
        act: of the MLP.
        bias: in the MLP.
        mlp: "plain" for fc2(act(fc1(x))), "swiglu" for fc2(act(gate(x)) * fc1(x)) (arXiv 2002.05202),
            which is a SwiGLU with SiLU and a GEGLU with GELU, "none" for a block that only mixes tokens.
        layer_scale: initial LayerScale of both branches; None for none.
        drop_path: rate of stochastic depth, drawn for each branch.
        experts: of the mixture; None for a single MLP.

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
        mlp: MlpName = "plain",
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
        if mlp == "none":
            self.mlp = None
            return
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        make_mlp = partial(_mlp_class(mlp), dim, hidden, act_layer=ACTIVATIONS[act], bias=bias)
        self.mlp = make_mlp() if experts is None else MixtureOfExperts(dim, make_mlp, experts)
        self.residual2 = residual_branch(dim, layer_scale, drop_path)

    def before(self, x: Tensor) -> tuple[Tensor, Kept]:
        return self.norm1(x), ()

    def after(self, x: Tensor, mixed: Tensor, kept: Kept) -> Tensor:
        x = x + self.residual1(mixed)
        return x if self.mlp is None else x + self.residual2(self.mlp(self.norm2(x)))


# timm's layers are imported where a block has them: with them comes all of timm, which takes longer to import
# than torch, and a plan or a test of a model without them should not wait for it.


def _mlp_class(mlp: Literal["plain", "swiglu"]) -> Callable[..., nn.Module]:
    from timm.layers.mlp import Mlp, SwiGLU

    return Mlp if mlp == "plain" else SwiGLU


def residual_branch(dim: int, layer_scale: float | None, drop_path: float) -> nn.Sequential:
    """What happens to a branch before it is added: LayerScale, then stochastic depth; often nothing."""
    branch = nn.Sequential()
    if layer_scale is not None:
        from timm.layers.layer_scale import LayerScale

        branch.add_module(LAYER_SCALE, LayerScale(dim, init_values=layer_scale))
    if drop_path > 0:
        from timm.layers.drop import DropPath

        branch.add_module("drop_path", DropPath(drop_path))
    return branch


@dataclass(frozen=True)
class BlockOptions:
    """All that determines the blocks of a skeleton except their width, mixer and drop path.

    A value of None is taken from the preset; a preset without it has no such option. For `layer_scale`,
    which every block has, None means none.
    """

    block: BlockName
    expansion_ratio: float | None = None
    conv_ratio: float | Literal["all"] | None = None
    act: Activation | None = None
    bias: bool | None = None
    gate: bool | None = None
    mlp: MlpName | None = None
    layer_scale: float | None = None
    experts: ExpertOptions = PLAIN

    def build(self, dim: int, make_mixer: MixerOfWidth, drop_path: float, *, has_experts: bool) -> Block:
        """One block of `dim` channels; `has_experts` is whether its channel MLP is a mixture of them.

        Raises:
            InputError: the options do not fit the block or each other.
        """
        defaults = preset(self.block, self.mlp)
        for name in ("conv_ratio", "gate", "mlp"):
            if name not in defaults and getattr(self, name) is not None:
                raise InputError(f"{name} has no meaning in block {self.block}: {WITHOUT[name]}")
        options: dict[str, Any] = {"layer_scale": self.layer_scale, "drop_path": drop_path}
        for name, default in defaults.items():
            given = getattr(self, name)
            options[name] = default if given is None else given
        if self.block == "metaformer":
            if options["mlp"] == "none":
                self._require_plain("without an MLP")
            return MetaFormerBlock(dim, make_mixer, **options, experts=self.experts if has_experts else None)
        self._require_plain(self.block)
        return GatedBlock(dim, make_mixer, **options)

    def _require_plain(self, block: str) -> None:
        if self.experts != PLAIN:
            raise InputError(
                "experts, experts_per_token, moe_every and balance have no meaning in a block "
                f"{block}: it has no channel MLP to replace; choose block metaformer"
            )


def mixer_slots(model: nn.Module) -> Iterator[tuple[str, Mixer]]:
    """The name and the content of every block's slot."""
    for name, module in model.named_modules():
        if isinstance(module, Block):
            yield f"{name}.mixer", module.mixer
