"""S6, the selective state space model inside Mamba (Gu & Dao, arXiv 2312.00752), and its ablations.

Symbols beyond `mixers.base`: R rank of the Delta projection, N state size per channel.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.directions import ScanCore
from mixers.initial import initial_delta, inverse_softplus, parameter
from mixers.scan import selective_scan, selective_scan_step

Selective = Literal["all", "none", "delta", "B", "C", "delta+B", "delta+C", "B+C"]


class SelectiveScan(ScanCore):
    """One pass of the SSM: u -> (Delta, B, C) -> selective scan -> + D u.

    Initialised as in the Mamba paper and its code: A_log = log(1..N) in every channel (S4D-real),
    D = 1, Delta's weight uniform in +-R^-1/2, Delta's bias such that softplus(bias) is log-uniform in
    [0.001, 0.1].

    What is not selective is a learned constant: Delta its bias alone, one step size per channel; B and C
    one vector (1, N) for all channels, drawn as in S4D (arXiv 2206.11893): ones and a normal. Mamba's
    table 7 has these ablations. With none of the three selective it is a diagonal, real,
    time-invariant SSM, a convolution. All variants make the draws of "all" and keep what they use, so that
    two arms that differ in the selection alone start from the same weights.

    Args:
        dim: channels.
        d_state: N.
        selective: which of Delta, B and C depend on the input.
        dt_rank: R; None for `dim / 16` rounded up. Mamba's R is the width of its model over 16: where a block
            expands by 2 and hands all of it to the mixer, None is twice Mamba's. `mamba` has Mamba's.
    """

    operation = "scan"

    def __init__(
        self, dim: int, d_state: int, *, selective: Selective = "all", dt_rank: int | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.hidden_shape = (dim, d_state)
        dt_rank = dt_rank or math.ceil(dim / 16)
        widths = {"delta": dt_rank, "B": d_state, "C": d_state}
        chosen = list(widths) if selective == "all" else selective.split("+")
        self.widths = {name: width for name, width in widths.items() if name in chosen}

        x_proj = nn.Linear(dim, sum(widths.values()), bias=False)
        dt_proj = nn.Linear(dt_rank, dim)
        self.A_log = parameter(lambda: torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))
        nn.init.uniform_(dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        dt_proj.bias = parameter(lambda: inverse_softplus(initial_delta(dim)))

        rows = zip(widths, x_proj.weight.detach().split(list(widths.values())), strict=True)
        kept = [part for name, part in rows if name in self.widths]
        if kept:
            self.x_proj = x_proj
            if len(kept) < len(widths):
                self.x_proj.weight = nn.Parameter(torch.cat(kept))
                self.x_proj.out_features = len(self.x_proj.weight)
        if "delta" in self.widths:
            self.dt_proj = dt_proj
        else:
            self.dt_bias = dt_proj.bias
        if "B" not in self.widths:
            self.B = nn.Parameter(torch.ones(1, d_state))
        if "C" not in self.widths:
            self.C = parameter(lambda: torch.randn(1, d_state))

    @property
    def delta_bias(self) -> Tensor:
        """(C,), wherever it is kept."""
        return self.dt_proj.bias if "delta" in self.widths else self.dt_bias

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> delta before its bias and softplus (..., C), B (..., N), C (..., N)."""
        selected: dict[str, Tensor] = {}
        if self.widths:
            parts = self.x_proj(u).split(list(self.widths.values()), dim=-1)
            selected = dict(zip(self.widths, parts, strict=True))
        # The bias joins inside the scan, in float32, where softplus is taken.
        if "delta" in selected:
            delta = F.linear(selected["delta"], self.dt_proj.weight)
        else:
            delta = u.new_zeros(()).expand(u.shape)
        B = selected["B"] if "B" in selected else self.B.expand(*u.shape[:-1], -1)
        C = selected["C"] if "C" in selected else self.C.expand(*u.shape[:-1], -1)
        return delta, B, C

    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        delta, B, C = self.select(u)
        return self.scan(u, delta, B, C, reverse)

    def scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, reverse: bool) -> Tensor:
        """The recurrence, with what `select` returned."""
        A = -self.A_log.exp()
        return selective_scan(
            u, delta, A, B, C, self.D, self.delta_bias, reverse=reverse, backend=self.backend
        )

    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, C, N) -> (B, C) and the next state."""
        delta, B, C = self.select(u)
        return selective_scan_step(u, delta, -self.A_log.exp(), B, C, self.D, self.delta_bias, hidden)

    def projection_macs(self, length: int) -> int:
        """MACs of `select`."""
        low_rank = self.widths.get("delta", 0)
        return length * self.dim * (sum(self.widths.values()) + low_rank)

    def scan_macs(self, length: int) -> int:
        """3 MACs per (token, channel, state): decay, input, readout."""
        return 3 * length * math.prod(self.hidden_shape)

    def macs(self, length: int) -> int:
        return self.projection_macs(length) + self.scan_macs(length)

    def no_weight_decay(self) -> set[str]:
        constants = {name for name in ("B", "C") if name not in self.widths}
        return {"A_log", "D", "dt_proj.bias" if "delta" in self.widths else "dt_bias"} | constants
