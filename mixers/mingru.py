"""minGRU, a GRU whose gates do not look at the state (Feng et al., arXiv 2410.01201, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.directions import Conv, KernelSize, Scan, ScanCore, ScanMixer
from mixers.scan import selective_scan
from mixers.scan_orders import scan_pattern

Candidate = Literal["linear", "positive"]


class MinGRUCore(ScanCore):
    """One pass of h[t] = (1 - z[t]) h[t-1] + z[t] c[t], with z = sigmoid(W_z u) and a candidate c = W_h u.

    This is a selective scan of one state per channel: with A = -1 and Delta = softplus(k), where k = W_z u,
    the decay exp(Delta A) is sigmoid(-k) = 1 - z. So it runs on the kernels of `mixers.scan`, without the
    logarithms of h that the paper's parallel form needs.

    Args:
        dim: channels.
        candidate: "linear", c as above, or "positive", g(W_h u) with g(v) = v + 1/2 for v >= 0 and
            sigmoid(v) below, as in the paper's version in log-space.
    """

    operation = "scan"

    def __init__(self, dim: int, *, candidate: Candidate = "linear") -> None:
        super().__init__()
        self.dim = dim
        self.hidden_shape = (dim,)
        self.candidate = candidate
        self.to_z = nn.Linear(dim, dim)
        self.to_h = nn.Linear(dim, dim)

    def _candidate(self, u: Tensor) -> Tensor:
        c: Tensor = self.to_h(u)
        return torch.where(c >= 0, c + 0.5, c.sigmoid()) if self.candidate == "positive" else c

    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        k = self.to_z(u)
        # The scan adds Delta * x where z * c is wanted. sigmoid(k) / softplus(k) is 1 to the last bit
        # where both underflow.
        bounded = k.to(torch.promote_types(k.dtype, torch.float32)).clamp(min=-40)
        x = self._candidate(u) * bounded.sigmoid() / F.softplus(bounded)
        A, one = -k.new_ones(self.dim, 1), k.new_ones(1, 1, 1)
        return selective_scan(x, k, A, one, one, reverse=reverse, backend=self.backend).to(u.dtype)

    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, C) -> (B, C) and the next state."""
        z = self.to_z(u).sigmoid()
        hidden = (1 - z) * hidden + z * self._candidate(u)
        return hidden.to(u.dtype), hidden

    def macs(self, length: int) -> int:
        """Two matrices of C x C per token, and 3 MACs per (token, channel) in the scan."""
        return length * (2 * self.dim**2 + 3 * self.dim)


class MinGRU(ScanMixer):
    """conv -> SiLU -> minGRU: what `ssm` is, with minGRU in the place of the SSM.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        candidate: "linear" or "positive" (`MinGRUCore`).
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
        candidate: Candidate = "linear",
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
            make_core=lambda: MinGRUCore(dim, candidate=candidate),
        )
