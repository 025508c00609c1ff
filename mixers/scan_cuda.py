"""The selective scan on NVIDIA GPUs by mamba-ssm's CUDA kernel, when that package is installed with it.

Source: github.com/state-spaces/mamba, `mamba_ssm/ops/selective_scan_interface.py::selective_scan_fn`. That
kernel wants channels before length, scans forward only, starts from a zero state and gives the last state no
gradient. Its backward adds dA, dB, dC and dD with atomics, so two runs may differ in the last bits.
"""

import torch
from torch import Tensor

_MAX_D_STATE = 256


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
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if initial_state is not None:
        raise ValueError("mamba-ssm's scan has no initial_state; use backend='reference'")
    if u.dtype == torch.float64:
        raise ValueError("mamba-ssm's scan has no float64; use backend='reference'")
    if A.shape[1] > _MAX_D_STATE:
        raise ValueError(f"mamba-ssm's scan has d_state up to {_MAX_D_STATE}, got {A.shape[1]}")
    # the kernel wants u, delta, B and C in one dtype and A, D, delta_bias in float32
    u_, delta_, B_, C_ = (_to_kernel(t.to(u.dtype), reverse) for t in (u, delta, B, C))
    y, last_state = selective_scan_fn(
        u=u_,
        delta=delta_,
        A=A.float(),
        B=B_,
        C=C_,
        D=None if D is None else D.float(),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=True,
        return_last_state=True,
    )
    y = y.flip(-1) if reverse else y
    return y.transpose(1, 2), last_state.detach()


def _to_kernel(t: Tensor, reverse: bool) -> Tensor:
    """(batch, length, channels) -> (batch, channels, length), contiguous, in the order of the scan."""
    t = t.transpose(1, 2)
    return (t.flip(-1) if reverse else t).contiguous()
