"""The selective scan in plain PyTorch: the oracle that every kernel is compared with.

It follows Gu & Dao (arXiv 2312.00752), equations 2a-2b and Algorithm 2, one token after the other, keeps the
dtype it is given (float64 passes `torch.autograd.gradcheck`) and shares no code with the kernels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
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
    `mixers.scan.selective_scan`.

    The computation is in the widest dtype of the inputs, float32 at least. `y` has `u`'s dtype, `last_state`
    that of the computation. Autograd keeps the state of every token, so memory is
    O(batch * length * dim * d_state).
    """
    dtype = torch.float32
    for given in (u, delta, A, B, C, D, delta_bias, initial_state):
        dtype = dtype if given is None else torch.promote_types(dtype, given.dtype)
    x, dt, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    dt = F.softplus(dt)

    h = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state.to(dtype)

    # unbind, not indexing: the backward of x[:, t] writes a tensor of x's size for each t, which is O(L^2)
    tokens = list(zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    ys: list[Tensor] = []
    for x_t, dt_t, B_t, C_t in reversed(tokens) if reverse else tokens:
        decay = torch.exp(dt_t[..., None] * A)  # (batch, dim, d_state)
        h = decay * h + (dt_t * x_t)[..., None] * B_t[:, None]
        # a product and a sum, not an einsum: autocast would run that one in bfloat16
        ys.append((h * C_t[:, None]).sum(-1))  # (batch, dim)
    y = torch.stack(ys[::-1] if reverse else ys, dim=1)  # (batch, length, dim)
    if D is not None:
        y = y + x * D.to(dtype)
    return y.to(u.dtype), h if return_state else None
