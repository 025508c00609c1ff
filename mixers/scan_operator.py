"""What PyTorch knows of a fused selective scan: an operator with a backward of its own.

Autograd, `FlopCounterMode`, the meta device, fake tensors and torch.compile see two operators, forward and
backward, and never look into the kernels. `scan_cpu`, `scan_cuda` and `scan_triton` differ in those alone.

The operators are defined by torch.library.define, not by custom_op, which imports torch._dynamo on the first
call: 3 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

Kernel = Callable[..., tuple[Tensor, ...]]
StatesShape = Callable[[Sequence[int], int, bool], tuple[int, ...]]

INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias"


class ScanOperator:
    """A selective scan, called as `mixers.scan.selective_scan` is, computed in float32.

    Args:
        name: of the operator in `torch.ops.mixers`; that of its backward ends in `_backward`.
        backend: its name in messages.
        devices: types of devices whose tensors the kernels take.
        channels: the axis of u that has them: 2, or 1 where kernels want them before length; B and C alike.
        forward: (u, delta, A, B, C, D, delta_bias, initial_state, reverse, keep) -> (y, last_state, states),
            where states is what backward needs, if `keep`.
        backward: (grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, states, reverse) -> gradients of
            the tensors from u to delta_bias and of initial_state, of missing ones too.
        states_shape: of states, from the shape of u, d_state and `keep`.
    """

    def __init__(
        self,
        name: str,
        backend: str,
        devices: Sequence[str],
        *,
        channels: int = 2,
        forward: Kernel,
        backward: Kernel,
        states_shape: StatesShape,
    ) -> None:
        self.name, self.backend, self.states_shape = f"mixers::{name}", backend, states_shape
        self.channels = channels
        backward_name = f"{self.name}_backward"
        torch.library.define(
            self.name,
            f"({INPUTS}, Tensor? initial_state, bool reverse, bool keep)"
            " -> (Tensor y, Tensor last_state, Tensor states)",
        )
        torch.library.define(
            backward_name,
            f"(Tensor grad_y, Tensor? grad_last_state, {INPUTS}, Tensor states, bool reverse)"
            " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        )
        torch.library.impl(self.name, devices, forward)
        torch.library.impl(backward_name, devices, backward)
        torch.library.register_fake(self.name, self._fake_forward)
        torch.library.register_fake(backward_name, self._fake_backward)
        torch.library.register_autograd(self.name, self._differentiate, setup_context=_setup_context)
        torch.library.register_autograd(backward_name, self._no_second_derivative)
        forwards = getattr(torch.ops.mixers, name)
        backwards = getattr(torch.ops.mixers, f"{name}_backward")
        register_flop_formula(forwards)(_forward_flops)
        register_flop_formula(backwards)(_backward_flops)
        self._forward, self._backward = forwards.default, backwards.default

    def __call__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        tensors = (u, delta, A, B, C, D, delta_bias, initial_state)
        given = [t for t in tensors if t is not None]
        if any(t.dtype == torch.float64 for t in given):
            raise ValueError(
                f"the {self.backend} scan computes in float32; use backend='reference' for float64 inputs"
            )
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        y, last_state, _ = self._forward(*tensors, reverse, keep)
        return y, last_state

    def _fake_forward(  # type: ignore[no-untyped-def]
        self, u, delta, A, B, C, D, delta_bias, initial_state, reverse, keep
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, dim, d_state = u.shape[0], u.shape[self.channels], A.shape[1]
        return (
            u.new_empty(u.shape),
            u.new_empty(batch, dim, d_state, dtype=torch.float32),
            u.new_empty(self.states_shape(u.shape, d_state, keep), dtype=torch.float32),
        )

    def _fake_backward(  # type: ignore[no-untyped-def]
        self, grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, states, reverse
    ) -> tuple[Tensor, ...]:
        vector = u.new_empty(u.shape[self.channels], dtype=torch.float32)
        state = u.new_empty(u.shape[0], *A.shape, dtype=torch.float32)
        like = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, A, B, C))
        return (*like, vector, torch.empty_like(vector), state)

    def _differentiate(
        self, ctx: Any, grad_y: Tensor | None, grad_last_state: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        *inputs, initial_state, states = ctx.saved_tensors
        if not ctx.keep:
            raise RuntimeError(f"{self.name} was called with keep=False: it stored no states for backward")
        if grad_y is None:
            grad_y = torch.zeros_like(inputs[0])
        grads = self._backward(grad_y, grad_last_state, *inputs, states, ctx.reverse)
        optional = [
            None if t is None else grad.to(t.dtype)
            for t, grad in zip((*inputs[5:], initial_state), grads[5:], strict=True)
        ]
        return (*grads[:5], *optional, None, None)

    def _no_second_derivative(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        raise NotImplementedError(
            f"the {self.backend} scan has no second derivative; use backend='reference'"
        )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.reverse, ctx.keep = inputs
    states = output[2]
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, states)


# Forward is 3 MACs = 6 FLOPs per (batch, length, dim, d_state) element: two for decay * h + x * B, one for
# y += h * C. exp, softplus and the skip D u count nothing, as activations do not. Backward is twice that.


def _forward_flops(u: torch.Size, delta: torch.Size, A: torch.Size, *rest: Any, **named: Any) -> int:
    return 6 * u.numel() * A[1]


def _backward_flops(
    grad_y: torch.Size, last: Any, u: torch.Size, delta: Any, A: torch.Size, *rest: Any, **named: Any
) -> int:
    return 12 * u.numel() * A[1]
