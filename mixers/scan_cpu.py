"""The selective scan on CPU: numba kernels (`scan_cpu_kernel`) as a PyTorch operator with its own backward.

`torch.ops.mixers.selective_scan` works under autograd, `FlopCounterMode`, the meta device, fake tensors and
torch.compile, and needs no compiler: numba brings its own. Numba is imported on the first call.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# (batch, length, dim, d_state) elements worth a thread: forward takes 45 us for them, handing them over 40 us
_MIN_ELEMENTS_PER_THREAD = 1 << 18


def selective_scan_cpu(
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
    """Return `(y, last_state)`; arguments as in `mixers.scan.selective_scan`, computed in float32.

    Memory beyond inputs and outputs is the state once per 32 tokens, kept only when a gradient is wanted.
    Two calls give the same bits, whatever the number of threads.
    """
    tensors = (u, delta, A, B, C, D, delta_bias, initial_state)
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        raise ValueError("the cpu scan computes in float32; use backend='reference' for float64 inputs")
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last_state, _ = _forward_op(u, delta, A, B, C, D, delta_bias, initial_state, reverse, keep)
    return y, last_state


# ---- threads -----------------------------------------------------------------------------------------------


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="selective_scan")


if hasattr(os, "register_at_fork"):  # a forked child inherits the pool but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _share(kernel: Callable[..., None], items: int, elements: int, arguments: tuple[Any, ...]) -> None:
    """Run `kernel(*arguments, first_item, last_item)` over all items, on at most torch's number of threads.

    The kernels release the GIL. Numba's own thread pools are not used: they take a fixed size at start-up and
    do not survive a fork.
    """
    threads = max(1, min(torch.get_num_threads(), items, elements // _MIN_ELEMENTS_PER_THREAD))
    bounds = [items * i // threads for i in range(threads + 1)]
    others = [
        _pool(threads - 1).submit(kernel, *arguments, bounds[i], bounds[i + 1]) for i in range(1, threads)
    ]
    kernel(*arguments, bounds[0], bounds[1])
    for other in others:
        other.result()


# ---- the operator ------------------------------------------------------------------------------------------
# torch.library.define, not custom_op: that imports torch._dynamo on the first call, which takes 3 s.

torch.library.define(
    "mixers::selective_scan",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias,"
    " Tensor? initial_state, bool reverse, bool keep) -> (Tensor y, Tensor last_state, Tensor states)",
)
torch.library.define(
    "mixers::selective_scan_backward",
    "(Tensor grad_y, Tensor? grad_last_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,"
    " Tensor? D, Tensor? delta_bias, Tensor states, bool reverse)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_forward_op = torch.ops.mixers.selective_scan.default
_backward_op = torch.ops.mixers.selective_scan_backward.default


@torch.library.impl("mixers::selective_scan", "cpu")
def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`(y, last_state, states)`; states is the packed state before each chunk, one slot unless `keep`."""
    from mixers import scan_cpu_kernel as kernel

    if (_array(A) > 0).any():  # many times faster than through torch
        raise ValueError("A must not be positive: the cpu scan relies on exp(Delta * A) <= 1")
    (batch, length, dim), d_state = u.shape, A.shape[1]
    blocks = -(-dim // kernel.LANES)
    slots = -(-length // kernel.CHUNK) + 1 if keep else 1
    y, last_state = _empty(batch, length, dim), _empty(batch, dim, d_state)
    states = _empty(batch, slots, blocks, d_state, kernel.LANES)
    arguments = (
        *(_array(t) for t in (u, delta, A, B, C)),
        *(_vector(t, dim) for t in (D, delta_bias)),
        _state(initial_state, d_state),
        reverse,
        keep,
        *(t.numpy() for t in (y, last_state, states)),
    )
    _share(kernel.forward, batch * -(-blocks // kernel.SLAB), batch * length * dim * d_state, arguments)
    return y.to(u.dtype), last_state, states


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever the defaults are


def _array(t: Tensor) -> np.ndarray:
    array: np.ndarray = t.detach().float().contiguous().numpy()
    return array


def _vector(t: Tensor | None, dim: int) -> np.ndarray:
    """(dim,) -> (dim, 1), zeros for None."""
    return np.zeros((dim, 1), np.float32) if t is None else _array(t)[:, None]


def _state(t: Tensor | None, d_state: int) -> np.ndarray:
    """(batch, dim, d_state), or the array of size zero that the kernels take for zeros."""
    return np.zeros((0, 0, d_state), np.float32) if t is None else _array(t)


@torch.library.register_fake("mixers::selective_scan")
def _(u, delta, A, B, C, D, delta_bias, initial_state, reverse, keep):  # type: ignore[no-untyped-def]
    from mixers import scan_cpu_kernel as kernel

    batch, length, dim = u.shape
    d_state = A.shape[1]
    blocks = (dim + kernel.LANES - 1) // kernel.LANES
    slots = (length + kernel.CHUNK - 1) // kernel.CHUNK + 1 if keep else 1
    return (
        u.new_empty(batch, length, dim),
        u.new_empty(batch, dim, d_state, dtype=torch.float32),
        u.new_empty(batch, slots, blocks, d_state, kernel.LANES, dtype=torch.float32),
    )


@torch.library.impl("mixers::selective_scan_backward", "cpu")
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, delta_bias and initial_state, of missing ones too."""
    from mixers import scan_cpu_kernel as kernel

    (batch, length, dim), d_state = u.shape, A.shape[1]
    blocks = -(-dim // kernel.LANES)
    slabs = -(-blocks // kernel.SLAB)
    du, ddelta = _empty(batch, length, dim), _empty(batch, length, dim)
    dB, dC = _empty(slabs, batch, length, d_state), _empty(slabs, batch, length, d_state)
    dA = np.zeros((batch, blocks, d_state, kernel.LANES), np.float32)
    dD, dbias = np.zeros((2, batch, blocks, 1, kernel.LANES), np.float32)
    d_initial_state = _empty(batch, dim, d_state)
    arguments = (
        _array(grad_y),
        _state(grad_last_state, d_state),
        *(_array(t) for t in (u, delta, A, B, C)),
        *(_vector(t, dim) for t in (D, delta_bias)),
        reverse,
        states.detach().numpy(),
        *(du.numpy(), ddelta.numpy(), dA, dB.numpy(), dC.numpy(), dD, dbias, d_initial_state.numpy()),
    )
    _share(kernel.backward, batch * slabs, batch * length * dim * d_state, arguments)

    totals = _empty(dim, d_state), _empty(dim, 1), _empty(dim, 1)
    for parts, total in zip((dA, dD, dbias), totals, strict=True):
        kernel.sum_states(parts, total.numpy())
    for parts_of_slabs in (dB, dC):
        for part in parts_of_slabs[1:]:  # not torch.sum: its order may depend on the number of threads
            parts_of_slabs[0] += part
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        totals[0].to(A.dtype),
        dB[0].to(B.dtype),
        dC[0].to(C.dtype),
        totals[1][:, 0],
        totals[2][:, 0],
        d_initial_state,
    )


@torch.library.register_fake("mixers::selective_scan_backward")
def _(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, states, reverse):  # type: ignore[no-untyped-def]
    batch, _, dim = u.shape
    vector = u.new_empty(dim, dtype=torch.float32)
    state = u.new_empty(batch, dim, A.shape[1], dtype=torch.float32)
    return (
        torch.empty_like(u, memory_format=torch.contiguous_format),
        torch.empty_like(delta, memory_format=torch.contiguous_format),
        torch.empty_like(A, memory_format=torch.contiguous_format),
        torch.empty_like(B, memory_format=torch.contiguous_format),
        torch.empty_like(C, memory_format=torch.contiguous_format),
        vector,
        torch.empty_like(vector),
        state,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, delta_bias, initial_state, reverse, keep = inputs
    states = output[2]
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, initial_state, states)
    ctx.reverse, ctx.keep = reverse, keep


def _autograd_backward(
    ctx: Any, grad_y: Tensor | None, grad_last_state: Tensor | None, _: None
) -> tuple[Any, ...]:
    u, delta, A, B, C, D, delta_bias, initial_state, states = ctx.saved_tensors
    if not ctx.keep:
        raise RuntimeError(
            "mixers::selective_scan was called with keep=False: it stored no states for backward"
        )
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = _backward_op(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, states, ctx.reverse)
    optional = [
        None if t is None else g.to(t.dtype)
        for t, g in zip((D, delta_bias, initial_state), grads[5:], strict=True)
    ]
    return (*grads[:5], *optional, None, None)


torch.library.register_autograd("mixers::selective_scan", _autograd_backward, setup_context=_setup_context)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    raise NotImplementedError("the cpu scan has no second derivative; use backend='reference'")


torch.library.register_autograd("mixers::selective_scan_backward", _no_second_derivative)


# ---- FLOPs -------------------------------------------------------------------------------------------------
# Forward is 3 MACs = 6 FLOPs per (batch, length, dim, d_state) element: two for decay * h + x * B, one for
# y += h * C. exp, softplus and the skip D u count nothing, as activations do not. Backward is twice that.


@register_flop_formula(torch.ops.mixers.selective_scan)
def _forward_flops(u: torch.Size, delta: torch.Size, A: torch.Size, *rest: Any, **named: Any) -> int:
    return 6 * u.numel() * A[1]


@register_flop_formula(torch.ops.mixers.selective_scan_backward)
def _backward_flops(
    grad_y: torch.Size, last: Any, u: torch.Size, delta: Any, A: torch.Size, *rest: Any, **named: Any
) -> int:
    return 12 * u.numel() * A[1]
