"""A causal convolution with a kernel as long as the sequence: y[t] = sum over s <= t of K[t - s] u[s].

Short sequences are multiplied by the Toeplitz matrix of the kernel, which is causal to the last bit. Long
ones go through the Fourier transform, padded so that the ends do not meet; there the rounding error of each
output depends on the whole sequence, later tokens included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.base import full_precision

DIRECT_LENGTH = 64  # up to here the matrix is used; benchmarks/mixers_cpu.py prints the time of both


def long_conv(u: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel with its kernel.

    Args:
        u: (B, L, C).
        kernel: (C, L), float32 or wider.

    Returns:
        (B, L, C) in u's dtype, computed in float32 or wider.
    """
    convolve = toeplitz_conv if u.shape[1] <= DIRECT_LENGTH else fft_conv
    with full_precision(u.device):
        return convolve(u.to(torch.promote_types(u.dtype, torch.float32)), kernel).to(u.dtype)


def toeplitz_conv(u: Tensor, kernel: Tensor) -> Tensor:
    """By the Toeplitz matrix, L^2 MACs per channel: u (B, L, C) and kernel (C, L) -> (B, L, C)."""
    length = u.shape[1]
    windows = F.pad(kernel, (length - 1, 0)).unfold(-1, length, 1)  # [c, t, s] = K[t - (L - 1 - s)]
    y = windows @ u.flip(1).permute(2, 1, 0)  # (C, L, L) @ (C, L, B)
    return y.permute(2, 1, 0)


def fft_conv(u: Tensor, kernel: Tensor) -> Tensor:
    """By three real Fourier transforms per channel: u (B, L, C) and kernel (C, L) -> (B, L, C)."""
    size = _fft_size(u.shape[1])
    u_hat = torch.fft.rfft(u.transpose(1, 2).contiguous(), n=size)  # (B, C, size / 2 + 1)
    y = torch.fft.irfft(u_hat * torch.fft.rfft(kernel, n=size), n=size)
    return y[..., : u.shape[1]].transpose(1, 2)


def long_conv_macs(length: int, dim: int) -> int:
    """MACs of `long_conv` for one sequence; a real transform of n numbers counts as 5/4 n log2(n) MACs."""
    if length <= DIRECT_LENGTH:
        return dim * length**2
    size = _fft_size(length)
    return 3 * dim * 5 * size * (size.bit_length() - 1) // 4


def _fft_size(length: int) -> int:
    """The smallest power of two that is not below 2 L - 1."""
    return 1 << (2 * length - 2).bit_length()
