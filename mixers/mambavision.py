"""MambaVision's mixer (Hatamizadeh & Kautz, arXiv 2407.08083).

    X1 = Scan(silu(Conv(Linear(X)))),   X2 = silu(Conv(Linear(X))),   Y = Linear(Concat(X1, X2))

Half of the channels are scanned, forward and without a gate; the other half bypasses the SSM. Both are
first convolved, symmetrically, where Mamba has a causal convolution. That makes the mixer neither causal nor
fully visible: through three taps a token sees the one after it, and no other later one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import TokenMixer, as_grid, as_sequence, raster_causal_mask, require_odd, window_mask
from mixers.conv import depthwise_conv
from mixers.directions import KernelSize
from mixers.s6 import SelectiveScan


class DoublyBiasedScan(SelectiveScan):
    """Its Delta is softplus(W u + 2 bias)."""

    @property
    def delta_bias(self) -> Tensor:
        return 2 * self.dt_proj.bias


class MambaVision(TokenMixer):
    """Linear C -> C, symmetric convolutions, SiLU, one forward scan over half of the channels, Linear C -> C.

    An image is read in raster order, the convolutions included: they are along the sequence, as in the paper.

    The released code draws the weights of all linear maps with a standard deviation of 0.02; a skeleton's
    init=fixed-all does that here.

    Args:
        dim: C, even.
        grid_rank: 1 or 2.
        d_state: N.
        kernel_size: of the convolutions, odd; a token sees `kernel_size // 2` later ones.
        zero_dt_bias: reproduce a slip in the released models, whose initialisation sets every bias to zero,
            that of Delta included: steps then start at softplus(0) = 0.69 and not in [0.001, 0.1].
        double_dt_bias: reproduce another in their forward pass, which adds the bias of Delta in `dt_proj` and
            again in the scan: a bias trained there is half of one trained without.

    Raises:
        ValueError: C is odd, or `kernel_size` even.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        d_state: Annotated[int, Field(ge=1, le=256)] = 8,
        kernel_size: KernelSize = 3,
        zero_dt_bias: bool = False,
        double_dt_bias: bool = False,
    ) -> None:
        super().__init__(dim, grid_rank)
        if dim % 2:
            raise ValueError(f"MambaVision scans half of the channels: their number must be even, got {dim}")
        require_odd("kernel_size", kernel_size)
        self.reach = kernel_size // 2
        self.in_proj = nn.Linear(dim, dim, bias=False)
        bound = kernel_size**-0.5  # torch's own initial values, which the released code keeps
        self.dwconv = nn.Parameter(torch.empty(dim, 1, kernel_size).uniform_(-bound, bound))
        dt_rank = math.ceil(dim / 16)  # of all channels, not of the half that is scanned
        kind = DoublyBiasedScan if double_dt_bias else SelectiveScan
        self.scan = kind(dim // 2, d_state, dt_rank=dt_rank)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        if zero_dt_bias:
            nn.init.zeros_(self.scan.dt_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.in_proj(as_sequence(x))  # (B, L, C)
        tokens = depthwise_conv(tokens, self.dwconv, None, padding=(self.reach,))
        scanned, beside = F.silu(tokens).chunk(2, dim=-1)
        mixed: Tensor = self.out_proj(torch.cat((self.scan(scanned), beside), dim=-1))
        return as_grid(mixed, x.shape)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        near = window_mask((length,), self.reach, self.reach)
        return (raster_causal_mask(length).float() @ near.float()) > 0

    def macs(self, grid: Sequence[int]) -> int:
        """2 C^2 + k C per token, and the scan of C / 2 channels."""
        length = math.prod(grid)
        linear = 2 * self.dim**2 + self.dwconv.numel()
        return length * linear + self.scan.macs(length)

    def no_weight_decay(self) -> set[str]:
        return {f"scan.{name}" for name in self.scan.no_weight_decay()}
