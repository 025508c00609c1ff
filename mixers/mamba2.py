"""The whole mixer of Mamba-2 (Dao & Gu, arXiv 2405.21060, section 7.1 and figure 6).

    z, v, d = W_in x,   u, B, C = silu(conv(v)),   y = W_out RMSNorm(SSD(u, B, C, Delta(d)) * silu(z))

As `mamba` is to `ssm`, so is this to `ssd`, but for one thing: B, C and Delta are projected beside u, not
from it. Its place is the block `metaformer`.

Symbols beyond `mixers.base`: E expansion, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.backends import HasBackend
from mixers.base import State, TokenMixer, as_grid, as_sequence, raster_causal_mask
from mixers.conv import CausalConv, draw_as_torch
from mixers.directions import KernelSize
from mixers.initial import initial_delta, inverse_softplus, parameter
from mixers.mamba import Expand
from mixers.ssd import scan_in_heads, step_in_heads

NORM_EPS = 1e-5


class Mamba2(TokenMixer, HasBackend):
    """Linear map, causal convolution and SiLU of u, B and C together, SSD, gate, RMSNorm, linear map.

    An image is read in raster order, the convolution included: it is along the sequence. All heads share B
    and C. The number of heads is E C / `head_dim` rounded up: the last head has what remains. Everything
    starts as in Mamba-2's code: the linear maps and the convolution as torch draws them, A and Delta as in
    `ssd`.

    Args:
        dim: C.
        grid_rank: 1 or 2.
        d_state: N.
        expand: E.
        head_dim: P, channels that share a decay; at most E C.
        kernel_size: of the convolution.
        chunk_size: changes the cost, not the result.
    """

    operation = "ssd"
    causal = True

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        d_state: Annotated[int, Field(ge=1, le=1024)] = 128,
        expand: Expand = 2,
        head_dim: Annotated[int, Field(ge=1)] = 64,
        kernel_size: KernelSize = 4,
        chunk_size: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        super().__init__(dim, grid_rank)
        inner = expand * dim
        self.head_dim = min(head_dim, inner)
        self.chunk_size = chunk_size
        num_heads = -(-inner // self.head_dim)
        self.hidden_shape = (inner, d_state)
        self.convolved = (inner, d_state, d_state)
        self.widths = (inner, sum(self.convolved), num_heads)
        self.in_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = CausalConv(sum(self.convolved), 1, kernel_size=kernel_size)
        draw_as_torch(self.conv)
        self.dt_bias = parameter(lambda: inverse_softplus(initial_delta(num_heads)))
        self.A_log = parameter(lambda: torch.empty(num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(num_heads))
        self.norm = nn.RMSNorm(inner, eps=NORM_EPS)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z, xBC, delta = self._project(as_sequence(x))
        u, B, C = self.conv.silu(xBC).split(self.convolved, dim=-1)
        A = -self.A_log.exp()
        y = scan_in_heads(
            u,
            delta,
            A,
            B,
            C,
            self.D,
            head_dim=self.head_dim,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        return as_grid(self._gate_and_project(y, z), x.shape)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> z (..., E C), what is convolved (..., E C + 2 N), Delta (..., H)."""
        z, xBC, delta = self.in_proj(x).split(self.widths, dim=-1)
        return z, xBC, F.softplus(delta + self.dt_bias)

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        """(..., E C) twice -> (..., C)."""
        gated = y * F.silu(z)
        wide = gated.to(torch.promote_types(gated.dtype, torch.float32))  # its squares are summed
        normed = F.rms_norm(wide, wide.shape[-1:], self.norm.weight.to(wide.dtype), NORM_EPS)
        projected: Tensor = self.out_proj(normed.to(gated.dtype))
        return projected

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return raster_causal_mask(math.prod(grid))

    def macs(self, grid: Sequence[int]) -> int:
        """Linear maps, convolution, and 3 MACs per (token, channel, state).

        What chunks add buys speed, not a result.
        """
        length = math.prod(grid)
        linear = self.in_proj.weight.numel() + self.out_proj.weight.numel()
        return length * (linear + 3 * math.prod(self.hidden_shape)) + self.conv.macs((length,))

    def state_size(self, length: int) -> int | None:
        """E C N numbers, and the convolution's window."""
        window = self.conv.state_size(length)
        return None if self.grid_rank == 2 or window is None else math.prod(self.hidden_shape) + window

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        hidden = torch.zeros(batch_size, *self.hidden_shape, device=device)
        return hidden, *self.conv.init_state(batch_size, device)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        z, xBC, delta = self._project(x)
        convolved, window = self.conv.step(xBC, state[1:])
        u, B, C = F.silu(convolved).split(self.convolved, dim=-1)
        A = -self.A_log.exp()
        y, hidden = step_in_heads(u, delta, A, B, C, self.D, state[0], head_dim=self.head_dim)
        return self._gate_and_project(y, z), (hidden, *window)

    def no_weight_decay(self) -> set[str]:
        return {"A_log", "D", "dt_bias"}
