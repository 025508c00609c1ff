"""Random mixing: a frozen random matrix over the tokens (RandFormer, Yu et al., arXiv 2210.13452)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from mixers.base import TokenMixer, as_grid, as_sequence, full_mask

NUMBERS_AT_ONCE = 2**24
"""Numbers drawn in float64 at a time; bounds the memory of a large matrix."""


class RandomMixing(TokenMixer):
    """Y = softmax(W) X over all tokens, W (L, L) uniform in [0, 1), never trained.

    The layer keeps the seed of its matrix, drawn at construction, and draws the matrix for a number of
    tokens when it first meets it: every grid works, none needs to be announced, and a stored model holds
    one number. The same seed and L give the same matrix on every device, from PyTorch's CPU generator;
    those of two L have nothing to do with each other. It has no parameters: what RandFormer counts as
    frozen ones, L^2 numbers a layer, is not stored.

    The seed is stored like a buffer but is not one: where models are averaged, their buffers with them, the
    mean of two seeds would be another seed.

    Args:
        dim: channels, which are not mixed.
        grid_rank: 1 or 2; the matrix is over tokens in raster order.
    """

    def __init__(self, dim: int, grid_rank: int) -> None:
        super().__init__(dim, grid_rank)
        # on the CPU, even where a model is built without memory: it is read, not computed with
        self.seed = int(torch.randint(2**62, (), device="cpu"))
        self._drawn: tuple[int, Tensor] | None = None
        self.register_state_dict_post_hook(_store_as_seed)
        self.register_load_state_dict_pre_hook(_read_as_seed)

    def get_extra_state(self) -> Tensor:
        """The seed; a tensor, as everything else that is stored."""
        return torch.tensor(self.seed, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.seed = int(state)

    def matrix(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(L, L), rows sum to one; the last matrix is kept, unless it was drawn inside a transform."""
        if self._drawn is not None:
            seed, kept = self._drawn
            if (seed, len(kept), kept.dtype, kept.device) == (self.seed, length, dtype, device):
                return kept
        # what inference mode makes cannot be used in training, and this is kept for both
        with torch.inference_mode(False):
            matrix = random_matrix(self.seed, length, dtype, device)
        if _outlives_the_call(matrix):
            self._drawn = self.seed, matrix
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        tokens = as_sequence(x)
        return as_grid(self.matrix(tokens.shape[1], x.dtype, x.device) @ tokens, x.shape)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return full_mask(math.prod(grid))

    def macs(self, grid: Sequence[int]) -> int:
        """L^2 C."""
        return math.prod(grid) ** 2 * self.dim


def random_matrix(
    seed: int, length: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """(L, L): the rows' softmax of numbers uniform in [0, 1), in float64 before they are rounded."""
    generator = torch.Generator("cpu").manual_seed(seed)
    matrix = torch.empty(length, length, dtype=dtype, device=device)
    for rows in matrix.split(max(1, NUMBERS_AT_ONCE // length)):
        drawn = torch.rand(rows.shape, generator=generator, device="cpu", dtype=torch.float64)
        rows.copy_(drawn.softmax(-1))
    return matrix


def _outlives_the_call(matrix: Tensor) -> bool:
    """Whether it is a tensor like any other, not a fake one nor one that ends with a call of torch.func."""
    if torch.compiler.is_compiling():  # which cannot ask, and draws outside of what it compiles
        return True
    return type(matrix) is Tensor and not _functorch.is_functorch_wrapped_tensor(matrix)


def _store_as_seed(module: RandomMixing, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Store the extra state as `seed`, its name in older files and for whoever reads a file."""
    state[f"{prefix}seed"] = state.pop(f"{prefix}_extra_state")


def _read_as_seed(module: RandomMixing, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Load `seed` as the extra state; of a file without it torch says that the extra state is missing."""
    if f"{prefix}seed" in state:
        state[f"{prefix}_extra_state"] = state.pop(f"{prefix}seed")
