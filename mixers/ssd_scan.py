"""The scan of Mamba-2 (SSD; Dao & Gu, arXiv 2405.21060), on whichever kernels there are.

Symbols beyond `mixers.base`: H heads, P channels per head, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixers import backends


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    chunk_size: int,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """For every head, with h of P x N numbers,

        h[t] = exp(delta[t] A) h[t-1] + delta[t] x[t] B[t]^T,   y[t] = h[t] C[t] + D x[t]

    Args:
        x: (B, L, H, P).
        delta: (B, L, H), positive.
        A: (H,), negative.
        B, C: (B, L, N), shared by the heads.
        D: (H,).
        chunk_size: the largest Q; changes the cost, not the result.
        initial_state: h[-1], (B, H, P, N); zeros by default.
        return_state: compute the last state too.
        backend: "auto" or a name in `mixers.backends.SSD_BACKENDS`.

    Returns:
        y (B, L, H, P), and the last state (B, H, P, N) in float32 or wider, or None. Every tensor input
        gets a gradient, through both.

    Raises:
        ValueError: the backend asked for by name does not exist or cannot do float64.
        mixers.backends.BackendUnavailable: the backend asked for by name does not run here.
    """
    needs = backends.FLOAT64 if torch.float64 in (x.dtype, delta.dtype) else backends.NOTHING
    scanned: tuple[Tensor, Tensor | None] = backends.run(
        "ssd", backend, needs, x, delta, A, B, C, D, initial_state, chunk_size, return_state
    )
    return scanned
