"""Multi-head softmax attention, fully visible or causal (Vaswani et al., arXiv 1706.03762).

Without `rope` no positions are added here: they are the skeleton's business, the same for every mixer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import State, as_grid, full_mask, raster_causal_mask
from mixers.conv import CausalConv
from mixers.heads import HeadDim, MultiHeadMixer
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
        return as_grid(self.merge_heads(mixed), x.shape)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        return raster_causal_mask(length) if self.causal else full_mask(length)

    def macs(self, grid: Sequence[int]) -> int:
        """4 L C D + 2 L^2 D. The causal form is counted in full: the kernels compute whole tiles."""
        return self.projection_macs(grid) + 2 * math.prod(grid) ** 2 * self.attention_dim


class CausalAttention(Attention):
    """`Attention` in which token i sees tokens 0..i (raster order on an image).

    With `qkv_conv`, queries, keys and values first go through a causal depthwise convolution, which lets
    a single layer tell what stood before a token: the one thing that it lacks for recall (arXiv 2508.19029,
    Table 2).

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        head_dim: channels per head.
        qkv_bias: biases in the input projection.
        rope: turn queries and keys by their positions.
        qkv_conv: taps of the convolution; 0 for none.

    Raises:
        ValueError: `rope` with a head that cannot be cut into pairs; an even `qkv_conv` on an image.
    """

    causal = True

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        head_dim: HeadDim = 32,
        qkv_bias: bool = True,
        rope: bool = False,
        qkv_conv: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        super().__init__(dim, grid_rank, head_dim=head_dim, qkv_bias=qkv_bias, rope=rope)
        self.conv: CausalConv | None = None
        if qkv_conv:
            self.conv = CausalConv(3 * self.attention_dim, grid_rank, kernel_size=qkv_conv)
            bound = self.conv.weight.shape[1] ** -0.5  # torch's and Mamba's: 0.02 would silence q, k and v
            nn.init.uniform_(self.conv.weight, -bound, bound)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x)
        return self.in_heads(qkv if self.conv is None else self.conv(qkv))

    def macs(self, grid: Sequence[int]) -> int:
        return super().macs(grid) + (0 if self.conv is None else self.conv.macs(grid))

    def state_size(self, length: int) -> int | None:
        """The key-value cache, which grows with the length, and what the convolution keeps."""
        if self.grid_rank == 2:
            return None
        kept = 0 if self.conv is None else self.conv.state_size(length) or 0
        return 2 * length * self.attention_dim + kept

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        empty = torch.empty(batch_size, self.num_heads, 0, self.head_dim, device=device)
        kept = () if self.conv is None else self.conv.init_state(batch_size, device)
        return (empty, empty, *kept)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        cached_keys, cached_values, kept = state[0], state[1], state[2:]
        qkv = self.qkv(x)  # (B, 3 D)
        if self.conv is not None:
            qkv, kept = self.conv.step(qkv, kept)
        q, k, v = self.in_heads(qkv[:, None])  # (B, heads, 1, head_dim)
        keys = torch.cat((cached_keys.to(k), k), dim=2)  # (B, heads, t, head_dim)
        values = torch.cat((cached_values.to(v), v), dim=2)
        y = self.merge_heads(attend_last(q, keys, values, rope=self.rope))[:, 0]
        return y, (keys, values, *kept)


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
