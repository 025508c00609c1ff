"""Depthwise convolutions: MambaOut's token mixer, and its causal sibling.

MambaOut (arXiv 2405.07992, eq. 9) mixes tokens by a 7 x 7 depthwise convolution; inside its mixer,
Mamba (arXiv 2312.00752, figure 3) has a causal one of width 4 along the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers import backends
from mixers.base import State, TokenMixer, raster_causal_mask, require_odd, window_mask
from mixers.conv_cuda import TAPS

INIT_STD = 0.02  # MambaOut draws every weight from a normal truncated at two units, biases are 0


def depthwise_conv(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """Convolve every channel with its own kernel, `padding` zeros on both sides of every axis of the grid.

    The permutes move no data: the convolution sees a channels-last tensor and returns one.

    Args:
        x: (B, L, C) or (B, H, W, C).
        kernel: (C, 1, k) or (C, 1, kH, kW).
        bias: (C,); None for none.
        padding: one number per axis of the grid.

    Returns:
        (B, L', C) or (B, H', W', C).
    """
    if x.ndim == 3:  # a sequence is an image of one row: only 2-D convolutions have a channels-last kernel
        return depthwise_conv(x[:, None], kernel[:, :, None], bias, (0, *padding))[:, 0]
    x = x.permute(0, 3, 1, 2)
    # On channels-last CPU tensors oneDNN has a depthwise weight gradient for small kernels only. For larger
    # ones it takes 16 x 16 channels at a time as if they were dense and throws most of the result away.
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if on_cpu and min(kernel.shape[2:]) > 3 and not backends.in_forward_mode():
        y = _DepthwiseConv2d.apply(x, kernel, bias, padding)
    else:
        y = F.conv2d(x, kernel, bias, padding=padding, groups=len(kernel))
    return y.permute(0, 2, 3, 1)


class _DepthwiseConv2d(torch.autograd.Function):
    """A depthwise convolution whose two gradients are depthwise convolutions, too.

    The input's gradient is the output's gradient convolved with the mirrored kernel. The kernel's gradient is
    the input convolved with the output's gradient as the kernel, each image and channel by itself:
    dK[c, i, j] = sum over b, y, x of dY[b, c, y, x] X[b, c, y + i - p, x + j - p].
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        return F.conv2d(x, kernel, bias, padding=padding, groups=len(kernel))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, kernel, _, ctx.padding = inputs
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        rest = [k - 1 - p for k, p in zip(kernel.shape[2:], ctx.padding, strict=True)]
        dx = dkernel = dbias = None
        if ctx.needs_input_grad[0]:
            dx = F.conv2d(grad, kernel.flip(2, 3), padding=rest, groups=len(kernel))
        if ctx.needs_input_grad[1]:
            # an empty batch would leave conv2d with 0 channels, which it refuses
            dkernel = _kernel_gradient(x, grad, ctx.padding) if len(x) else torch.zeros_like(kernel)
        if ctx.needs_input_grad[2]:
            dbias = grad.sum((0, 2, 3))
        return dx, dkernel, dbias, None


def _kernel_gradient(x: Tensor, grad: Tensor, padding: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) and (B, C, H', W') -> (C, 1, kH, kW)."""
    images = max(1, 2048 // grad[0, 0].numel())  # at a time, so that they stay in the cache
    parts = zip(x.split(images), grad.split(images), strict=True)
    return torch.stack([_kernel_gradient_of_part(*part, padding) for part in parts]).sum(0)


def _kernel_gradient_of_part(x: Tensor, grad: Tensor, padding: tuple[int, ...]) -> Tensor:
    """`_kernel_gradient` of a few images, which become channels."""
    batch, channels = x.shape[:2]
    groups = batch * channels
    # channels stay last in memory: (1, B C, H, W)
    x = x.permute(2, 3, 0, 1).reshape(*x.shape[2:], groups).permute(2, 0, 1)[None]
    kernel = grad.reshape(groups, 1, *grad.shape[2:])
    y = F.conv2d(x, kernel, padding=padding, groups=groups)  # (1, B C, kH, kW)
    return y.view(batch, channels, 1, *y.shape[2:]).sum(0)


class DepthwiseConv(TokenMixer):
    """Every channel is convolved with its own kernel, centred on the token; zeros outside of the grid.

    Args:
        dim: channels.
        grid_rank: 1 for k taps, 2 for k x k.
        kernel_size: k, odd.

    Raises:
        ValueError: `kernel_size` is even.
    """

    def __init__(self, dim: int, grid_rank: int, *, kernel_size: Annotated[int, Field(ge=1)] = 7) -> None:
        super().__init__(dim, grid_rank)
        require_odd("kernel_size", kernel_size)
        self.kernel_size = kernel_size
        self.causal = kernel_size == 1
        self.weight = nn.Parameter(torch.empty(dim, 1, *[kernel_size] * grid_rank))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias, (self.kernel_size // 2,) * self.grid_rank)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return window_mask(grid, self.kernel_size // 2, self.kernel_size // 2)

    def macs(self, grid: Sequence[int]) -> int:
        """k taps (k^2 on an image) per token and channel, also where they meet the zeros around the grid."""
        return math.prod(grid) * self.weight.numel()


def causal_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor, silu: bool, channels_first: bool = False
) -> Tensor:
    """y[t] = sum over j < k of weight[k - 1 - j] x[t - j] + bias, from zeros before the first token.

    Args:
        x: (B, L, C).
        weight: (C, k).
        bias: (C,).
        silu: return SiLU(y).
        channels_first: a kernel that can lets the result have channels before length in memory; here it is
            the same.

    Returns:
        (B, L, C).
    """
    past = F.pad(x, (0, 0, weight.shape[1] - 1, 0))  # (B, k - 1 + L, C)
    y = depthwise_conv(past, weight[:, None], bias, padding=(0,))
    return F.silu(y) if silu else y


class CausalConv(TokenMixer, backends.HasBackend):
    """A depthwise convolution of the token with what came before it.

    On a sequence: the k taps that end with the token. On an image, in raster order: k rows of k
    columns that are centred on the token's column and end with the token's row. Only the taps up to the
    token itself exist, k (k - 1) + (k + 1) / 2 in all.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        kernel_size: k; odd on an image. On a sequence, causal or not, the default is 4, as in Mamba.

    Raises:
        ValueError: `kernel_size` is even on an image.
    """

    causal = True

    def __init__(self, dim: int, grid_rank: int, *, kernel_size: Annotated[int, Field(ge=1)] = 7) -> None:
        super().__init__(dim, grid_rank)
        if grid_rank == 2 and kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd on an image so that its columns have a centre, got {kernel_size}"
            )
        self.kernel_size = kernel_size
        self.operation = "conv" if grid_rank == 1 and kernel_size in TAPS else None
        after = kernel_size // 2  # taps of the token's own row that lie after the token
        taps = kernel_size if grid_rank == 1 else kernel_size**2 - after
        self.weight = nn.Parameter(torch.empty(dim, taps))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.weight, std=INIT_STD)

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        return {"kernel_size": 4} if grid_rank == 1 else {}

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, False)

    def silu(self, x: Tensor, channels_first: bool = False) -> Tensor:
        """SiLU of the result, taken by the same kernel where one can, and on a sequence laid out in memory as
        `causal_conv_reference` says.
        """
        return self._convolve(x, True, channels_first)

    def _convolve(self, x: Tensor, silu: bool, channels_first: bool = False) -> Tensor:
        if self.operation is not None:
            needs = backends.FLOAT64 if x.dtype == torch.float64 else backends.NOTHING
            inputs = x, self.weight, self.bias, silu, channels_first
            y: Tensor = backends.run("conv", self.backend, needs, *inputs)
            return y
        if self.grid_rank == 1:
            return causal_conv_reference(x, self.weight, self.bias, silu)
        k = self.kernel_size
        past = F.pad(x, (0, 0, k // 2, k // 2, k - 1, 0))  # (B, k - 1 + H, W + 2 (k // 2), C)
        # In raster order the missing taps are the last of the k x k kernel.
        kernel = F.pad(self.weight, (0, k // 2)).view(self.dim, 1, k, k)
        y = depthwise_conv(past, kernel, self.bias, padding=(0, 0))
        return F.silu(y) if silu else y

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        k = self.kernel_size
        if self.grid_rank == 1:
            return window_mask(grid, k - 1, 0)
        rows, columns = grid
        window = torch.kron(window_mask((rows,), k - 1, 0), window_mask((columns,), k // 2, k // 2))
        return window & raster_causal_mask(rows * columns)

    def macs(self, grid: Sequence[int]) -> int:
        """One per existing tap, token and channel."""
        return math.prod(grid) * self.weight.numel()

    def state_size(self, length: int) -> int | None:
        """The last k - 1 tokens."""
        return self.dim * (self.kernel_size - 1) if self.grid_rank == 1 else None

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        return (torch.zeros(batch_size, self.kernel_size - 1, self.dim, device=device),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        window = torch.cat((state[0].to(x), x[:, None]), dim=1)  # (B, k, C)
        return (window * self.weight.T).sum(1) + self.bias, (window[:, 1:],)


def draw_as_torch(conv: CausalConv) -> None:
    """Draw weights and biases anew as torch does for its own convolutions, from U(-1/sqrt(k), 1/sqrt(k)).

    Mamba's code leaves its convolution there. With k = 4 it starts 14 times larger than MambaOut's.
    """
    bound = conv.kernel_size**-0.5
    nn.init.uniform_(conv.weight, -bound, bound)
    nn.init.uniform_(conv.bias, -bound, bound)
