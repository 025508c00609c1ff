"""The selective scan on NVIDIA GPUs by mamba-ssm's CUDA kernel, when that package is installed with it.

Source: github.com/state-spaces/mamba, `csrc/selective_scan/selective_scan.cpp`. That kernel wants channels
before length, scans forward only, starts from a zero state and gives the last state no gradient. Its backward
adds dA, dB, dC and dD with atomics, so two runs may differ in the last bits.

The compiled module is called as mamba-ssm's own `selective_scan_fn` calls it, which would break the graph of
every block under torch.compile: there an operator calls it, into which the compiler does not look. Elsewhere
it is an autograd function, since an operator written in Python takes longer to get through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from mixers.backends import MAMBA_SSM_STATES
from mixers.scan_operator import ScanOperator

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
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return `(y, last_state)`, the latter None unless asked for; arguments as in
    `mixers.scan.selective_scan`, but the last state is detached.

    Raises:
        ValueError: what the kernel lacks: initial_state, float64, or d_state above 256.
    """
    if initial_state is not None:
        raise ValueError("mamba-ssm's scan has no initial_state; use backend='reference'")
    if u.dtype == torch.float64:
        raise ValueError("mamba-ssm's scan has no float64; use backend='reference'")
    if A.shape[1] > MAMBA_SSM_STATES:
        raise ValueError(f"mamba-ssm's scan has d_state up to {MAMBA_SSM_STATES}, got {A.shape[1]}")
    # vmap, too, takes operators only
    if torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is not None:
        inputs = _to_kernel((u, delta, A, B, C, D, delta_bias), reverse)
        y, last_state = _operator(*inputs, initial_state=None, reverse=False)
        return _channels_last(y, reverse), last_state.detach() if return_state else None
    scanned = _SelectiveScan.apply(reverse, return_state, u, delta, A, B, C, D, delta_bias)
    return scanned if return_state else (scanned, None)


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def _to_kernel(inputs: Inputs, reverse: bool) -> Inputs:
    """Turn the inputs into what the kernel wants: u, delta, B and C in one dtype, A, D and delta_bias in
    float32.
    """
    u, delta, A, B, C, D, delta_bias = inputs
    return (
        _channels_first(u, reverse),
        _channels_first(delta.to(u.dtype), reverse),
        A.float(),
        _channels_first(B.to(u.dtype), reverse),
        _channels_first(C.to(u.dtype), reverse),
        None if D is None else D.float(),
        None if delta_bias is None else delta_bias.float(),
    )


def _channels_first(t: Tensor, reverse: bool) -> Tensor:
    """(batch, length, channels) -> (batch, channels, length), contiguous, in the order of the scan."""
    t = t.transpose(1, 2)
    return (t.flip(2) if reverse else t).contiguous()


def _channels_last(t: Tensor, reverse: bool) -> Tensor:
    """The inverse: (batch, channels, length) -> (batch, length, channels), in the order of the tokens."""
    t = t.transpose(1, 2)
    return t.flip(1) if reverse else t


# ---- the compiled module: u, delta (batch, dim, length); B, C (batch, d_state, length) ---------------------


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`(y, states)`: for each chunk the decay since the first token and the state, in pairs."""
    import selective_scan_cuda

    # B and C have one group of channels, there is no gate, and softplus is taken
    y, states = selective_scan_cuda.fwd(u, delta, A, B[:, None], C[:, None], D, None, delta_bias, True)
    return y, states


def _last_state(states: Tensor) -> Tensor:
    """(batch, dim, chunks, 2 d_state) -> (batch, dim, d_state)."""
    return states[:, :, -1, 1::2]


def _gradients(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of u, delta, A, B, C, D and delta_bias; None where the input was None."""
    import selective_scan_cuda

    no_gate = no_output = no_gate_gradient = None
    du, ddelta, dA, dB, dC, dD, dbias = selective_scan_cuda.bwd(
        *(u, delta, A, B[:, None], C[:, None], D, no_gate, delta_bias, grad_y.contiguous(), states),
        *(no_output, no_gate_gradient, True, False),
    )
    return du, ddelta, dA, dB[:, 0], dC[:, 0], dD, dbias


class _SelectiveScan(torch.autograd.Function):
    """`(y, last_state)` as `selective_scan_mamba_ssm` returns them, or y alone.

    What turns the tensors into the kernel's layout is inside, where autograd records none of it: a short scan
    takes as long as the host takes to launch it. Where a gradient's dtype is not its input's, as of a
    bfloat16 D, autograd converts it.
    """

    @staticmethod
    def forward(ctx: Any, reverse: bool, return_state: bool, *inputs: Any) -> Tensor | tuple[Tensor, Tensor]:
        ctx.reverse = reverse
        tensors = _to_kernel(inputs, reverse)
        y, states = _scan(*tensors)
        ctx.save_for_backward(*tensors, states)
        # detached, since autograd lets nobody write into a view that was made in here
        y = _channels_last(y, reverse).detach()
        if not return_state:
            return y
        last_state = _last_state(states)
        ctx.mark_non_differentiable(last_state)
        return y, last_state

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the kernel's part would be left out without a word
            raise NotImplementedError("mamba-ssm's scan has no second derivative; use backend='reference'")
        reverse = ctx.reverse
        grads = _gradients(_channels_first(grad_y, reverse), *ctx.saved_tensors)
        du, ddelta, dA, dB, dC, dD, dbias = grads
        du, ddelta, dB, dC = (_channels_last(each, reverse) for each in (du, ddelta, dB, dC))
        return None, None, du, ddelta, dA, dB, dC, dD, dbias


# ---- as an operator ----------------------------------------------------------------------------------------


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
    """`(y, last_state, states)`."""
    y, states = _scan(u, delta, A, B, C, D, delta_bias)
    last_state = _last_state(states).clone(
        memory_format=torch.contiguous_format
    )  # an operator's results may not share memory
    return y, last_state, states if keep else states.new_empty(_states_shape(u.shape, A.shape[1], keep))


def _backward(
    grad_y: Tensor,
    grad_last_state: None,
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
    """Gradients of u, delta, A, B, C, D, delta_bias and initial_state; uninitialised where it was None."""
    *grads, dD, dbias = _gradients(grad_y, u, delta, A, B, C, D, delta_bias, states)
    vectors = (A.new_empty(A.shape[0]) if grad is None else grad for grad in (dD, dbias))
    return (*grads, *vectors, A.new_empty(u.shape[0], *A.shape))


def _states_shape(shape: Sequence[int], d_state: int, keep: bool) -> tuple[int, ...]:
    """Of a pair per chunk; none unless `keep`."""
    batch, dim, length = shape
    return batch, dim, -(-length // _CHUNK) if keep else 0, 2 * d_state


_operator = ScanOperator(
    "selective_scan_mamba_ssm",
    "mamba_ssm",
    ["cuda", "cpu"],  # on the CPU the tests have a stand-in for the compiled module
    channels=1,
    forward=_forward,
    backward=_backward,
    states_shape=_states_shape,
)
