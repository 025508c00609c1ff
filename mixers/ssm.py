"""Mamba's selective state space model as a token mixer (S6; Gu & Dao, arXiv 2312.00752).

In MambaOut's words (arXiv 2405.07992, eq. 10) the mixer of a Mamba block is SSM(act(Conv(Z))), where
the mixer of a Gated CNN block is Conv(Z). `SelectiveSSM` is built from the very convolution of the
`conv` mixer, on the same channels, so that `ssm` minus `conv` is act and SSM and nothing more. Gate,
projections in and out, and the norm belong to the block.

Symbols beyond `mixers.base`: R rank of the Delta projection, N state size per channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import State, TokenMixer, as_sequence, raster_causal_mask
from mixers.conv import CausalConv, DepthwiseConv
from mixers.identity import Identity
from mixers.scan import selective_scan, selective_scan_step

DELTA_MIN, DELTA_MAX, DELTA_FLOOR = 1e-3, 1e-1, 1e-4  # initial step sizes, Mamba section 3.6


class SelectiveScan(nn.Module):
    """One direction of the SSM: u -> (Delta, B, C) -> selective scan -> + D u.

    Initialised as in the Mamba paper and its code: A_log = log(1..N) in every channel (S4D-real),
    D = 1, Delta's weight uniform in +-R^-1/2, Delta's bias such that softplus(bias) is log-uniform in
    [0.001, 0.1].

    Args:
        dim: channels.
        d_state: N.
        reverse: scan from the last token to the first.
    """

    def __init__(self, dim: int, d_state: int, *, reverse: bool = False) -> None:
        super().__init__()
        self.d_state = d_state
        self.dt_rank = math.ceil(dim / 16)
        self.reverse = reverse
        self.backend = "auto"
        self.x_proj = nn.Linear(dim, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, dim)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))
        self._init_delta()

    def _init_delta(self) -> None:
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        span = math.log(DELTA_MAX) - math.log(DELTA_MIN)
        delta = torch.exp(torch.rand(self.dt_proj.out_features) * span + math.log(DELTA_MIN))
        delta = delta.clamp(min=DELTA_FLOOR)
        with torch.no_grad():  # softplus(bias) = delta
            self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> delta before its bias and softplus (..., C), B (..., N), C (..., N)."""
        low_rank, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        # The bias joins inside the scan, in float32, where softplus is taken.
        return F.linear(low_rank, self.dt_proj.weight), B, C

    def forward(self, u: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        delta, B, C = self._select(u)
        A = -self.A_log.exp()
        return selective_scan(
            u, delta, A, B, C, self.D, self.dt_proj.bias, reverse=self.reverse, backend=self.backend
        )

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, C, N) -> (B, C) and the next state."""
        delta, B, C = self._select(u)
        return selective_scan_step(u, delta, -self.A_log.exp(), B, C, self.D, self.dt_proj.bias, state)

    def macs(self, length: int) -> int:
        """Projections, then 3 MACs per (token, channel, state): decay, input, readout."""
        dim = self.dt_proj.out_features
        projections = dim * (self.dt_rank + 2 * self.d_state) + self.dt_rank * dim
        return length * (projections + 3 * dim * self.d_state)


class SelectiveSSM(TokenMixer):
    """conv -> SiLU -> selective scan(s).

    With `scan="bidirectional"` two scans with their own parameters run over the same convolved input,
    one each way, and their outputs are averaged (Vision Mamba, arXiv 2401.09417, with one shared
    convolution). It is the default on images; causal sequence tasks get the forward scan and Mamba's
    causal convolution of width 4.

    Args:
        dim: channels.
        grid_rank: 1 or 2; an image is scanned in raster order.
        d_state: N, state size per channel.
        scan: "forward", or "bidirectional".
        conv: "symmetric" (that of the `conv` mixer), "causal" (that of `causal-conv`) or "none".
        kernel_size: of the convolution.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        d_state: Annotated[int, Field(ge=1, le=256)] = 16,
        scan: Literal["forward", "bidirectional"] = "bidirectional",
        conv: Literal["symmetric", "causal", "none"] = "symmetric",
        kernel_size: Annotated[int, Field(ge=1)] = 7,
    ) -> None:
        super().__init__(dim, grid_rank)
        self.d_state = d_state
        self.conv: TokenMixer
        if conv == "symmetric":
            self.conv = DepthwiseConv(dim, grid_rank, kernel_size=kernel_size)
        elif conv == "causal":
            self.conv = CausalConv(dim, grid_rank, kernel_size=kernel_size)
        else:
            self.conv = Identity(dim, grid_rank)
        directions = (False, True) if scan == "bidirectional" else (False,)
        self.scans = nn.ModuleList(SelectiveScan(dim, d_state, reverse=reverse) for reverse in directions)
        self.causal = scan == "forward" and self.conv.causal

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        if not causal:
            return {}
        kernel_size = CausalConv.place_defaults(grid_rank, causal)
        return {"scan": "forward", "conv": "causal", **kernel_size}

    def forward(self, x: Tensor) -> Tensor:
        u = as_sequence(F.silu(self.conv(x)))  # (B, L, C)
        y = self.scans[0](u)
        for scan in self.scans[1:]:
            y = y + scan(u)
        if len(self.scans) > 1:
            y = y / len(self.scans)
        return y.view(x.shape)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        if len(self.scans) > 1:
            return torch.ones(length, length, dtype=torch.bool)
        through_conv = self.conv.dependency_mask(grid)
        return (raster_causal_mask(length).float() @ through_conv.float()) > 0

    def macs(self, grid: Sequence[int]) -> int:
        return self.conv.macs(grid) + sum(scan.macs(math.prod(grid)) for scan in self._scans())

    def _scans(self) -> list[SelectiveScan]:
        return [scan for scan in self.scans if isinstance(scan, SelectiveScan)]

    def state_size(self, length: int) -> int | None:
        """The scan's C N numbers and the convolution's window."""
        if not self.causal or self.grid_rank != 1:
            return None
        window = self.conv.state_size(length)
        return None if window is None else window + self.dim * self.d_state

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        hidden = torch.zeros(batch_size, self.dim, self.d_state, device=device)
        return hidden, *self.conv.init_state(batch_size, device)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        convolved, window = self.conv.step(x, state[1:])
        y, hidden = self._scans()[0].step(F.silu(convolved), state[0])
        return y, (hidden, *window)

    def no_weight_decay(self) -> set[str]:
        names = ("A_log", "D", "dt_proj.bias")
        return {f"scans.{index}.{name}" for index in range(len(self.scans)) for name in names}
