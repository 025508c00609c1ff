"""S4D, the diagonal state space model (Gu et al., arXiv 2206.11893): an SSM that selects nothing.

    h'(t) = A h(t) + u(t),   y(t) = 2 Re(C h(t)) + D u(t)

with N / 2 complex states per channel, standing for N with their conjugates, and one step size Delta per
channel. Neither depends on the input, so the map is a convolution with K[l] = 2 Re sum over n of
C_n (exp(Delta A_n) - 1) / A_n exp(Delta A_n)^l: A is discretised by zero-order hold.

Complex states with S4D-Lin's start are the paper's own recommendation, and a time-invariant arm should be
the best of its kind. The time-invariant SSM with everything else as in Mamba, real states included, is
`ssm(selective=none)`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixers.base import full_precision
from mixers.directions import Conv, KernelSize, Scan, ScanCore, ScanMixer
from mixers.initial import initial_delta, parameter
from mixers.long_conv import long_conv, long_conv_macs
from mixers.scan_orders import scan_pattern

AInit = Literal["lin", "inv"]


def _imaginary(A_init: AInit, pairs: int) -> Tensor:
    """(pairs,): the imaginary parts of A."""
    n, d_state = torch.arange(pairs, dtype=torch.float32), 2 * pairs
    return math.pi * n if A_init == "lin" else d_state / math.pi * (d_state / (2 * n + 1) - 1)


class S4DCore(ScanCore):
    """One pass: u -> convolution with K -> + D u.

    Initialised as in the paper and its code: A_n = -1/2 + i pi n ("lin") or
    -1/2 + i N / pi (N / (2 n + 1) - 1) ("inv"), n = 0 .. N / 2 - 1; Delta log-uniform in
    [0.001, 0.1]; B = 1, so that it has no parameter; C complex normal; D normal. That code trains Delta and A
    at a learning rate of at most 0.001; here they are trained at that of all other parameters.

    Args:
        dim: channels.
        d_state: N, even.
        A_init: "lin" or "inv".

    Raises:
        ValueError: `d_state` is odd.
    """

    def __init__(self, dim: int, d_state: int, *, A_init: AInit = "lin") -> None:
        super().__init__()
        if d_state % 2 == 1:
            raise ValueError(f"d_state must be even: complex states come in pairs; got {d_state}")
        self.dim = dim
        pairs = d_state // 2
        self.hidden_shape = (dim, pairs, 2)  # real and imaginary parts
        self.log_dt = parameter(lambda: initial_delta(dim).log())
        self.log_A_real = nn.Parameter(torch.full((dim, pairs), math.log(0.5)))
        self.A_imag = parameter(lambda: _imaginary(A_init, pairs).repeat(dim, 1))
        self.C = parameter(lambda: torch.randn(dim, pairs, 2) * 0.5**0.5)
        self.D = parameter(lambda: torch.randn(dim))

    def discretised(self) -> tuple[Tensor, Tensor]:
        """Delta A and C (exp(Delta A) - 1) / A, both (C, N / 2) and complex, of float32 or wider."""
        dtype = torch.promote_types(self.C.dtype, torch.float32)  # there are no complex numbers of bfloat16
        log_dt, log_A_real, A_imag, C = (
            each.to(dtype) for each in (self.log_dt, self.log_A_real, self.A_imag, self.C)
        )
        A = torch.complex(-log_A_real.exp(), A_imag)
        delta_A = log_dt.exp()[:, None] * A
        return delta_A, torch.view_as_complex(C) * (delta_A.exp() - 1) / A

    def kernel(self, length: int) -> Tensor:
        """K, (C, L).

        With l = q S + s, exp(Delta A l) is a product of two powers, so that the sum over n is a matrix
        product and only 2 sqrt(L) exponentials per state are taken, not L.
        """
        delta_A, weight = self.discretised()
        size = math.isqrt(length - 1) + 1
        counts = torch.arange(size, device=delta_A.device)
        fine = (delta_A[:, :, None] * counts).exp()  # (C, N / 2, S)
        coarse = weight[:, :, None] * (delta_A[:, :, None] * (size * counts[: -(-length // size)])).exp()
        # Re(x y) = Re x Re y - Im x Im y, both terms in one real product
        left = torch.cat((coarse.real, -coarse.imag), dim=1).mT  # (C, Q, N)
        right = torch.cat((fine.real, fine.imag), dim=1)  # (C, N, S)
        return 2 * (left @ right).flatten(1)[:, :length]

    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        with full_precision(u.device):
            kernel = self.kernel(u.shape[1])
        y = long_conv(u.flip(1), kernel).flip(1) if reverse else long_conv(u, kernel)
        return y + self.D * u

    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, C, N / 2, 2) -> (B, C) and the next state."""
        delta_A, weight = self.discretised()
        h = delta_A.exp() * torch.view_as_complex(hidden) + u[..., None]
        y = 2 * (weight * h).real.sum(-1)
        return (y + self.D * u).to(u.dtype), torch.view_as_real(h)

    def macs(self, length: int) -> int:
        """The kernel, made anew for every batch, and the convolution with it."""
        size = math.isqrt(length - 1) + 1
        kernel = self.dim * size * -(-length // size) * math.prod(self.hidden_shape[1:])
        return kernel + long_conv_macs(length, self.dim)

    def no_weight_decay(self) -> set[str]:
        return {"log_dt", "log_A_real", "A_imag", "D"}


class S4D(ScanMixer):
    """conv -> SiLU -> S4D: what `ssm` is, with a time-invariant SSM.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        d_state: N, real numbers per channel; even.
        A_init: "lin" or "inv".
        scan: "forward", "bidirectional", or on images "cross" (`mixers.scan_orders`).
        conv: "symmetric", "causal", "per-pass" or "none" (`mixers.directions`).
        kernel_size: of the convolution.

    Raises:
        ValueError: `d_state` is odd, or `scan` does not fit the grid.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        d_state: Annotated[int, Field(ge=2, le=1024)] = 16,
        A_init: AInit = "lin",
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
            make_core=lambda: S4DCore(dim, d_state, A_init=A_init),
        )
