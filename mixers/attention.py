"""Multi-head softmax attention, fully visible or causal (Vaswani et al., arXiv 1706.03762).

Shapes follow MetaFormer's attention (arXiv 2210.13452): the head size is fixed and the number of
heads follows from the width. No positions are added here: where they are is the skeleton's business,
the same for every mixer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import State, TokenMixer, as_sequence, raster_causal_mask


class Attention(TokenMixer):
    """softmax(Q K^T / sqrt(head_dim)) V over all tokens, then an output projection.

    The number of heads is `dim // head_dim`, at least 1; a `dim` that is not a multiple is projected
    to the multiple below it.

    Args:
        dim: channels.
        grid_rank: 1 or 2; an image is read as the sequence of its pixels in raster order.
        head_dim: channels per head.
        qkv_bias: biases in the input projection, as in ViT.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        head_dim: Annotated[int, Field(ge=1)] = 32,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, grid_rank)
        self.head_dim = min(head_dim, dim)
        self.num_heads = dim // self.head_dim
        self.attention_dim = self.num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * self.attention_dim, bias=qkv_bias)
        self.proj = nn.Linear(self.attention_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split_heads(as_sequence(x))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, L, head_dim)
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)

    def _split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, C) -> three of (B, heads, L, head_dim)."""
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        return raster_causal_mask(length) if self.causal else torch.ones(length, length, dtype=torch.bool)

    def macs(self, grid: Sequence[int]) -> int:
        """4 L C D + 2 L^2 D. The causal form is counted in full: the kernels compute whole tiles."""
        length = math.prod(grid)
        return 4 * length * self.dim * self.attention_dim + 2 * length**2 * self.attention_dim


class CausalAttention(Attention):
    """`Attention` in which token i sees tokens 0..i (raster order on an image)."""

    causal = True

    def state_size(self, length: int) -> int | None:
        """The key-value cache, which grows with the length."""
        return 2 * length * self.attention_dim if self.grid_rank == 1 else None

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        empty = torch.empty(batch_size, self.num_heads, 0, self.head_dim, device=device)
        return empty, empty

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._split_heads(x[:, None, :])
        keys = torch.cat((state[0].to(k), k), dim=2)  # (B, heads, t, head_dim)
        values = torch.cat((state[1].to(v), v), dim=2)
        # Without is_causal: its mask is aligned top-left, so one query would see only the first key.
        mixed = F.scaled_dot_product_attention(q, keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(1)), (keys, values)
