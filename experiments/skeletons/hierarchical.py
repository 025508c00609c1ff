"""MambaOut's backbone: stages of blocks, each at half the resolution of the one before.

Yu & Wang, arXiv 2405.07992, figure 4(a). All tensors are (B, H, W, C). Depths, dims and drop path of
femto, kobe, tiny, small and base are those of the released models; nano and pico are ours, for small
images and small computers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from experiments.interface import MixerFactory, Output, TaskSpec
from experiments.skeletons.base import (
    DropRate,
    HeadName,
    Init,
    PatternOver,
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
from experiments.skeletons.moe import BALANCE, Balance, ExpertOptions, Experts, ExpertsPerToken, MoeEvery


class MambaOut(Skeleton):
    """Stem, stages with a downsampling convolution in between, head.

    Args:
        mixer: makes the token mixer of each block.
        task: on images of any size, with one answer, one for every pixel, or objects.
        block: preset of the block.
        expansion_ratio: hidden channels per channel; None for the preset's.
        conv_ratio: channels handed to the mixer per channel; None for the preset's.
        act: activation of the block; stem and head keep GELU. None for the preset's.
        bias: in the block's linear layers; None for the preset's.
        gate: whether a gated block has its gate; None for the preset's.
        mlp: channel MLP of a metaformer block; None for the preset's.
        layer_scale: initial LayerScale; None for none.
        drop_path: of the last block, growing linearly from 0 at the first; None for the released value.
        readout: what the head looks at.
        head: for one answer "mlp", which is MambaOut's, or "linear"; for every pixel "upernet", which is the
            paper's, "fpn", which is that without the pyramid pooling, or "linear"; for objects "mask-rcnn",
            which is the paper's, or "mask-rcnn-slim" for small images. None for the first.
        init: of the weights, "fixed" is MambaOut's, "fixed-all" draws the mixers' linear layers like that too
            (`base.Skeleton.init_weights`); None for that of the size.
        experts: copies of a metaformer block's channel MLP that a router chooses from; 1 for a plain MLP.
        experts_per_token: how many of them every token goes through.
        moe_every: the last of every so many blocks, counted over all stages, has experts.
        balance: weight of the load-balancing loss.

    Raises:
        InputError: the task is of another kind, or the options do not fit each other.
    """

    depths: ClassVar[tuple[int, ...]]
    dims: ClassVar[tuple[int, ...]]
    stem_strides: ClassVar[tuple[int, int]] = (2, 2)
    heads: ClassVar[Mapping[Output, HeadName]] = {
        "one": "mlp",
        "per-pixel": "upernet",
        "instances": "mask-rcnn",
    }
    pattern_over: ClassVar[PatternOver] = "stage"

    def __init__(
        self,
        mixer: MixerFactory,
        task: TaskSpec,
        *,
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
        self.stem = Stem(task.channels, self.dims[0], self.stem_strides)
        stages = self.build_blocks(mixer, options, self.depths, self.dims, grid_rank=2, drop_path=drop_path)
        downsamples = [nn.Identity(), *(Downsample(*dims) for dims in pairwise(self.dims))]
        self.stages = nn.Sequential(*map(Stage, downsamples, stages))
        self.add_head(task, self.dims, readout, head)

    @classmethod
    def strides(cls) -> list[int]:
        """Pixels of the image per token, stage by stage; a side of s pixels gives ceil(s / stride) tokens."""
        return [cls.stem_strides[0] * cls.stem_strides[1] * 2**stage for stage in range(len(cls.dims))]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x.permute(0, 2, 3, 1)))  # (B, H, W, channels) -> (B, H', W', C)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x.permute(0, 2, 3, 1))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Stage(nn.Module):
    """Downsampling, then blocks of one width: (B, H, W, C) -> (B, H', W', C')."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ChannelsLastConv(nn.Conv2d):
    """A 3 x 3 convolution (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C'); no data is moved."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stem(nn.Module):
    """conv -> norm -> GELU -> conv -> norm: (B, H, W, channels) -> (B, H / 4, W / 4, dim) at strides 2, 2."""

    def __init__(self, channels: int, dim: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = ChannelsLastConv(channels, dim // 2, strides[0])
        self.norm1 = nn.LayerNorm(dim // 2, eps=NORM_EPS)
        self.act = nn.GELU()
        self.conv2 = ChannelsLastConv(dim // 2, dim, strides[1])
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """conv of stride 2 -> norm: (B, H, W, C) -> (B, H / 2, W / 2, C')."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv(in_channels, out_channels, stride=2)
        self.norm = nn.LayerNorm(out_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class MambaOutNano(MambaOut):
    """Two stages behind a stem of stride 2, for images of 16 to 32 pixels: 8 x 8 and 4 x 4 tokens at 16."""

    depths, dims, drop_path_rate, init_name = (2, 4), (32, 64), 0.0, "fan-in"
    stem_strides, dense_width = (1, 2), 64


class MambaOutPico(MambaOut):
    """All four stages at a width for small computers; images from about 64 pixels."""

    depths, dims, drop_path_rate, init_name = (2, 2, 6, 2), (32, 64, 128, 192), 0.0, "fan-in"
    dense_width = 64


class MambaOutFemto(MambaOut):
    """MambaOut-Femto."""

    depths, dims, drop_path_rate = (3, 3, 9, 3), (48, 96, 192, 288), 0.025


class MambaOutKobe(MambaOut):
    """MambaOut-Kobe, femto with 24 blocks."""

    depths, dims, drop_path_rate = (3, 3, 15, 3), (48, 96, 192, 288), 0.025


class MambaOutTiny(MambaOut):
    """MambaOut-Tiny."""

    depths, dims, drop_path_rate = (3, 3, 9, 3), (96, 192, 384, 576), 0.2


class MambaOutSmall(MambaOut):
    """MambaOut-Small."""

    depths, dims, drop_path_rate = (3, 4, 27, 3), (96, 192, 384, 576), 0.4


class MambaOutBase(MambaOut):
    """MambaOut-Base."""

    depths, dims, drop_path_rate = (3, 4, 27, 3), (128, 256, 512, 768), 0.6
