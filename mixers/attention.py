"""Multi-head softmax attention, fully visible or causal (Vaswani et al., arXiv 1706.03762).

Without `rope` no positions are added here: where they are is the skeleton's business, the same for
every mixer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.base import State, raster_causal_mask
from mixers.heads import MultiHeadMixer
from mixers.rope import rotary_angles, rotate


class Attention(MultiHeadMixer):
    """softmax(Q K^T / sqrt(head_dim)) V over all tokens, then an output projection.

    Options are those of `MultiHeadMixer`.
    """

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        q, k, v = self.split_heads(x)
        q, k = self.turn(q, grid), self.turn(k, grid)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, L, head_dim)
        return self.merge_heads(mixed).view(x.shape)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        return raster_causal_mask(length) if self.causal else torch.ones(length, length, dtype=torch.bool)

    def macs(self, grid: Sequence[int]) -> int:
        """4 L C D + 2 L^2 D. The causal form is counted in full: the kernels compute whole tiles."""
        return self.projection_macs(grid) + 2 * math.prod(grid) ** 2 * self.attention_dim


class CausalAttention(Attention):
    """`Attention` in which token i sees tokens 0..i (raster order on an image)."""

    causal = True

    def state_size(self, length: int) -> int | None:
        """The key-value cache, which grows with the length."""
        return 2 * length * self.attention_dim if self.grid_rank == 1 else None

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.grid_rank == 2:
            return super().init_state(batch_size, device)
        empty = torch.empty(batch_size, self.num_heads, 0, self.head_dim, device=device)
        return empty, empty

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.grid_rank == 2:
            return super().step(x, state)
        q, k, v = self.split_heads(x[:, None])  # (B, heads, 1, head_dim)
        keys = torch.cat((state[0].to(k), k), dim=2)  # (B, heads, t, head_dim)
        values = torch.cat((state[1].to(v), v), dim=2)
        return self.merge_heads(attend_last(q, keys, values, rope=self.rope))[:, 0], (keys, values)


def attend_last(q: Tensor, keys: Tensor, values: Tensor, *, rope: bool) -> Tensor:
    """The last token's attention to a cache: (B, heads, 1, head_dim), with keys (B, heads, t, head_dim).

    The cached keys have not been turned. Scores depend on offsets alone, so it is enough to count
    positions from the first key of the cache, whatever its place in the sequence.
    """
    if rope:
        dtype = torch.promote_types(q.dtype, torch.float32)
        angles = rotary_angles(keys.shape[2:3], keys.shape[3], dtype=dtype, device=keys.device)
        q, keys = rotate(q, angles[-1:]), rotate(keys, angles)
    # Without is_causal: its mask is aligned top-left, so one query would see only the first key.
    return F.scaled_dot_product_attention(q, keys, values)
