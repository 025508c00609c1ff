"""Separable convolution with its channels widened (ConvFormer, Yu et al., arXiv 2210.13452).

The block of MobileNetV2 (Sandler et al., arXiv 1801.04381) as a token mixer. Unlike `conv`, it also
mixes channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mixers.base import TokenMixer, require_odd, window_mask
from mixers.conv import INIT_STD, depthwise_conv


class StarReLU(nn.Module):
    """s relu(x)^2 + b with learned numbers s and b, which start at 1 and 0 (arXiv 2210.13452)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.relu().square() + self.bias


class SepConv(TokenMixer):
    """Linear C -> 2 C, StarReLU, depthwise convolution, Linear 2 C -> C; no biases; zeros around the grid.

    The kernel starts like that of `conv`, the linear maps like those of `attention`, by their number of
    inputs. The paper's code draws all of them with a standard deviation of 0.02; squared by the activation
    that lets the output of a few dozen channels vanish.

    Args:
        dim: C.
        grid_rank: 1 for k taps, 2 for k x k.
        kernel_size: k, odd.
        expansion_ratio: channels of the convolution per channel, 2 in the paper.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        kernel_size: Annotated[int, Field(ge=1)] = 7,
        expansion_ratio: Annotated[float, Field(ge=1)] = 2.0,
    ) -> None:
        super().__init__(dim, grid_rank)
        require_odd("kernel_size", kernel_size)
        hidden = int(expansion_ratio * dim)
        self.reach = kernel_size // 2
        self.causal = kernel_size == 1
        self.pwconv1 = nn.Linear(dim, hidden, bias=False)
        self.act = StarReLU()
        self.dwconv = nn.Parameter(torch.empty(hidden, 1, *[kernel_size] * grid_rank))
        self.pwconv2 = nn.Linear(hidden, dim, bias=False)
        nn.init.trunc_normal_(self.dwconv, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.pwconv1(x))
        return self.pwconv2(depthwise_conv(hidden, self.dwconv, None, (self.reach,) * self.grid_rank))

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return window_mask(grid, self.reach, self.reach)

    def macs(self, grid: Sequence[int]) -> int:
        """4 C^2 + 2 C k^2 per token (k on a sequence), taps that meet the zeros around the grid included."""
        weights = self.pwconv1.weight.numel() + self.dwconv.numel() + self.pwconv2.weight.numel()
        return math.prod(grid) * weights

    def no_weight_decay(self) -> set[str]:
        """StarReLU's two numbers."""
        return {"act.scale", "act.bias"}
