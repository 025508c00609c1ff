"""The selective scan on NVIDIA GPUs by mamba-ssm's CUDA kernel, when that package is installed with it.

Source: github.com/state-spaces/mamba, `csrc/selective_scan/selective_scan.cpp`. That kernel wants channels
before length, scans forward only, starts from a zero state and gives the last state no gradient. Its backward
adds dA, dB, dC and dD with atomics, so two runs may differ in the last bits.

The compiled module is called as mamba-ssm's own `selective_scan_fn` calls it, but from an operator that
torch.compile does not look into: that function would break the graph of every block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixers.scan_operator import ScanOperator

_MAX_D_STATE = 256
_CHUNK = 2048  # tokens per state that forward keeps for backward


def selective_scan_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return `(y, last_state)`; arguments as in `mixers.scan.selective_scan`, but the last state is detached.

    Raises ValueError for what the kernel lacks: initial_state, float64 and d_state above 256.
    """
    if initial_state is not None:
        raise ValueError("mamba-ssm's scan has no initial_state; use backend='reference'")
    if u.dtype == torch.float64:
        raise ValueError("mamba-ssm's scan has no float64; use backend='reference'")
    if A.shape[1] > _MAX_D_STATE:
        raise ValueError(f"mamba-ssm's scan has d_state up to {_MAX_D_STATE}, got {A.shape[1]}")
    # the kernel wants u, delta, B and C in one dtype and A, D, delta_bias in float32
    u_, delta_, B_, C_ = (_to_kernel(t.to(u.dtype), reverse) for t in (u, delta, B, C))
    y, last_state = _scan(
        *(u_, delta_, A.float(), B_, C_),
        None if D is None else D.float(),
        None if delta_bias is None else delta_bias.float(),
        initial_state=None,
        reverse=False,
    )
    y = y.flip(-1) if reverse else y
    return y.transpose(1, 2), last_state.detach()


def _to_kernel(t: Tensor, reverse: bool) -> Tensor:
    """(batch, length, channels) -> (batch, channels, length), contiguous, in the order of the scan."""
    t = t.transpose(1, 2)
    return (t.flip(-1) if reverse else t).contiguous()


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`(y, last_state, states)`; u, delta (batch, dim, length) and B, C (batch, d_state, length)."""
    import selective_scan_cuda

    # B and C have one group of channels; z, the gate, is None; the last argument asks for softplus
    y, states = selective_scan_cuda.fwd(u, delta, A, B[:, None], C[:, None], D, None, delta_bias, True)
    last_state = states[:, :, -1, 1::2].clone()  # of each pair, the state is the second
    return y, last_state, states if keep else u.new_empty(_states_shape(u.shape, A.shape[1], keep))


def _backward(
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """Gradients of the tensors from u to delta_bias; those of missing ones and of a first state are void."""
    import selective_scan_cuda

    du, ddelta, dA, dB, dC, dD, dbias = selective_scan_cuda.bwd(
        *(u, delta, A, B[:, None], C[:, None], D, None, delta_bias, grad_y.contiguous(), states),
        *(None, None),  # the gated output and the gate's gradient
        True,
        False,
    )
    void = A.new_empty(A.shape[0])
    return (
        *(du, ddelta, dA, dB[:, 0], dC[:, 0]),
        void if D is None else dD,
        torch.empty_like(void) if delta_bias is None else dbias,
        A.new_empty(u.shape[0], *A.shape),
    )


def _states_shape(shape: Sequence[int], d_state: int, keep: bool) -> tuple[int, ...]:
    """For each chunk the decay since the first token, and the state, as pairs; none unless `keep`."""
    batch, dim, length = shape
    return batch, dim, -(-length // _CHUNK) if keep else 0, 2 * d_state


_scan = ScanOperator(
    "selective_scan_mamba_ssm",
    "mamba_ssm",
    ["cuda", "cpu"],  # on the CPU the tests have a stand-in for the compiled module
    channels=1,
    forward=_forward,
    backward=_backward,
    states_shape=_states_shape,
)
