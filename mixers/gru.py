"""The gated recurrent unit as a token mixer (Cho et al., arXiv 1406.1078): PyTorch's own `nn.GRU`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixers.directions import Conv, KernelSize, Scan, ScanCore, ScanMixer
from mixers.scan_orders import scan_pattern

_TOKENS = 2**15
"""Taken at a time: cuDNN refuses a sequence of 65,536."""


class GRUCore(ScanCore):
    """One pass of a GRU with as many hidden units as channels; the hidden state is the output."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.hidden_shape = (dim,)
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        if reverse:
            u = u.flip(1)
        y = self.gru(u)[0] if u.shape[1] <= _TOKENS else self._in_parts(u)
        return y.flip(1) if reverse else y

    def _in_parts(self, u: Tensor) -> Tensor:
        hidden, ys = None, []
        for part in u.split(_TOKENS, dim=1):
            y, hidden = self.gru(part, hidden)
            ys.append(y)
        return torch.cat(ys, dim=1)

    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, C) -> (B, C) and the next state."""
        hidden = torch.gru_cell(u, hidden.to(u), *self.gru.all_weights[0])
        return hidden, hidden

    def macs(self, length: int) -> int:
        """Two matrices of 3 C x C per token."""
        return length * 6 * self.dim**2


class GRU(ScanMixer):
    """conv -> SiLU -> GRU: what `ssm` is, with a nonlinear recurrence in the place of the SSM.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        scan: "forward", "bidirectional", or on images "cross" (`mixers.scan_orders`).
        conv: "symmetric", "causal", "per-pass" or "none" (`mixers.directions`).
        kernel_size: of the convolution.

    Raises:
        ValueError: `scan` does not fit the grid.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        scan: Scan = "bidirectional",
        conv: Conv = "symmetric",
        kernel_size: KernelSize = 7,
    ) -> None:
        super().__init__(
            dim,
            grid_rank,
            pattern=scan_pattern(scan, grid_rank),
            conv=conv,
            kernel_size=kernel_size,
            make_core=lambda: GRUCore(dim),
        )
