"""The selective scan on CPU: numba kernels (`scan_cpu_kernel`) as a PyTorch operator with its own backward.

It needs no compiler: numba brings its own. Numba is imported on the first call.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixers.scan_operator import ScanOperator

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
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return `(y, last_state)`, the latter None unless asked for; arguments as in
    `mixers.scan.selective_scan`, computed in float32.

    Memory beyond inputs and outputs is the state once per 32 tokens, kept only when a gradient is wanted.
    Two calls give the same bits, whatever the number of threads.
    """
    y, last_state = _scan(u, delta, A, B, C, D, delta_bias, initial_state, reverse)
    return y, last_state if return_state else None


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


# ---- the kernels -------------------------------------------------------------------------------------------


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
    """`(y, last_state, states)`."""
    from mixers import scan_cpu_kernel as kernel

    if (_array(A) > 0).any():  # many times faster than through torch
        raise ValueError("A must not be positive: the cpu scan relies on exp(Delta * A) <= 1")
    (batch, length, dim), d_state = u.shape, A.shape[1]
    blocks = -(-dim // kernel.LANES)
    y, last_state = _empty(batch, length, dim), _empty(batch, dim, d_state)
    states = _empty(*_states_shape(u.shape, d_state, keep))
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


def _summed(parts: np.ndarray, dim: int) -> Tensor:
    """(batch, blocks, n, LANES) -> (dim, n), summed over the batch in order."""
    total = parts.sum(0).swapaxes(1, 2)  # (blocks, LANES, n)
    return torch.from_numpy(total.reshape(-1, total.shape[2])[:dim])


def _vector(t: Tensor | None, dim: int) -> np.ndarray:
    """(dim,) -> (dim, 1), zeros for None."""
    return np.zeros((dim, 1), np.float32) if t is None else _array(t)[:, None]


def _state(t: Tensor | None, d_state: int) -> np.ndarray:
    """(batch, dim, d_state), or the array of size zero that the kernels take for zeros."""
    return np.zeros((0, 0, d_state), np.float32) if t is None else _array(t)


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

    d_weights = [_summed(parts, dim) for parts in (dA, dD, dbias)]
    for parts_of_slabs in (dB, dC):
        for part in parts_of_slabs[1:]:  # not torch.sum: its order may depend on the number of threads
            parts_of_slabs[0] += part
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        d_weights[0].to(A.dtype),
        dB[0].to(B.dtype),
        dC[0].to(C.dtype),
        d_weights[1][:, 0],
        d_weights[2][:, 0],
        d_initial_state,
    )


def _states_shape(shape: Sequence[int], d_state: int, keep: bool) -> tuple[int, ...]:
    """The packed state before each chunk; one slot unless `keep`."""
    from mixers import scan_cpu_kernel as kernel

    batch, length, dim = shape
    blocks = (dim + kernel.LANES - 1) // kernel.LANES  # as torch.compile can follow it, unlike -(-a // b)
    slots = (length + kernel.CHUNK - 1) // kernel.CHUNK + 1 if keep else 1
    return batch, slots, blocks, d_state, kernel.LANES


_scan = ScanOperator(
    "selective_scan", "cpu", ["cpu"], forward=_forward, backward=_backward, states_shape=_states_shape
)
