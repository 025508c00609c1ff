"""PlainMamba's continuous scan (Yang et al., arXiv 2403.17695).

Four passes follow rows and columns as a snake, so that every step goes to a neighbour, and share one set
of parameters. They are told apart by the direction: the move that leads to a token adds a learned vector to
that token's B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixers.s6 import Selective, SelectiveScan
from mixers.scan_orders import Order, moves, snake_columns, snake_rows

MOVES = 5  # start, right, left, up, down
SNAKES = (snake_rows, snake_columns)
Selected = tuple[Tensor, Tensor, Tensor]  # Delta, B, C


class ContinuousScan(SelectiveScan):
    """All four passes; their mean.

    The released code adds the bias of Delta twice, in `dt_proj` and in the scan, so that its steps start in
    [0.000001, 0.011]. Here it is added once, with `raster_params` too, and they start in [0.001, 0.1].

    Args:
        dim: channels.
        d_state: N.
        selective: which of Delta, B and C depend on the input.
        raster_params: at step t, use Delta, B and C of the t-th token in raster order instead of those of
            the token visited. The released code does so; the paper does not.
    """

    def __init__(
        self, dim: int, d_state: int, *, selective: Selective = "all", raster_params: bool = False
    ) -> None:
        super().__init__(dim, d_state, selective=selective)
        self.raster_params = raster_params
        self.move_B = nn.Parameter(torch.empty(MOVES, d_state))
        nn.init.trunc_normal_(self.move_B, std=0.02)

    def run_snakes(self, u: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, L, C) of an image (H, W) -> (B, L, C)."""
        selected = self.select(u)
        rows, columns = (self._there_and_back(u, selected, make(grid, u.device), grid[1]) for make in SNAKES)
        return (rows + columns) / (2 * len(SNAKES))

    def _there_and_back(self, u: Tensor, selected: Selected, order: Order, width: int) -> Tensor:
        """Both ways along an order, added up: (B, L, C) -> (B, L, C), in raster order.

        Args:
            u: (B, L, C).
            selected: Delta (B, L, C), B and C (B, L, N) of each token in raster order.
            order: a snake over all L tokens.
            width: of the image.
        """
        if self.raster_params:  # token by token as the state goes, so reversed for the way back
            delta, B, C = selected
            delta_back, B_back, C_back = (each.flip(1) for each in selected)
        else:
            delta, B, C = delta_back, B_back, C_back = [order.scan(each)[0] for each in selected]
        there = self.move_B[moves(order.tokens, width)]
        back = self.move_B[moves(order.tokens.flip(0), width).flip(0)]
        (visited,) = order.scan(u)
        y = self.scan(visited, delta, B + there, C, False)
        return order.unscan([y + self.scan(visited, delta_back, B_back + back, C_back, True)])

    def macs(self, length: int) -> int:
        """One projection, four scans."""
        return self.projection_macs(length) + 2 * len(SNAKES) * self.scan_macs(length)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"move_B"}
