"""The selective scan on GPUs by Triton kernels (`scan_triton_kernel`), as a PyTorch operator with a backward.

Triton comes with torch: there is no CUDA toolkit to install and nothing to build beforehand, though on first
use it wants an ordinary C compiler. The kernels do what mamba-ssm's lacks: they scan from the last token to
the first, take an initial state, differentiate the last state, have no limit on d_state, and give the same
bits in every run. The kernels are imported on the first call.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixers.scan_operator import ScanOperator

SEGMENT = 32  # tokens per state that forward keeps for backward
GROUP = 4  # tokens whose states backward holds in registers; 8 spill, and take five times as long to compile
MIN_CHUNK = 64  # tokens that a program of its own is worth
PROGRAMS = 4096  # fills the largest GPUs: 32 programs of one warp on each of 128 multiprocessors


def selective_scan_triton(
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

    Memory beyond inputs and outputs is the state once per 32 tokens, kept only when a gradient is wanted;
    and while backward runs, the gradients of B and C once per 32 channels and the state once per 8 tokens.
    """
    y, last_state = _scan(u, delta, A, B, C, D, delta_bias, initial_state, reverse)
    return y, last_state if return_state else None


# ---- sizes -------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """How a scan is cut up. It depends on the shapes alone, and so does the order of every sum."""

    block_d: int  # channels of a program, a power of two
    block_n: int  # d_state, padded to a power of two
    blocks: int  # programs side by side to cover all channels
    chunk_tokens: int  # tokens of a program, a multiple of SEGMENT
    chunks: int  # programs one after the other to cover all tokens
    num_warps: int


def choose_sizes(batch: int, length: int, dim: int, d_state: int) -> Sizes:
    """32 channels, or all if there are fewer, and as many chunks as it takes to fill a GPU.

    One chunk costs least work: from two on, nearly every token is visited twice.
    """
    block_n = _power_of_two(d_state)
    block_d = min(32, _power_of_two(dim), max(1, 4096 // block_n))
    blocks = -(-dim // block_d)
    wanted = -(-PROGRAMS // max(1, batch * blocks))
    chunk_tokens = max(MIN_CHUNK, -(-length // wanted))
    chunk_tokens = -(-chunk_tokens // SEGMENT) * SEGMENT
    chunks = -(-length // chunk_tokens)
    num_warps = min(8, max(1, block_d * block_n // 512))  # 16 numbers of a state in each thread
    return Sizes(block_d, block_n, blocks, chunk_tokens, chunks, num_warps)


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


# ---- the kernels -------------------------------------------------------------------------------------------


class _Launcher:
    """Buffers and launches of the kernels for one shape, on the device of `u`."""

    def __init__(self, u: Tensor, d_state: int, reverse: bool) -> None:
        self.device = u.device
        self.batch, self.length, self.dim = u.shape
        self.d_state = d_state
        self.reverse = reverse
        self.sizes = choose_sizes(self.batch, self.length, self.dim, d_state)
        self.span = self.length, self.sizes.chunks, self.sizes.chunk_tokens

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def vector(self, t: Tensor | None) -> Tensor:
        return self.empty(self.dim).zero_() if t is None else t.float().contiguous()

    def state(self, t: Tensor | None) -> Tensor:
        """(batch, dim, d_state) -> (batch, d_state, dim), as in the kernels; None is zero."""
        if t is None:
            return self.empty(self.batch, self.d_state, self.dim).zero_()
        return t.float().transpose(1, 2).contiguous()

    def run(self, kernel: Any, parts: int, *arguments: Any, **constants: Any) -> None:
        """One program per batch item, block of channels and part of the sequence."""
        programs = self.batch * self.sizes.blocks * parts
        if programs == 0:
            return
        # Triton launches on the current device, whichever the tensors are on
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[(programs,)](
                *arguments,
                **constants,
                DIM=self.dim,
                D_STATE=self.d_state,
                BLOCK_D=self.sizes.block_d,
                BLOCK_N=self.sizes.block_n,
                num_warps=self.sizes.num_warps,
            )

    def entering(self, local_kernel: Any, inputs: tuple[Tensor, ...], A: Tensor, start: Tensor) -> Tensor:
        """What enters each chunk, (batch, chunks, d_state, dim); `start` enters the first to be run."""
        from mixers import scan_triton_kernel as kernel

        chunks = self.sizes.chunks
        if chunks == 1:
            return start
        local = self.empty(self.batch, chunks - 1, self.d_state, self.dim)
        elapsed = self.empty(self.batch, chunks - 1, self.dim)
        entering = self.empty(self.batch, chunks, self.d_state, self.dim)
        self.run(local_kernel, chunks - 1, *inputs, local, elapsed, *self.span, REVERSE=self.reverse)
        adjoint = local_kernel is kernel.local_adjoints
        self.run(kernel.carry, 1, A, start, local, elapsed, entering, chunks, ADJOINT=adjoint)
        return entering


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
    """`(y, last_state, checkpoints)`."""
    from mixers import scan_triton_kernel as kernel

    launch = _Launcher(u, A.shape[1], reverse)
    u, delta, B, C = (t.contiguous() for t in (u, delta, B, C))
    A, D, delta_bias = A.float().T.contiguous(), launch.vector(D), launch.vector(delta_bias)
    y = torch.empty_like(u)
    last_state = launch.empty(launch.batch, launch.d_state, launch.dim)
    checkpoints = launch.empty(*_states_shape(u.shape, launch.d_state, keep))
    entering = launch.entering(
        kernel.local_states, (u, delta, A, B, delta_bias), A, launch.state(initial_state)
    )
    launch.run(
        kernel.forward,
        launch.sizes.chunks,
        *(u, delta, A, B, C, D, delta_bias),
        entering,
        *(y, last_state, checkpoints),
        *launch.span,
        KEEP=keep,
        REVERSE=reverse,
        SEGMENT=SEGMENT,
    )
    return y, last_state.transpose(1, 2).contiguous(), checkpoints


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
    checkpoints: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, delta_bias and initial_state, of missing ones too."""
    from mixers import scan_triton_kernel as kernel

    launch = _Launcher(u, A.shape[1], reverse)
    batch, length, dim, d_state = launch.batch, launch.length, launch.dim, launch.d_state
    block_d, block_n, blocks, _, chunks, _ = launch.sizes
    dtypes = A.dtype, B.dtype, C.dtype
    grad_y, u, delta, B, C = (t.contiguous() for t in (grad_y, u, delta, B, C))
    A, D, delta_bias = A.float().T.contiguous(), launch.vector(D), launch.vector(delta_bias)

    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA = launch.empty(batch, chunks, d_state, dim)
    dB, dC = launch.empty(blocks, batch, length, d_state), launch.empty(blocks, batch, length, d_state)
    dD, dbias = launch.empty(batch, chunks, dim), launch.empty(batch, chunks, dim)
    d_initial_state = launch.empty(batch, d_state, dim)
    notes = launch.empty(batch * blocks * chunks, SEGMENT // GROUP, block_n, block_d)
    entering = launch.entering(
        kernel.local_adjoints, (grad_y, delta, A, C, delta_bias), A, launch.state(grad_last_state)
    )
    launch.run(
        kernel.backward,
        chunks,
        *(grad_y, u, delta, A, B, C, D, delta_bias),
        *(checkpoints, entering, notes),
        *(du, ddelta, dA, dB, dC, dD, dbias, d_initial_state),
        batch * length,
        *launch.span,
        REVERSE=reverse,
        SEGMENT=SEGMENT,
        GROUP=GROUP,
    )
    return (
        du,
        ddelta,
        dA.sum((0, 1)).T.to(dtypes[0], memory_format=torch.contiguous_format),
        dB.sum(0).to(dtypes[1]),
        dC.sum(0).to(dtypes[2]),
        dD.sum((0, 1)),
        dbias.sum((0, 1)),
        d_initial_state.transpose(1, 2).contiguous(),
    )


def _states_shape(shape: Sequence[int], d_state: int, keep: bool) -> tuple[int, ...]:
    """The state before each segment; none unless `keep`."""
    batch, length, dim = shape
    return batch, (length + SEGMENT - 1) // SEGMENT if keep else 0, d_state, dim


_scan = ScanOperator(
    "selective_scan_triton",
    "triton",
    ["cuda", "cpu"],  # on the CPU Triton's interpreter runs the kernels, in the tests
    forward=_forward,
    backward=_backward,
    states_shape=_states_shape,
)
