"""The scan of Mamba-2 in plain PyTorch: matrix products in chunks (Dao & Gu, arXiv 2405.21060, section 6).

With one decay per head, not per channel and state, the pairwise form of the recurrence is a masked matrix
product, as in attention. It is used within chunks; the state is carried from chunk to chunk.

Symbols beyond `mixers.base`: H heads, P channels per head, N state size, Q chunk size, K chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_scan_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None,
    chunk_size: int,
    return_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return `(y, last_state)`, the latter None unless asked for; arguments as in `mixers.ssd_scan.ssd_scan`.

    Chunks are equal; zeros fill up the last one and change nothing. Decays and states are float32 or wider;
    under autocast the matrix products are not.
    """
    length = x.shape[1]
    size = _equal_chunk(length, chunk_size)
    dtype = torch.promote_types(delta.dtype, torch.float32)
    x, delta, B, C = (_chunks(each.to(dtype), size) for each in (x, delta, B, C))
    delta = delta.transpose(2, 3)  # (B, K, H, Q); x is (B, K, Q, H, P)
    total = (delta * A.to(dtype)[:, None]).cumsum(-1)  # log of the decay since before the chunk
    # Log of the weight of x B^T as it enters h, counted back to before the chunk. Only sums that are
    # at most log(delta) are exponentiated below.
    enter = delta.clamp(min=torch.finfo(dtype).tiny).log() - total

    y = (_pairs(total, enter, B, C, D) @ x.transpose(2, 3)).transpose(2, 3)  # (B, K, Q, H, P)
    last_state = None
    if x.shape[1] > 1 or initial_state is not None or return_state:
        # B and C are those of all heads: one product per chunk, with the heads side by side.
        heads = x.shape[3:]
        last = total[..., -1:]
        entering = x * (last + enter).exp().mT[..., None]  # (B, K, Q, H, P)
        written = (B.mT @ entering.flatten(3)).unflatten(3, heads)  # (B, K, N, H, P)
        state = torch.zeros_like(written[:, 0])
        if initial_state is not None:
            state = initial_state.permute(0, 3, 1, 2)
        before, state = _pass_states(written.to(dtype), last.exp()[:, :, None], state.to(dtype))
        last_state = state.permute(0, 2, 3, 1) if return_state else None
        read = (C @ before.flatten(3)).unflatten(3, heads)  # (B, K, Q, H, P)
        y = y + read * total.exp().mT[..., None].to(read.dtype)
    return y.flatten(1, 2)[:, :length], last_state


def _equal_chunk(length: int, largest: int) -> int:
    """Q, for as few chunks as possible, and as little to fill up."""
    chunks = -(-length // largest)
    return -(-length // chunks)


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, L, ...) -> (B, K, Q, ...), zeros after the last token."""
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    return x.unflatten(1, (-1, size))


def _pairs(total: Tensor, enter: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """From token s in the columns to token t in the rows of the same chunk: (B, K, H, Q, Q)."""
    size = total.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    # In place, here and below: these are the largest tensors.
    log_weight = (total[..., :, None] + enter[..., None, :]).masked_fill_(later, -torch.inf)
    pairs = (C @ B.mT)[:, :, None] * log_weight.exp_()
    pairs.diagonal(dim1=-2, dim2=-1).add_(D[:, None])
    return pairs


def _pass_states(written: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What each chunk wrote (B, K, N, H, P) and its decay -> the state before each chunk, and the last."""
    states = []
    for writes, decays in zip(written.unbind(1), decay.unbind(1), strict=True):
        states.append(state)
        state = decays * state + writes
    return torch.stack(states, dim=1), state
