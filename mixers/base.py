"""The contract of a token mixer.

Symbols, here and in every mixer: B batch, L length (number of tokens), C channels, `grid` the axes
between B and C: `(L,)` for a sequence (rank 1), `(H, W)` for an image (rank 2), read in raster
order (row by row) wherever an order is needed. N is the SSM's state size per channel.

A token mixer is the part of a block that moves information between positions: no residual, no channel
MLP, and no norm or gate other than those of its own definition (gated linear attention has both). The
block's belong to the skeleton, which receives the mixer as a factory and never asks which one it holds.

What a mixer must do
    * subclass `TokenMixer`; take `(dim, grid_rank)` first and its options as typed keyword-only
      parameters with defaults (they become the command line's `mixer(option=value)`);
    * map `(B, *grid, C)` to the same shape and type for the ranks in `grid_ranks`, each example by itself
      (in training it may normalise over the batch), without writing into its input; a mixer that needs
      another layout permutes inside itself; every grid size works, 1 included;
    * keep all that is drawn in `__init__` in its `state_dict`: loaded into another one it gives the same;
    * initialise its own parameters in `__init__` from the global RNG (the builder seeds it per
      layer). Nobody initialises them again. The same `__init__` must run on torch's meta device,
      where models are counted and tensors have shapes but no values: it reads none (no `.item()`,
      no `float(tensor)`; `math` is for plain numbers);
    * say what it may see, exactly, in `dependency_mask`; `causal` follows from it and is what a
      causal task trusts. Tests compare the mask with the Jacobian;
    * count its work in `macs` by a closed form (1 MAC = 2 FLOPs) and, if it can run one token at a
      time, its memory in `state_size`. One that computes more than its definition needs, in tiles or
      chunks, counts what the definition needs, and its own test proves that.

What a mixer may do
    * name parameters that must not be decayed in `no_weight_decay`;
    * offer `init_state` and `step`, which fed token by token give exactly what `forward` gives. Only
      causal mixers on sequences can; the others leave `state_size` at None;
    * change its defaults with the place it is put in (`place_defaults`), e.g. scan both ways on an
      image and forward on a causal sequence.

Adding one: a file with the class, a line in `mixers/__init__.py`. Every test over the registry then
covers it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class TokenMixer(nn.Module, ABC):
    """Base class of every token mixer; the module docstring is the contract.

    Args:
        dim: channels C handed to the mixer.
        grid_rank: 1 for `(B, L, C)`, 2 for `(B, H, W, C)`.

    Raises:
        ValueError: `dim` is not positive or the mixer does not take that rank.
    """

    grid_ranks: ClassVar[tuple[int, ...]] = (1, 2)
    causal: bool = False

    def __init__(self, dim: int, grid_rank: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"{type(self).__name__}: dim must be positive, got {dim}")
        if grid_rank not in self.grid_ranks:
            raise ValueError(f"{type(self).__name__} takes grids of rank {self.grid_ranks}, got {grid_rank}")
        self.dim = dim
        self.grid_rank = grid_rank

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        """Defaults that differ from the signature's on such a grid and task; options given win."""
        return {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens: (B, *grid, C) -> (B, *grid, C)."""

    @abstractmethod
    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        """(L, L) bool: entry [i, j] says whether output token i may depend on input token j."""

    @abstractmethod
    def macs(self, grid: Sequence[int]) -> int:
        """Multiply-accumulates of one forward pass for one sample, biases and norms not counted."""

    def state_size(self, length: int) -> int | None:
        """Numbers carried per sequence after `length` tokens; None without a recurrent form."""
        return None

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        """The state before the first token.

        Raises:
            TypeError: the mixer has no recurrent form.
        """
        raise TypeError(f"{type(self).__name__} has no recurrent form here: it cannot run token by token")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token: (B, C) and the state -> (B, C) and the next state; never writes into `state`.

        Raises:
            TypeError: the mixer has no recurrent form.
        """
        raise TypeError(f"{type(self).__name__} has no recurrent form here: it cannot run token by token")

    def no_weight_decay(self) -> set[str]:
        """Names, relative to this module, of parameters that weight decay must leave alone."""
        return set()


def as_sequence(x: Tensor) -> Tensor:
    """(B, *grid, C) -> (B, L, C) in raster order."""
    return x if x.ndim == 3 else x.flatten(1, -2)


def as_grid(x: Tensor, shape: torch.Size) -> Tensor:
    """(B, L, C) -> `shape`, (B, *grid, C): the inverse."""
    return x if x.shape == shape else x.view(shape)


def require_odd(name: str, size: int) -> None:
    """Refuse the size of a window that has no token in its middle.

    Raises:
        ValueError: `size` is even.
    """
    if size % 2 == 0:
        raise ValueError(f"{name} must be odd so that the window has a centre, got {size}")


def full_mask(length: int) -> Tensor:
    """(L, L) bool: every token may see every token."""
    return torch.ones(length, length, dtype=torch.bool)


def raster_causal_mask(length: int) -> Tensor:
    """(L, L) bool: token i may see tokens 0..i."""
    return full_mask(length).tril()


def window_mask(grid: Sequence[int], before: int, after: int) -> Tensor:
    """(L, L) bool: token i sees tokens at offsets -before..after along every axis of the grid."""
    axes = [torch.arange(size) for size in grid]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (L, rank)
    offset = positions[None, :, :] - positions[:, None, :]  # (L, L, rank): input minus output
    return ((offset >= -before) & (offset <= after)).all(dim=-1)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Suspends autocast, on devices that have it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
