"""Mamba-2's state space model as a token mixer (SSD; Dao & Gu, arXiv 2405.21060)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.directions import Conv, KernelSize, Scan, ScanCore, ScanMixer
from mixers.initial import initial_delta, inverse_softplus, parameter
from mixers.scan_orders import scan_pattern
from mixers.ssd_scan import ssd_scan


def scan_in_heads(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    head_dim: int,
    chunk_size: int,
    backend: str,
) -> Tensor:
    """Mamba-2's scan of channels, cut into heads; the last head has what remains.

    Args:
        u: (B, L, C).
        delta: (B, L, H), positive.
        A: (H,), negative.
        B, C: (B, L, N).
        D: (H,).
        head_dim: P, with H = C / P rounded up.
        chunk_size: Q.
        backend: as in `mixers.ssd_scan.ssd_scan`.

    Returns:
        (B, L, C).
    """
    channels, heads = u.shape[2], len(A)
    x = F.pad(u, (0, heads * head_dim - channels)).unflatten(2, (heads, head_dim))
    y, _ = ssd_scan(x, delta, A, B, C, D, chunk_size=chunk_size, backend=backend)
    return y.flatten(2)[..., :channels].to(u.dtype)


def step_in_heads(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, hidden: Tensor, *, head_dim: int
) -> tuple[Tensor, Tensor]:
    """One token of `scan_in_heads`: without L, and with the state (B, C, N) -> (B, C) and the next state."""

    def per_channel(per_head: Tensor) -> Tensor:
        """(..., H) -> (..., C)."""
        return per_head.repeat_interleave(head_dim, dim=-1)[..., : u.shape[1]]

    decay = per_channel(torch.exp(delta * A))  # (B, C)
    hidden = decay[..., None] * hidden + (per_channel(delta) * u)[..., None] * B[:, None]
    y = (hidden * C[:, None]).sum(-1) + per_channel(D) * u
    return y.to(u.dtype), hidden


class SSDCore(ScanCore):
    """One pass: u -> (B, C, Delta) -> scan with one decay per head -> + D u.

    The number of heads is `dim / head_dim` rounded up: the last head has what remains. As in Mamba-2, A and
    D are one number per head, A_log starts as the logarithm of a uniform in [1, 16], D at 1, and
    softplus(dt_bias) log-uniform in [0.001, 0.1].

    Args:
        dim: channels.
        d_state: N.
        head_dim: P.
        chunk_size: Q; changes the cost, not the result.
    """

    operation = "ssd"

    def __init__(self, dim: int, d_state: int, *, head_dim: int, chunk_size: int) -> None:
        super().__init__()
        self.dim = dim
        self.head_dim = min(head_dim, dim)
        self.num_heads = -(-dim // self.head_dim)
        self.chunk_size = chunk_size
        self.hidden_shape = (dim, d_state)
        self.widths = (d_state, d_state, self.num_heads)
        self.x_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.dt_bias = parameter(lambda: inverse_softplus(initial_delta(self.num_heads)))
        self.A_log = parameter(lambda: torch.empty(self.num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> Delta (..., H), B (..., N), C (..., N)."""
        B, C, delta = self.x_proj(u).split(self.widths, dim=-1)
        return F.softplus(delta + self.dt_bias), B, C

    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        if reverse:
            u = u.flip(1)
        delta, B, C = self._select(u)
        A, D = -self.A_log.exp(), self.D
        y = scan_in_heads(
            u, delta, A, B, C, D, head_dim=self.head_dim, chunk_size=self.chunk_size, backend=self.backend
        )
        return y.flip(1) if reverse else y

    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, C, N) -> (B, C) and the next state."""
        delta, B, C = self._select(u)
        A = -self.A_log.exp()
        return step_in_heads(u, delta, A, B, C, self.D, hidden, head_dim=self.head_dim)

    def macs(self, length: int) -> int:
        """Projections, and 3 MACs per (token, channel, state): what chunks add buys speed, not a result."""
        return length * self.dim * sum(self.widths) + 3 * length * math.prod(self.hidden_shape)

    def no_weight_decay(self) -> set[str]:
        return {"A_log", "D", "dt_bias"}


class SSD(ScanMixer):
    """conv -> SiLU -> SSD: what `ssm` is, with the SSM of Mamba-2.

    B, C and Delta come from the convolved input as in `ssm`, so that the two differ in the SSM alone;
    Mamba-2's block projects them beside it and convolves B and C too, as `mamba2` does.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        d_state: N, state size per channel.
        head_dim: P, channels that share a decay; at most `dim`.
        chunk_size: Q; changes the cost, not the result.
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
        d_state: Annotated[int, Field(ge=1, le=1024)] = 64,
        head_dim: Annotated[int, Field(ge=1)] = 64,
        chunk_size: Annotated[int, Field(ge=1)] = 64,
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
            make_core=lambda: SSDCore(dim, d_state, head_dim=head_dim, chunk_size=chunk_size),
        )
