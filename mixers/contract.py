"""The contract of a mixer, checked by running it: what stands between a user's own mixer and a trial.

The mixers that come with this project are held to more by their tests; a class from somebody's file is held
to what a comparison cannot do without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from mixers.base import TokenMixer
from mixers.registry import InputError

DIM = 16
GRIDS = {1: (6,), 2: (3, 4)}


def visible(mixer: TokenMixer, grid: tuple[int, ...]) -> torch.Tensor:
    """(L, L) bool: whether output token i depends on input token j, from the Jacobian in float64."""
    x = torch.randn(1, *grid, mixer.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(mixer, x)  # (1, *grid, C, 1, *grid, C)
    length = math.prod(grid)
    return jacobian.reshape(length, mixer.dim, length, mixer.dim).abs().amax(dim=(1, 3)) > 0


def check(name: str, mixer_class: type[TokenMixer], options: Mapping[str, Any], grid_rank: int) -> None:
    """Build the mixer small and hold it to its word.

    Args:
        name: how the user calls it, for the messages.
        mixer_class: a class that follows the contract of `mixers.base`.
        options: its options, resolved.
        grid_rank: 1 or 2, of the task it is meant for.

    Raises:
        InputError: it cannot be built or run, changes the shape, sees other tokens than it declares, calls
            itself causal and sees the future, has a parameter without a gradient, or counts no work.
    """
    grid = GRIDS[grid_rank]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            mixer = mixer_class(DIM, grid_rank, **options).double()
            with torch.no_grad():
                for parameter in mixer.parameters():  # off zero and one, which would hide dependencies
                    parameter.add_(0.3 * torch.randn_like(parameter))
            y = mixer(torch.randn(2, *grid, DIM, dtype=torch.float64))
        except InputError:
            raise
        except Exception as error:  # whatever somebody's code does
            raise InputError(f"mixer {name} fails on a {grid} grid of {DIM} channels: {error}") from error
    if y.shape != (2, *grid, DIM):
        raise InputError(f"mixer {name} turns (2, {_shape(grid)}, {DIM}) into ({_shape(y.shape)})")
    declared, seen = mixer.dependency_mask(grid), visible(mixer, grid)
    if not torch.equal(declared, seen):
        output, source = (int(index) for index in (declared != seen).nonzero()[0])
        verb = "depends" if seen[output, source] else "does not depend"
        raise InputError(
            f"mixer {name}: on a grid of {_shape(grid)} token {output} {verb} on token {source}, but its "
            "dependency_mask says otherwise"
        )
    if mixer.causal and declared.triu(1).any():
        raise InputError(f"mixer {name} calls itself causal, but its dependency_mask sees later tokens")
    if y.requires_grad:  # of a mixer without parameters it has none
        y.square().sum().backward()
    idle = [label for label, p in mixer.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise InputError(f"mixer {name}: parameter {idle[0]} gets no gradient")
    if mixer.macs(grid) < 0:
        raise InputError(f"mixer {name} counts {mixer.macs(grid)} MACs")


def _shape(sizes: tuple[int, ...] | torch.Size) -> str:
    return ", ".join(map(str, sizes))
