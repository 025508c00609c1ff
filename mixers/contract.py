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
GRIDS = {1: ((6,), (1,), (9,)), 2: ((3, 4), (1, 1), (5, 2))}
"""By rank: a grid of several tokens, one of a single token, and one of another shape."""


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
        InputError: it cannot be built (on the meta device, too) or run (in training, too), changes the shape,
            the type or its input, sees other tokens than it declares or other examples, calls itself causal
            and sees the future, has a parameter without a gradient or one that torch does not know of, gives
            something else with the same weights, counts no work, or gives something else token by token.
    """
    if not isinstance(mixer_class.grid_ranks, tuple):
        raise InputError(
            f"mixer {name}: grid_ranks is {mixer_class.grid_ranks!r}: write a tuple, such as (1,)"
        )
    for grid in GRIDS[grid_rank]:
        _check_on(grid, name, mixer_class, options)
    _check_without_values(name, mixer_class, options, grid_rank)


def _check_on(
    grid: tuple[int, ...], name: str, mixer_class: type[TokenMixer], options: Mapping[str, Any]
) -> None:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            mixer = mixer_class(DIM, len(grid), **options)
            broken = _hidden(mixer)
            if broken is None:
                mixer = mixer.double().eval()
                with torch.no_grad():
                    for parameter in mixer.parameters():  # off zero and one, which would hide dependencies
                        parameter.add_(0.3 * torch.randn_like(parameter))
                torch.manual_seed(1)
                twin = mixer_class(DIM, len(grid), **options).double().eval()
                broken = _broken(mixer, grid) or _depends_on_more(mixer, twin, grid)
    except (Exception, SystemExit) as error:  # whatever somebody's code does
        said = _said(error)
        called = " (it is called with dim, grid_rank and, by name, its options)" if "__init__" in said else ""
        raise InputError(f"mixer {name} fails on a {grid} grid of {DIM} channels: {said}{called}") from error
    if broken is not None:
        raise InputError(f"mixer {name} {broken}")


def _check_without_values(
    name: str, mixer_class: type[TokenMixer], options: Mapping[str, Any], grid_rank: int
) -> None:
    """Models are counted and matched on the meta device, before any is trained."""
    try:
        with torch.device("meta"):
            mixer_class(DIM, grid_rank, **options)
    except Exception as error:  # as above
        raise needs_values(name, error) from error


def needs_values(name: str, error: Exception) -> InputError:
    """What to say of a mixer that cannot be built where tensors have shapes and no values."""
    return InputError(
        f"mixer {name} cannot be built on torch's meta device, where models are counted and tensors have no "
        f"values: its __init__ must not read any (math.log and the like for plain numbers): {_said(error)}"
    )


def too_special(name: str, dim: int, error: Exception) -> InputError:
    """What to say of a mixer that can be built small, but not for the channels of a model."""
    return InputError(f"mixer {name} cannot be built for {dim} channels: {_said(error)}")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _broken(mixer: TokenMixer, grid: tuple[int, ...]) -> str | None:
    """What the mixer does that it must not, as the rest of a sentence; None if nothing."""
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    given = x.clone()
    y = mixer(x)
    if not torch.equal(x, given):
        return "writes into its input"
    wrong = _wrong_output(x, y)
    if wrong is not None:
        return wrong
    if not torch.equal(y, mixer(x)):
        return "gives another output when it is asked again"
    if not torch.allclose(y[:1], mixer(x[:1]), rtol=1e-6, atol=1e-8):
        return "gives an example another output when no other stands beside it in the batch"
    return (
        _sees_other_tokens(mixer, grid)
        or _unknown_undecayed(mixer)
        or (_idle(mixer, y) if math.prod(grid) > 1 else None)  # a single token need not reach all of it
        or _miscounts(mixer.macs(grid))
        or _steps_elsewhere(mixer, x, y)
        or _fails_in_training(mixer, x)
    )


def _wrong_output(x: torch.Tensor, y: object) -> str | None:
    if not isinstance(y, torch.Tensor):
        return f"returns {type(y).__name__}, not a tensor"
    if y.shape != x.shape:
        return f"turns ({_shape(x.shape)}) into ({_shape(y.shape)})"
    if y.dtype != x.dtype:
        return f"turns {x.dtype} into {y.dtype}: what it computes in another type it must turn back"
    return None if y.isfinite().all() else "gives numbers that are not finite"


def _hidden(mixer: TokenMixer) -> str | None:
    """Whether a new mixer keeps layers or tensors where torch does not look for them."""
    for path, module in mixer.named_modules():
        for label, value in vars(module).items():
            if label.startswith("_"):  # torch's own: an LSTM keeps its weights in a list, too
                continue
            inside = list(value.values()) if isinstance(value, dict) else value
            for part in inside if isinstance(inside, list | tuple) else (inside,):
                if isinstance(part, torch.Tensor | torch.nn.Module):
                    where = f"{path}.{label}" if path else label
                    return (
                        f"keeps {where} where torch does not look for it, so that it is neither trained nor "
                        "saved nor moved: use nn.Parameter, register_buffer or nn.ModuleList"
                    )
    return None


@torch.no_grad()
def _depends_on_more(mixer: TokenMixer, twin: TokenMixer, grid: tuple[int, ...]) -> str | None:
    """Whether another one with the same weights gives something else."""
    twin.load_state_dict(mixer.state_dict())
    x = torch.randn(2, *grid, DIM, dtype=torch.float64)
    if torch.allclose(mixer.eval()(x), twin(x), rtol=1e-6, atol=1e-8):
        return None
    return (
        "gives something else when it is built again and loads the same weights: whatever is drawn in its "
        "__init__ must be a parameter or a buffer that is saved"
    )


def _unknown_undecayed(mixer: TokenMixer) -> str | None:
    known = {label for label, _ in mixer.named_parameters()}
    unknown = sorted(mixer.no_weight_decay() - known)
    return f"has no parameter {unknown[0]!r}, which its no_weight_decay names" if unknown else None


def _fails_in_training(mixer: TokenMixer, x: torch.Tensor) -> str | None:
    """In training an output may be random, but not of another shape."""
    wrong = _wrong_output(x, mixer.train()(x))
    return f"{wrong} in training" if wrong is not None else None


@torch.no_grad()
def _steps_elsewhere(mixer: TokenMixer, x: torch.Tensor, y: torch.Tensor) -> str | None:
    """Whether a mixer with a state gives, token by token, something else than at once, or another state."""
    size = mixer.state_size(x.shape[1]) if x.ndim == 3 else None
    if size is None:
        return None
    state = tuple(part.to(x.dtype) if part.is_floating_point() else part for part in mixer.init_state(len(x)))
    for place, token in enumerate(x.unbind(1)):
        stepped, state = mixer.step(token, state)
        if stepped.shape != token.shape or not torch.allclose(stepped, y[:, place], rtol=1e-6, atol=1e-8):
            return f"gives something else by step than by forward, first at token {place}"
    carried = sum(part[0].numel() for part in state)
    return None if carried == size else f"carries {carried} numbers, but its state_size says {size}"


def _sees_other_tokens(mixer: TokenMixer, grid: tuple[int, ...]) -> str | None:
    declared, length = mixer.dependency_mask(grid), math.prod(grid)
    if not isinstance(declared, torch.Tensor) or declared.shape != (length, length):
        return f"has a dependency_mask that is no ({length}, {length}) tensor on a grid of {_shape(grid)}"
    seen = visible(mixer, grid)
    if not torch.equal(declared.bool(), seen):
        output, source = (int(index) for index in (declared.bool() != seen).nonzero()[0])
        verb = "depends" if seen[output, source] else "does not depend"
        return (
            f"does not see what it declares: on a grid of {_shape(grid)} token {output} {verb} on token "
            f"{source}, but its dependency_mask says otherwise"
        )
    if mixer.causal and declared.bool().triu(1).any():
        return "calls itself causal, but its dependency_mask sees later tokens"
    return None


def _idle(mixer: TokenMixer, y: torch.Tensor) -> str | None:
    if y.requires_grad:  # of a mixer without parameters it has none
        y.sum().backward()
    idle = [label for label, p in mixer.named_parameters() if p.requires_grad and p.grad is None]
    return f"is not trained as a whole: parameter {idle[0]} gets no gradient" if idle else None


def _miscounts(macs: object) -> str | None:
    counted = isinstance(macs, int) and macs >= 0
    return None if counted else f"counts {macs!r} MACs: macs must return an int that is not negative"


def _shape(sizes: tuple[int, ...] | torch.Size) -> str:
    return ", ".join(map(str, sizes))
