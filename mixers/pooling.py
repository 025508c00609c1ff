"""Average pooling as a token mixer (PoolFormer, Yu et al., arXiv 2111.11418, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mixers.base import TokenMixer, require_odd, window_mask


class Pooling(TokenMixer):
    """y = mean of the neighbours - x, with the neighbours outside the grid left out of the mean.

    The input is subtracted because the block adds it back through its residual (PoolFormer, eq. 4).

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        pool_size: odd side of the window, 3 in the paper.

    Raises:
        ValueError: `pool_size` is even.
    """

    def __init__(self, dim: int, grid_rank: int, *, pool_size: Annotated[int, Field(ge=1)] = 3) -> None:
        super().__init__(dim, grid_rank)
        require_odd("pool_size", pool_size)
        self.pool_size = pool_size
        self.causal = pool_size == 1

    def forward(self, x: Tensor) -> Tensor:
        channels_first = x.movedim(-1, 1)  # (B, C, *grid)
        pool = F.avg_pool1d if self.grid_rank == 1 else F.avg_pool2d
        pooled = pool(channels_first, self.pool_size, 1, self.pool_size // 2, False, False)
        return pooled.movedim(1, -1) - x

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        window = window_mask(grid, self.pool_size // 2, self.pool_size // 2)
        return window & (window.sum(dim=1, keepdim=True) > 1)  # a token alone: x - x = 0

    def macs(self, grid: Sequence[int]) -> int:
        return 0  # additions only
