"""The selective scan, the recurrence inside Mamba: for whole sequences, and one token at a time to decode.

Shapes: u, delta (batch, length, dim); A (dim, d_state); B, C (batch, length, d_state); D, delta_bias (dim,);
states (batch, dim, d_state). Channels are last, as everywhere in this package.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers import backends


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan a sequence: with `Delta = softplus(delta + delta_bias)`, for every channel d and state n,

        h[t] = exp(Delta[t] * A) * h[t-1] + Delta[t] * u[t] * B[t]
        y[t] = sum over n of h[t] * C[t]  +  D * u[t]

    Source: Gu & Dao, arXiv 2312.00752, equations 2a-2b and Algorithm 2. A is discretised by zero-order hold
    and B by Euler's rule (`Delta * B`), as in mamba-ssm; the paper's equation 4 has zero-order hold for both.

    Args:
        u: input, (batch, length, dim).
        delta: step size before bias and softplus, (batch, length, dim). A and delta share one unit of time.
        A: (dim, d_state), real and not positive: the CPU kernel relies on exp(Delta * A) <= 1.
        B, C: (batch, length, d_state), or expandable to it: (1, 1, d_state) makes them constant in time.
        D: weight of the skip connection, (dim,).
        delta_bias: (dim,).
        initial_state: h before the first token, (batch, dim, d_state); zeros by default.
        reverse: scan from the last token to the first: y[t] depends on tokens >= t, and the last state is the
            one after token 0.
        return_state: also return the last state.
        backend: "auto" or a name in `mixers.backends.BACKENDS`. Forward mode and torch.func.grad need the
            reference, which "auto" then takes.

    Returns:
        y, (batch, length, dim) in u's dtype, or `(y, last_state)` with last_state (batch, dim, d_state).
        States and exponentials are float32, or float64 when an input is, also under autocast. Every tensor
        input gets a gradient, through y and through last_state.

    Raises:
        ValueError: a shape does not fit, or the backend asked for by name cannot do what the call needs.
        mixers.backends.BackendUnavailable: the backend asked for by name does not run here.
    """
    _check_shapes(u, delta, A, D, delta_bias, initial_state)
    B = _expand("B", B, (u.shape[0], u.shape[1], A.shape[1]))
    C = _expand("C", C, (u.shape[0], u.shape[1], A.shape[1]))
    inputs = (u, delta, A, B, C, D, delta_bias, initial_state)
    needs = backends.NOTHING
    if torch.float64 in [t.dtype for t in inputs if t is not None]:
        needs |= backends.FLOAT64
    if A.shape[1] > backends.MAMBA_SSM_STATES:
        needs |= {backends.MORE_STATES}
    if initial_state is not None:
        needs |= {"initial_state"}
    if return_state and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        needs |= {"state_gradient"}
    y, last_state = backends.run("scan", backend, needs, *inputs, reverse, return_state)
    return (y, last_state) if return_state else y


def selective_scan_step(
    u_t: Tensor,
    delta_t: Tensor,
    A: Tensor,
    B_t: Tensor,
    C_t: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token of `selective_scan`, for decoding; u_t, delta_t (batch, dim) and B_t, C_t (batch, d_state).

    Returns `(y_t, state)` with y_t (batch, dim) in u_t's dtype and a new state (batch, dim, d_state) in the
    dtype of the one given (float32 or wider), which is left as it was. Token by token from a zero state it
    gives the `y` and the last state of `selective_scan`.
    """
    x, dt, A, B_t, C_t = (t.to(state.dtype) for t in (u_t, delta_t, A, B_t, C_t))
    dt = F.softplus(dt if delta_bias is None else dt + delta_bias)
    decay = torch.exp(dt[..., None] * A)  # (batch, dim, d_state)
    state = decay * state + (dt * x)[..., None] * B_t[:, None]
    y_t = (state * C_t[:, None]).sum(-1)
    if D is not None:
        y_t = y_t + D * x
    return y_t.to(u_t.dtype), state


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.ndim != 3 or u.shape[1] == 0:
        raise ValueError(f"u must be (batch, length, dim) with length >= 1, got {tuple(u.shape)}")
    batch, _, dim = u.shape
    if A.ndim != 2 or A.is_complex():
        raise ValueError(f"A must be real (dim, d_state), got {A.dtype} of shape {tuple(A.shape)}")
    for name, tensor, shape in (
        ("delta", delta, u.shape),
        ("A", A, (dim, A.shape[1])),
        ("D", D, (dim,)),
        ("delta_bias", delta_bias, (dim,)),
        ("initial_state", initial_state, (batch, dim, A.shape[1])),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} must be {tuple(shape)} for u {tuple(u.shape)}, got {tuple(tensor.shape)}"
            )


def _expand(name: str, tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if tensor.shape == shape:
        return tensor
    fits = tensor.ndim == 3 and all(have in (1, want) for have, want in zip(tensor.shape, shape, strict=True))
    if not fits or tensor.shape[2] != shape[2]:
        raise ValueError(f"{name} must be {shape} or expandable to it, got {tuple(tensor.shape)}")
    return tensor.expand(shape)
