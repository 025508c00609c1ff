"""Mamba-2's scan on NVIDIA GPUs by mamba-ssm's Triton kernels, when that package is installed.

Source: github.com/state-spaces/mamba, `mamba_ssm/ops/triton/ssd_combined.py::mamba_chunk_scan_combined`. The
kernels take any length. They multiply float32 as TF32, with 11 bits, unless TRITON_F32_DEFAULT=ieee is set,
and pass bfloat16 inputs' states from chunk to chunk in bfloat16; sums and decays are float32.

Each kernel compiles and times its variants on the first call with a new size, which together takes long. What
they found is kept on disk, so that the next process need not ask again, and takes the same variants.
"""

import os

import torch
from torch import Tensor

_CHUNKS = (16, 256)  # tokens, a power of two in between: a tile of a matrix product
_OFFSETS = 2**31


@torch.compiler.disable  # the compiler would look into the kernels' launches, and has no need to
def ssd_scan_mamba_ssm(
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

    Raises:
        ValueError: float64 or 2^31 numbers, which the kernels lack.
    """
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # read when the kernels are imported
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    if torch.float64 in (x.dtype, delta.dtype):
        raise ValueError("mamba-ssm's ssd scan has no float64; use backend='reference'")
    if x.numel() >= _OFFSETS:
        raise ValueError(
            f"mamba-ssm's ssd kernels count with 32 bits, and x has {x.numel():,} numbers: take fewer "
            "sequences at a time, or backend='reference'"
        )
    power_of_two = 1 << (chunk_size - 1).bit_length()
    # the kernels want x, B and C in one dtype, and what decides the decays in float32
    scanned = mamba_chunk_scan_combined(
        x.contiguous(),
        delta.float(),
        A.float(),
        B.to(x.dtype)[:, :, None].contiguous(),  # one group of heads
        C.to(x.dtype)[:, :, None].contiguous(),
        chunk_size=min(max(power_of_two, _CHUNKS[0]), _CHUNKS[1]),
        D=D.float(),
        initial_states=None if initial_state is None else initial_state.float(),
        return_final_states=return_state,
    )
    results = scanned if return_state else (scanned, None)
    for each in results:
        if each is not None and each.requires_grad:
            each.register_hook(_refuse_second_derivative)
    return results


def _refuse_second_derivative(gradient: Tensor) -> None:
    """The backward of the kernels is differentiable to autograd, which would leave out all that they add."""
    if torch.is_grad_enabled():  # inside of a backward: with create_graph=True
        raise NotImplementedError("mamba-ssm's ssd scan has no second derivative; use backend='reference'")
