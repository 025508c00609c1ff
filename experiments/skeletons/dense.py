"""Heads of dense tasks: from a pyramid of features to the classes of every pixel.

A pyramid is a list of maps (B, h, w, C) of one image, the finest first, each already normalised. Logits
come at the finest map's resolution, (B, h, w, classes); whoever scores them resizes them to the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLED = (1, 2, 3, 6)
"""Sides of the grids that PSPNet pools the last map to (arXiv 1612.01105, section 3.2)."""
AUXILIARY_WIDTH = 256
DROPOUT = 0.1


class PerPixel(nn.Module):
    """One linear layer on all maps of the pyramid, resized to the finest and concatenated.

    Resizing and a linear layer commute, so each map gets its part of the layer at its own resolution. A
    pixel sees the features at its place and nothing else: what it answers is what the backbone brought.

    Args:
        dims: channels of each map.
        classes: width of the output.
    """

    def __init__(self, dims: Sequence[int], classes: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(dim, classes, bias=level == 0) for level, dim in enumerate(dims))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits = [channels_first(part(x)) for part, x in zip(self.parts, maps, strict=True)]
        return channels_last(torch.stack(_to_the_finest(logits)).sum(0))


class UPerNet(nn.Module):
    """Pyramid pooling on the last map, a feature pyramid over all, one convolution over their concatenation.

    Xiao et al., arXiv 1807.10221, with the details of mmsegmentation's `UPerHead` and, as auxiliary head,
    `FCNHead`: batch norm and ReLU behind every convolution, no bias, bilinear resizing, dropout before the
    classifier. Any number of maps of any sizes; the pyramid pooling tells every pixel about the whole image.

    Args:
        dims: channels of each map.
        classes: width of the output.
        width: channels of the head, 512 in the papers.
        pooling: without the pyramid pooling the last map is treated like the others.

    In training it returns the logits and those of the auxiliary head, which reads the last map but one.
    """

    def __init__(self, dims: Sequence[int], classes: int, width: int, pooling: bool) -> None:
        super().__init__()
        self.pool = PyramidPooling(dims[-1], width) if pooling else None
        self.lateral = nn.ModuleList(ConvNormAct(dim, width, 1) for dim in dims[: -1 if pooling else None])
        self.smooth = nn.ModuleList(ConvNormAct(width, width, 3) for _ in self.lateral)
        self.fuse = ConvNormAct(len(dims) * width, width, 3)
        self.classifier = _classifier(width, classes)
        auxiliary_width = min(width, AUXILIARY_WIDTH)
        self.auxiliary = nn.Sequential(
            ConvNormAct(dims[-2:][0], auxiliary_width, 3), *_classifier(auxiliary_width, classes)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        x = [channels_first(each) for each in maps]
        logits = channels_last(self.classifier(self.fuse(torch.cat(self._pyramid(x), dim=1))))
        return (logits, channels_last(self.auxiliary(x[-2:][0]))) if self.training else logits

    def _pyramid(self, maps: list[Tensor]) -> list[Tensor]:
        """Every map in `width` channels at the finest one's size, knowing of those coarser than itself."""
        merged = [conv(x) for conv, x in zip(self.lateral, maps, strict=False)]
        pooled = [] if self.pool is None else [self.pool(maps[-1])]
        merged += pooled
        for coarse, fine in pairwise(reversed(range(len(merged)))):
            merged[fine] = merged[fine] + resize(merged[coarse], merged[fine].shape[-2:])
        smooth = [conv(x) for conv, x in zip(self.smooth, merged, strict=False)]
        return _to_the_finest(smooth + pooled)


class PyramidPooling(nn.Module):
    """The map beside its means over grids of `POOLED` cells, then a convolution.

    (B, C, h, w) -> (B, width, h, w).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNormAct(dim, width, 1)) for side in POOLED
        )
        self.merge = ConvNormAct(dim + len(POOLED) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [resize(level(x), x.shape[-2:]) for level in self.levels]
        return self.merge(torch.cat([x, *pooled], dim=1))


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, ReLU: (B, C, h, w) -> (B, C', h, w)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()


def _classifier(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, kernel_size=1))


def _to_the_finest(maps: Sequence[Tensor]) -> list[Tensor]:
    return [resize(x, maps[0].shape[-2:]) for x in maps]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear; itself where it has that size."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def channels_first(x: Tensor) -> Tensor:
    """(B, h, w, C) -> (B, C, h, w), a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, C), a view."""
    return x.permute(0, 2, 3, 1)
