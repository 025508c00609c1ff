"""A plain backbone: patches, positions, and blocks of one width at one resolution (ViT, arXiv 2010.11929)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.interface import MixerFactory, Output, TaskSpec
from experiments.skeletons.base import (
    DropRate,
    HeadName,
    Init,
    Readout,
    Skeleton,
    require_images,
)
from experiments.skeletons.blocks import (
    NORM_EPS,
    Activation,
    BlockName,
    BlockOptions,
    ConvRatio,
    ExpansionRatio,
    LayerScaleInit,
    MlpName,
)
from experiments.skeletons.hierarchical import ChannelsLastConv, Stem
from experiments.skeletons.moe import BALANCE, Balance, ExpertOptions, Experts, ExpertsPerToken, MoeEvery
from mixers.registry import InputError

PatchSize = Annotated[int, Field(ge=1, le=64)]


class Isotropic(Skeleton):
    """Patch embedding, position embedding, blocks, head; no class token.

    As in ViTs that read out the mean of all tokens, the final norm comes after the readout, in the head.

    Args:
        mixer: makes the token mixer of each block.
        task: on images of any size, with one answer or one for every pixel.
        patch_size: side of a patch in pixels; None for that of the size. Images are padded with zeros at
            the right and at the bottom to whole patches.
        position: "learned" adds an embedding to every patch, resized when another image size comes in.
        block: preset of the block.
        expansion_ratio: hidden channels per channel; None for the preset's.
        conv_ratio: channels handed to the mixer per channel; None for the preset's.
        act: activation of the block; None for the preset's.
        bias: in the block's linear layers; None for the preset's.
        gate: whether a gated block has its gate; None for the preset's.
        mlp: channel MLP of a metaformer block; None for the preset's.
        layer_scale: initial LayerScale; None for none.
        drop_path: of the last block, growing linearly from 0 at the first; None for that of the size.
        readout: what the head looks at.
        head: for one answer "mlp" or "linear"; for every pixel "linear", "upernet" or "fpn" on the one map
            that there is. None for "linear".
        init: of the linear layers, with "fixed-all" those inside the mixers too
            (`base.Skeleton.init_weights`); None for that of the size.
        experts: copies of a metaformer block's channel MLP that a router chooses from; 1 for a plain MLP.
        experts_per_token: how many of them every token goes through.
        moe_every: the last of every so many blocks has experts.
        balance: weight of the load-balancing loss.

    Raises:
        InputError: the task is of another kind, or the options do not fit each other.
    """

    depth: ClassVar[int]
    dim: ClassVar[int]
    patch_side: ClassVar[int]
    heads: ClassVar[Mapping[Output, HeadName]] = {"one": "linear", "per-pixel": "linear"}

    def __init__(
        self,
        mixer: MixerFactory,
        task: TaskSpec,
        *,
        patch_size: PatchSize | None = None,
        position: Literal["learned", "none"] = "learned",
        block: BlockName = "gated",
        expansion_ratio: ExpansionRatio | None = None,
        conv_ratio: ConvRatio | None = None,
        act: Activation | None = None,
        bias: bool | None = None,
        gate: bool | None = None,
        mlp: MlpName | None = None,
        layer_scale: LayerScaleInit | None = None,
        drop_path: DropRate | None = None,
        readout: Readout = "mean",
        head: HeadName | None = None,
        init: Init | None = None,
        experts: Experts = 1,
        experts_per_token: ExpertsPerToken = 1,
        moe_every: MoeEvery = 1,
        balance: Balance = BALANCE,
    ) -> None:
        super().__init__(init)
        require_images(task, self.heads)
        mixture = ExpertOptions(experts, experts_per_token, moe_every, balance)
        options = BlockOptions(block, expansion_ratio, conv_ratio, act, bias, gate, mlp, layer_scale, mixture)
        self.patch_embed = self.embed(task.channels, patch_size or self.patch_side)
        self.pos_embed: nn.Parameter | None = None
        if position == "learned":
            grid = [-(-side // (patch_size or self.patch_side)) for side in task.grid]
            self.pos_embed = nn.Parameter(torch.zeros(*grid, self.dim))  # (H, W, C)
        (blocks,) = self.build_blocks(
            mixer, options, [self.depth], [self.dim], grid_rank=2, drop_path=drop_path
        )
        self.blocks = nn.Sequential(*blocks)
        self.add_head(task, [self.dim], readout, head)

    def embed(self, channels: int, patch_size: int) -> nn.Module:
        """What turns images (B, channels, H, W) into tokens (B, ceil(H / p), ceil(W / p), dim)."""
        return PatchEmbed(channels, self.dim, patch_size)

    @classmethod
    def option_defaults(
        cls, block: str | None = None, output: Output = "one", mlp: str | None = None
    ) -> dict[str, Any]:
        return {**super().option_defaults(block, output, mlp), "patch_size": cls.patch_side}

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)  # (B, H, W, C)
        if self.pos_embed is not None:
            x = x + resize_positions(self.pos_embed, x.shape[1], x.shape[2])
        return self.blocks(x)

    def no_weight_decay(self) -> set[str]:
        own = set() if self.pos_embed is None else {"pos_embed"}
        return super().no_weight_decay() | own


class PatchEmbed(nn.Conv2d):
    """(B, channels, H, W) -> (B, ceil(H / p), ceil(W / p), dim): a linear map of p x p pixels."""

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__(channels, dim, kernel_size=patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        right, bottom = -x.shape[-1] % self.patch_size, -x.shape[-2] % self.patch_size
        return super().forward(F.pad(x, (0, right, 0, bottom))).permute(0, 2, 3, 1).contiguous()


class OverlappingEmbed(nn.Sequential):
    """(B, channels, H, W) -> (B, ceil(H / p), ceil(W / p), dim): MambaOut's stem and two more convolutions.

    At p = 4 a token has seen 11 pixels beyond its own to every side: a small object, before anything is
    mixed, whatever the mixer.

    Raises:
        InputError: two 3 x 3 convolutions do not overlap at such a patch size.
    """

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        if patch_size not in OVERLAPPING:
            raise InputError(f"patch_size of overlapping patches must be 1, 2 or 4, got {patch_size}")
        super().__init__()
        self.stem = Stem(channels, dim, OVERLAPPING[patch_size])
        for number in (3, 4):
            self.add_module(f"conv{number}", ChannelsLastConv(dim, dim, stride=1))
            self.add_module(f"norm{number}", nn.LayerNorm(dim, eps=NORM_EPS))
            self.add_module(f"act{number}", nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1))


OVERLAPPING = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
"""Strides of the stem's two convolutions, by the patch size."""


def resize_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """(H, W, C) -> (height, width, C), bicubic as in timm; itself where the size is the same."""
    if positions.shape[:2] == (height, width):
        return positions
    channels_first = positions.permute(2, 0, 1)[None]
    resized = F.interpolate(channels_first, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0)


class IsotropicNano(Isotropic):
    """Four blocks of 32 channels, for images of 8 to 32 pixels: 6 x 6 tokens at 12."""

    depth, dim, patch_side, drop_path_rate, init_name = 4, 32, 2, 0.0, "fan-in"


class IsotropicDense(Isotropic):
    """Two blocks of 48 channels at stride 4 behind overlapping patches: dense tasks on small computers."""

    depth, dim, patch_side, drop_path_rate, init_name = 2, 48, 4, 0.0, "fan-in"
    dense_width = 48

    def embed(self, channels: int, patch_size: int) -> nn.Module:
        return OverlappingEmbed(channels, self.dim, patch_size)


class IsotropicTiny(Isotropic):
    """The depth, width and patches of ViT-Ti and DeiT-Ti (arXiv 2012.12877)."""

    depth, dim, patch_side, drop_path_rate = 12, 192, 16, 0.1


class IsotropicSmall(Isotropic):
    """The depth, width and patches of ViT-S and DeiT-S."""

    depth, dim, patch_side, drop_path_rate = 12, 384, 16, 0.1
