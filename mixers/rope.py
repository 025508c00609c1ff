"""Rotary position embedding (RoPE; Su et al., arXiv 2104.09864), on sequences and on images.

Layout: interleaved, as in the paper (equation 34) and in timm's EVA: channels 2 j and 2 j + 1 are the
plane that is turned by the angle of pair j. The half-split layout of Llama, which pairs j with
j + head_dim / 2, is another function of the same weights.

On a sequence token m turns pair j of P = head_dim / 2 by m ROPE_BASE^(-j / P). On an image the first
half of the pairs is turned by the row and the other half by the column, each with P = head_dim / 4
frequencies (axial RoPE). Either way the score of two tokens depends on their offset alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROPE_BASE = 10_000.0


def check_rope(head_dim: int, grid_rank: int) -> None:
    """Refuse a head that cannot be cut into pairs, equally many for each axis.

    Raises:
        ValueError: `head_dim` is not a multiple of twice the rank.
    """
    if head_dim % (2 * grid_rank) != 0:
        raise ValueError(
            f"rope turns pairs of channels, equally many for each of {grid_rank} axes: head_dim must be a "
            f"multiple of {2 * grid_rank}, got {head_dim}"
        )


def rotary_angles(
    grid: Sequence[int], head_dim: int, *, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """(L, head_dim / 2): the angle of every token and pair, tokens in raster order."""
    pairs = head_dim // (2 * len(grid))
    positions = [torch.arange(size, dtype=dtype, device=device) for size in grid]
    coordinates = torch.stack(torch.meshgrid(*positions, indexing="ij"), dim=-1).flatten(0, -2)  # (L, rank)
    frequencies = ROPE_BASE ** (-torch.arange(pairs, dtype=dtype, device=device) / pairs)
    return (coordinates[:, :, None] * frequencies).flatten(1)  # (L, rank, pairs) -> (L, head_dim / 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs of `x` (..., L, head_dim) by `angles` (L, head_dim / 2); keeps the dtype."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)  # (..., L, pairs, 2)
    return turned.flatten(-2).to(x.dtype)
