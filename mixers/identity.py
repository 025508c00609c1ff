"""No mixing at all: the floor of every ladder (MetaFormer baselines, Yu et al., arXiv 2210.13452)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixers.base import State, TokenMixer


class Identity(TokenMixer):
    """y = x. Each token sees only itself."""

    causal = True

    def forward(self, x: Tensor) -> Tensor:
        return x

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return torch.eye(math.prod(grid), dtype=torch.bool)

    def macs(self, grid: Sequence[int]) -> int:
        return 0

    def state_size(self, length: int) -> int:
        return 0

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        return ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return x, state
