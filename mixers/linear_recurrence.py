"""The recurrence of linear attention and its gated descendants, in chunks and token by token.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t

with a state S of K x V numbers per head and decays 0 < a_t <= 1 per key channel (gated linear attention,
Yang et al., arXiv 2312.06635; without decay linear attention, Katharopoulos et al., arXiv 2006.16236,
equations 16-20). K and V are the channels of a head's keys and values.

In chunks (section 4 of the former) the state goes from chunk to chunk, and inside of a chunk the
tokens meet pairwise. Decays come as logarithms, and only differences of their sums that are at most 0
are exponentiated, so that no decay is too strong and no sequence too long.

Everything runs in float32 or wider, under autocast too: sums over a whole sequence need it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.base import full_precision

CHUNK = 64
DECAYED_CHUNK = 32  # a power of two


def linear_recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None) -> Tensor:
    """All o_t, from a state of zeros.

    Args:
        q: (B, heads, L, K).
        k: (B, heads, L, K).
        v: (B, heads, L, V).
        log_decay: (B, heads, L, K), log a_t <= 0; None for no decay.

    Returns:
        (B, heads, L, V), in float32 or wider.
    """
    length = q.shape[2]
    power_of_two = 1 << (length - 1).bit_length()
    size = min(length, CHUNK) if log_decay is None else min(power_of_two, DECAYED_CHUNK)
    with full_precision(q.device):
        q, k, v = (_chunks(each, size) for each in (q, k, v))
        o = _without_decay(q, k, v) if log_decay is None else _with_decay(q, k, v, _chunks(log_decay, size))
        return o.flatten(2, 3)[:, :, :length]


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, heads, L, d) -> (B, heads, chunks, size, d), zeros behind the last token."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _without_decay(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, chunks, size, K or V) -> (B, heads, chunks, size, V)."""
    written = k.mT @ v  # (B, heads, chunks, K, V)
    before = F.pad(written.cumsum(2), (0, 0, 0, 0, 1, 0))[:, :, :-1]  # the state that a chunk starts from
    return (q @ k.mT).tril() @ v + q @ before


def _with_decay(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """(B, heads, chunks, size, K or V), log_decay as k -> (B, heads, chunks, size, V)."""
    total = log_decay.cumsum(3)  # (B, heads, chunks, size, K): log of the decay since the chunk's start
    last = total[..., -1:, :]
    written = ((last - total).exp() * k).mT @ v  # (B, heads, chunks, K, V), as decayed at the chunk's end
    before = _states(written, last.exp().mT)
    return _inside(q, k, v, total) + (total.exp() * q) @ before


def _inside(q: Tensor, k: Tensor, v: Tensor, total: Tensor) -> Tensor:
    """What the tokens of a chunk give each other: (B, heads, chunks, size, K or V), size a power of two.

    Two tokens meet where they are in the two halves of a block of 2, 4, ... size tokens. The decay from one
    to the other is the decay to the middle of the block times that from the middle on, so a matrix product
    does it, and neither factor can overflow.
    """
    o = (q * k).sum(-1, keepdim=True) * v  # a token with itself
    half = 1
    while half < q.shape[3]:
        (_, q2), (k1, _), (v1, _), (total1, total2) = (
            each.unflatten(3, (-1, 2, half)).unbind(4) for each in (q, k, v, total)
        )  # each (B, heads, chunks, blocks, half, K or V)
        middle = total1[..., -1:, :]
        scores = ((total2 - middle).exp() * q2) @ ((middle - total1).exp() * k1).mT
        second = (scores @ v1)[..., None, :, :]
        o = o + F.pad(second, (0, 0, 0, 0, 1, 0)).flatten(3, 5)  # zeros for the first halves
        half *= 2
    return o


def _states(written: Tensor, decay: Tensor) -> Tensor:
    """What each chunk wrote (B, heads, chunks, K, V) and its decay (..., K, 1) -> the state before each."""
    state = torch.zeros_like(written[:, :, 0])
    states = []
    for writes, decays in zip(written.unbind(2), decay.unbind(2), strict=True):
        states.append(state)
        state = decays * state + writes
    return torch.stack(states, dim=2)


def linear_recurrence_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token: (B, heads, K or V) and S (B, heads, K, V) -> o (B, heads, V) and the next S."""
    dtype = torch.promote_types(state.dtype, torch.promote_types(q.dtype, torch.float32))
    q, k, v, state = (each.to(dtype) for each in (q, k, v, state))
    with full_precision(q.device):
        if log_decay is not None:
            state = log_decay.to(dtype).exp()[..., None] * state
        state = state + k[..., :, None] @ v[..., None, :]
        return (q[..., None, :] @ state).squeeze(-2), state
