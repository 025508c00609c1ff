"""MILA's linear attention (Han et al., "Demystify Mamba in Vision", arXiv 2405.16605).

MILA reads Mamba as linear attention with a forget gate in another block, and replaces the forget gate,
which forces an image into an order, by positions: rotary ones and a local one, LePE. The values are the
input itself and there is no output projection: those, the gate and the norm are the block's, as for `ssm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixers.base import TokenMixer, as_grid, as_sequence, full_mask
from mixers.conv import DepthwiseConv
from mixers.heads import HeadDim
from mixers.linear_attention import elu_plus_one, linear_attention
from mixers.rope import check_rope, rotary_angles, rotate

LEPE_KERNEL = 3


class MILAAttention(TokenMixer):
    """Linear attention of all tokens to all, V = X, plus a depthwise convolution of the values (LePE).

    Rotary positions turn the C channels of queries and keys before they are cut into heads, so that heads
    have frequencies of their own; they turn the numerator only. (The released code adds 1e-6 to the
    denominator; `mixers.linear_attention` bounds it below.)

    Args:
        dim: channels C.
        grid_rank: 1 or 2.
        head_dim: channels per head; with 32 the heads of the released models.
        rope: turn queries and keys.

    Raises:
        ValueError: C is not a multiple of `head_dim`, or cannot be cut into pairs for `rope`.
    """

    def __init__(self, dim: int, grid_rank: int, *, head_dim: HeadDim = 32, rope: bool = True) -> None:
        super().__init__(dim, grid_rank)
        self.head_dim = min(head_dim, dim)
        if dim % self.head_dim != 0:
            raise ValueError(f"the {dim} channels must be a multiple of head_dim, got {head_dim}")
        if rope:
            check_rope(dim, grid_rank)
        self.rope = rope
        self.qk = nn.Linear(dim, 2 * dim)
        self.lepe = DepthwiseConv(dim, grid_rank, kernel_size=LEPE_KERNEL)

    def forward(self, x: Tensor) -> Tensor:
        grid, dtype = x.shape[1:-1], torch.promote_types(x.dtype, torch.float32)
        q, k = elu_plus_one(self.qk(as_sequence(x)).to(dtype)).chunk(2, dim=-1)  # (B, L, C)
        turned = q, k
        if self.rope:
            angles = rotary_angles(grid, self.dim, dtype=dtype, device=x.device)
            turned = rotate(q, angles), rotate(k, angles)
        q, k, q_turned, k_turned, v = (
            self._heads(each) for each in (q, k, *turned, as_sequence(x).to(dtype))
        )
        mixed = linear_attention((q, k), (q_turned, k_turned), v)  # (B, heads, L, head_dim)
        return as_grid(mixed.transpose(1, 2).flatten(2).to(x.dtype), x.shape) + self.lepe(x)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return full_mask(math.prod(grid))

    def macs(self, grid: Sequence[int]) -> int:
        """2 L C^2 + 2 L C head_dim + L C + LePE's: projection, numerator, denominator, convolution."""
        attention = math.prod(grid) * self.dim * (2 * self.dim + 2 * self.head_dim + 1)
        return attention + self.lepe.macs(grid)
