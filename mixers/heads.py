"""What softmax and linear attention share: queries, keys and values in heads, and an output projection.

Shapes follow MetaFormer's attention (arXiv 2210.13452): the head size is fixed and the number of heads
follows from the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mixers.base import TokenMixer, as_sequence
from mixers.rope import check_rope, rotary_angles, rotate

HeadDim = Annotated[int, Field(ge=1)]


class MultiHeadMixer(TokenMixer):
    """The projections around an attention of any kind.

    The number of heads is `dim // head_dim`, at least 1; a `dim` that is not a multiple is projected
    to the multiple below it.

    Args:
        dim: channels.
        grid_rank: 1 or 2; an image is read as the sequence of its pixels in raster order.
        head_dim: channels per head.
        qkv_bias: biases in the input projection, as in ViT.
        rope: turn queries and keys by their positions (`mixers.rope`).

    Raises:
        ValueError: `rope` with a head that cannot be cut into pairs.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        head_dim: HeadDim = 32,
        qkv_bias: bool = True,
        rope: bool = False,
    ) -> None:
        super().__init__(dim, grid_rank)
        self.head_dim = min(head_dim, dim)
        if rope:
            check_rope(self.head_dim, grid_rank)
        self.rope = rope
        self.num_heads = dim // self.head_dim
        self.attention_dim = self.num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * self.attention_dim, bias=qkv_bias)
        self.proj = nn.Linear(self.attention_dim, dim)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, *grid, C) -> queries, keys and values, each (B, heads, L, head_dim)."""
        return self.in_heads(self.qkv(x))

    def in_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, *grid, 3 D) -> queries, keys and values, each (B, heads, L, head_dim)."""
        qkv = as_sequence(qkv).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, heads, L, head_dim) -> (B, L, C), through the output projection."""
        return self.proj(x.transpose(1, 2).flatten(2))

    def turn(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """RoPE on (B, heads, L, head_dim), or nothing without the option."""
        if not self.rope:
            return x
        dtype = torch.promote_types(x.dtype, torch.float32)
        return rotate(x, rotary_angles(grid, self.head_dim, dtype=dtype, device=x.device))

    def projection_macs(self, grid: Sequence[int]) -> int:
        """4 L C D, for D channels in all heads together."""
        return 4 * math.prod(grid) * self.dim * self.attention_dim
