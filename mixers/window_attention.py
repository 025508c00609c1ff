"""Softmax attention to the neighbourhood of a token.

On a sequence it is the sliding window of Longformer (Beltagy et al., arXiv 2004.05150) and, causal, of
Mistral (Jiang et al., arXiv 2310.06825); on an image the square window around every pixel (stand-alone
self-attention, Ramachandran et al., arXiv 1906.05909). Windows slide, token by token: nothing is cut
into tiles that do not see each other, and a window at the border is cut off, not shifted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mixers.attention import attend_last
from mixers.base import State, as_grid, raster_causal_mask, window_mask
from mixers.heads import HeadDim, MultiHeadMixer

TILES = {1: 64, 2: 8}  # queries that are computed together along an axis, by the rank of the grid
OUTSIDE = -(2**30)  # coordinate of padding: so far away that only other padding lies in its window


class WindowAttention(MultiHeadMixer):
    """`Attention` in which token i sees the tokens j of a window.

    Symmetric: |i - j| <= window along every axis, (2 window + 1)^2 tokens of an image. Causal: on a
    sequence the last `window` tokens, i - window < j <= i; on an image those of the symmetric window up
    to i in raster order.

    Queries go in tiles, each with the keys within its tile's reach, and the mask cuts every window out
    exactly. So what is computed grows with the length, not with its square, but is more than the
    definition needs, which is what `macs` counts.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        window: its reach. The default is that of the 7 x 7 convolution on an image and 32 on a
            sequence, 64 if it is causal.
        causal: see no later token.
        head_dim: channels per head.
        qkv_bias: biases in the input projection.
        rope: turn queries and keys by their positions (`mixers.rope`).

    Raises:
        ValueError: `rope` with a head that cannot be cut into pairs.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        window: Annotated[int, Field(ge=1)] = 3,
        causal: bool = False,
        head_dim: HeadDim = 32,
        qkv_bias: bool = True,
        rope: bool = False,
    ) -> None:
        super().__init__(dim, grid_rank, head_dim=head_dim, qkv_bias=qkv_bias, rope=rope)
        self.window = window
        self.causal = causal
        on_causal_sequence = causal and grid_rank == 1
        self.before = window - 1 if on_causal_sequence else window
        self.after = 0 if on_causal_sequence else window

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        window = {} if grid_rank == 2 else {"window": 64 if causal else 32}
        return {**window, "causal": causal}

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        q, k, v = self.split_heads(x)
        q, k, v = (each.unflatten(2, grid) for each in (self.turn(q, grid), self.turn(k, grid), v))
        place = coordinates(grid, x.device)[None, None]  # (1, 1, *grid, rank + 1)
        # (B, heads, tiles, queries or keys of a tile, head_dim or rank + 1)
        q, q_place = self._tiles(q, 0.0, halo=False), self._tiles(place, OUTSIDE, halo=False)
        k, v = self._tiles(k, 0.0, halo=True), self._tiles(v, 0.0, halo=True)
        mask = self._sees(q_place, self._tiles(place, OUTSIDE, halo=True))
        mask = mask.expand(-1, self.num_heads, -1, -1, -1).flatten(1, 2)  # (1, heads * tiles, queries, keys)
        q, k, v = (each.flatten(1, 2) for each in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = self._untile(mixed.unflatten(1, (self.num_heads, -1)), grid)
        return as_grid(self.merge_heads(mixed), x.shape)

    def _tiling(self, size: int) -> tuple[int, int, int]:
        """Along an axis: queries of a tile, and how far its keys go before and after them."""
        tile = max(TILES[self.grid_rank], self.before + self.after)
        if size <= tile + self.before + self.after:
            return size, 0, 0  # one tile of everything is no larger
        return tile, self.before, self.after

    def _tiles(self, x: Tensor, fill: float, *, halo: bool) -> Tensor:
        """(B, h, *grid, d) -> (B, h, tiles, tokens of a tile, d), its surroundings included with `halo`."""
        for axis in range(2, 2 + self.grid_rank):
            size = x.shape[axis]
            tile, before, after = self._tiling(size)
            if not halo:
                before = after = 0
            padding = [0, 0] * (x.ndim - 1 - axis) + [before, after + -size % tile]
            x = F.pad(x, padding, value=fill).unfold(axis, before + tile + after, tile)
        # (B, h, *tiles, d, *tokens)
        return x.flatten(3 + self.grid_rank).flatten(2, 1 + self.grid_rank).mT

    def _untile(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, h, tiles, queries of a tile, d) -> (B, h, L, d)."""
        sides = [self._tiling(size)[0] for size in grid]
        counts = [-(-size // side) for size, side in zip(grid, sides, strict=True)]
        x = x.unflatten(3, sides).unflatten(2, counts)  # (B, h, *tiles, *queries, d)
        for axis, size in enumerate(grid):
            # the queries' axis moves next to that of its tiles, and the filling behind the grid goes
            x = x.movedim(2 + len(grid), 3 + axis).flatten(2 + axis, 3 + axis).narrow(2 + axis, 0, size)
        return x.flatten(2, 1 + len(grid))

    def _sees(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Coordinates (..., queries, rank + 1) and (..., keys, rank + 1) -> (..., queries, keys) bool."""
        offset = keys[..., None, :, :] - queries[..., :, None, :]
        near = ((offset >= -self.before) & (offset <= self.after))[..., :-1].all(-1)
        return near & (offset[..., -1] <= 0) if self.causal else near

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        mask = window_mask(grid, self.before, self.after)
        return mask & raster_causal_mask(math.prod(grid)) if self.causal else mask

    def macs(self, grid: Sequence[int]) -> int:
        """4 L C D + 2 D for every pair of a token and one that it sees; what is masked is not counted."""
        pairs = math.prod(_pairs(size, self.before) + _pairs(size, self.after) - size for size in grid)
        if self.causal and self.grid_rank == 2:
            pairs = (pairs + math.prod(grid)) // 2
        return self.projection_macs(grid) + 2 * pairs * self.attention_dim

    def state_size(self, length: int) -> int | None:
        """The keys and values of the last `window` tokens."""
        if not self.causal or self.grid_rank == 2:
            return None
        return 2 * min(length, self.window) * self.attention_dim

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        empty = torch.empty(batch_size, self.num_heads, 0, self.head_dim, device=device)
        return empty, empty

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        q, k, v = self.split_heads(x[:, None])  # (B, heads, 1, head_dim)
        keys = torch.cat((state[0].to(k), k), dim=2)[:, :, -self.window :]
        values = torch.cat((state[1].to(v), v), dim=2)[:, :, -self.window :]
        return self.merge_heads(attend_last(q, keys, values, rope=self.rope))[:, 0], (keys, values)


def coordinates(grid: Sequence[int], device: torch.device) -> Tensor:
    """(*grid, rank + 1): where a token is along every axis, and in raster order."""
    axes = [torch.arange(size, dtype=torch.int32, device=device) for size in grid]
    order = torch.arange(math.prod(grid), dtype=torch.int32, device=device).view(*grid)
    return torch.stack([*torch.meshgrid(*axes, indexing="ij"), order], dim=-1)


def _pairs(size: int, reach: int) -> int:
    """Pairs of positions 0 <= j - i <= reach on an axis."""
    reach = min(reach, size - 1)
    return size * (reach + 1) - reach * (reach + 1) // 2
