"""In which orders a scan visits the tokens of a grid.

An order is a permutation of the L tokens: `tokens[t]` is the token, counted in raster order, that is
visited at step t. It may be cut into segments, at whose starts the state begins anew. A pattern is a
set of orders, each walked forward or both ways; every walk over a segment is a pass with its own state.

    forward, bidirectional   row by row; both ways as in Vision Mamba (arXiv 2401.09417)
    cross                    row by row and column by column, both ways: VMamba's SS2D (arXiv 2401.10166)
    local                    window by window, both ways: LocalMamba (arXiv 2403.09338)
    vertical                 column by column, both ways: LocalMamba's other direction
    vertical-slip            the same, put back as its code does: by the permutation, not by its inverse. On
                             an image that is not square, results then end up at the wrong tokens (in its
                             code their gates with them; here the gate is the block's and stays)
    continuous               rows and columns as a snake, both ways: PlainMamba (arXiv 2403.17695)
    atrous                   every other row and column, forward: EfficientVMamba (arXiv 2403.09977)

Grids of any size work: where the papers pad (LocalMamba, EfficientVMamba), windows at the border and
phases are simply smaller here, so that no invented token ever touches a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixers.backends import in_forward_mode

Device = torch.device | str | None


class Order(NamedTuple):
    """A permutation of the tokens (L,) and the lengths of its segments, which may be 0.

    `targets` (L,) says to which token the result of each step goes; None where it is the one visited.
    """

    tokens: Tensor
    segments: tuple[int, ...]
    targets: Tensor | None = None

    def scan(self, x: Tensor) -> list[Tensor]:
        """(B, L, C) in raster order -> each segment (B, l, C) in the order of its visits."""
        batch, _, channels = x.shape
        visits = _permuted(x.flatten(0, 1), self._rows(self.tokens, batch), invert=False)  # (B L, C)
        parts = visits.split([batch * length for length in self.segments])
        sizes = zip(parts, self.segments, strict=True)
        return [part.view(batch, length, channels) for part, length in sizes]

    def unscan(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `scan`."""
        batch, _, channels = parts[0].shape
        targets = self.tokens if self.targets is None else self.targets
        rows = [part.flatten(0, 1) for part in parts]
        visits = torch.cat(rows) if len(rows) > 1 else rows[0]  # (B L, C)
        x = _permuted(visits, self._rows(targets, batch), invert=True)
        return x.view(batch, self.tokens.shape[0], channels)  # not -1: a batch may be empty

    def _rows(self, tokens: Tensor, batch: int) -> Tensor:
        """(B L,): the rows of (B L, C) segment by segment, so that each of them is contiguous in memory."""
        first = torch.arange(batch, device=tokens.device)[:, None] * len(tokens)
        return torch.cat([(first + part).flatten() for part in tokens.split(self.segments)])

    def steps(self) -> Tensor:
        """(L,): at which step each token is visited."""
        return _inverse(self.tokens)

    def sources(self) -> Tensor:
        """(L,): the step whose result each token gets."""
        return self.steps() if self.targets is None else _inverse(self.targets)


OrderOfGrid = Callable[[Sequence[int], Device], Order]


@dataclass(frozen=True)
class ScanPattern:
    """A set of orders, each walked one way or both ways.

    Attributes:
        orders: make an order for a grid, on a device. `raster` moves nothing.
        both_ways: each order is walked from its end to its start as well.
        segments: how many each order has.
    """

    orders: tuple[OrderOfGrid, ...]
    both_ways: bool = False
    segments: int = 1

    @cached_property
    def directions(self) -> tuple[bool, ...]:
        """The ways in which each order is walked, as values of `reverse`."""
        return (False, True) if self.both_ways else (False,)

    @cached_property
    def visits(self) -> int:
        """How many passes visit each token."""
        return len(self.orders) * len(self.directions)

    @property
    def passes(self) -> int:
        return self.visits * self.segments

    def visible(self, grid: Sequence[int]) -> Tensor:
        """(L, L) bool: entry [i, j] says whether some pass brings token j to token i."""
        length = math.prod(grid)
        visible = torch.zeros(length, length, dtype=torch.bool)
        for make_order in self.orders:
            order = make_order(grid, "cpu")
            sources, steps = order.sources()[:, None], order.steps()
            lengths = torch.tensor(order.segments)
            segments = torch.arange(len(lengths)).repeat_interleave(lengths)
            same = segments[sources] == segments[steps]
            visible |= same if self.both_ways else same & (sources >= steps)
        return visible


ON_IMAGES = ("cross", "local", "vertical", "vertical-slip", "continuous", "atrous")


def scan_pattern(
    name: str, grid_rank: int, *, window: int | None = None, atrous_step: int | None = None
) -> ScanPattern:
    """The pattern of a name in the module docstring.

    Args:
        name: of the pattern.
        grid_rank: of the grid; a sequence has no columns.
        window: side of the windows of "local".
        atrous_step: distance of the rows and columns of "atrous".

    Raises:
        ValueError: unknown name, a pattern for images on a sequence, or a number that the pattern lacks.
    """
    if window is not None and name != "local":
        raise ValueError(f"window belongs to scan=local, not to scan={name}")
    if atrous_step is not None and name != "atrous":
        raise ValueError(f"atrous_step belongs to scan=atrous, not to scan={name}")
    if grid_rank == 1 and name in ON_IMAGES:
        raise ValueError(f"scan={name} is for images; a sequence is scanned forward or bidirectional")
    if name == "local":
        if window is None:
            raise ValueError("scan=local needs its window: window=7 or window=2 in LocalMamba")
        return ScanPattern((partial(windows, window=window),), both_ways=True)
    if name == "atrous":
        if atrous_step is None:
            raise ValueError("scan=atrous needs its atrous_step: atrous_step=2 in EfficientVMamba")
        return ScanPattern((partial(phases, step=atrous_step),), segments=atrous_step**2)
    patterns = {
        "forward": ScanPattern((raster,)),
        "bidirectional": ScanPattern((raster,), both_ways=True),
        "cross": ScanPattern((raster, columns), both_ways=True),
        "vertical": ScanPattern((columns,), both_ways=True),
        "vertical-slip": ScanPattern((columns_put_back_wrongly,), both_ways=True),
        "continuous": ScanPattern((snake_rows, snake_columns), both_ways=True),
    }
    if name not in patterns:
        raise ValueError(f"unknown scan {name!r}; known: {', '.join([*patterns, 'local', 'atrous'])}")
    return patterns[name]


def raster(grid: Sequence[int], device: Device = None) -> Order:
    """Row by row."""
    length = math.prod(grid)
    return Order(torch.arange(length, device=device), (length,))


def columns(grid: Sequence[int], device: Device = None) -> Order:
    """Column by column."""
    return _whole(_image(grid, device).T)


def columns_put_back_wrongly(grid: Sequence[int], device: Device = None) -> Order:
    """Column by column; the result of token t goes where t is visited, as in LocalMamba's code."""
    order = columns(grid, device)
    return order._replace(targets=order.steps())


def windows(grid: Sequence[int], device: Device = None, *, window: int) -> Order:
    """Window after window in raster order, row by row inside of each; those at the border may be smaller."""
    rows, cols = (torch.arange(size, device=device) // window for size in grid)
    window_of_token = rows[:, None] * math.ceil(grid[1] / window) + cols  # (H, W)
    return _whole(torch.argsort(window_of_token.flatten(), stable=True))


def snake_rows(grid: Sequence[int], device: Device = None) -> Order:
    """Row by row, every second one from right to left: each step goes to a neighbour."""
    return _whole(_turned(_image(grid, device)))


def snake_columns(grid: Sequence[int], device: Device = None) -> Order:
    """Column by column, every second one from bottom to top."""
    return _whole(_turned(_image(grid, device).T))


def phases(grid: Sequence[int], device: Device = None, *, step: int) -> Order:
    """The step^2 sub-grids of every step-th row and column, one after the other, each a segment.

    Sub-grids that begin in an even row are read row by row, those that begin in an odd row column by column,
    as in EfficientVMamba, whose step is 2. Other steps, this project's extension, alternate in the same way.
    """
    image = _image(grid, device)
    offsets = [(row, column) for column in range(step) for row in range(step)]
    parts = [image[row::step, column::step] for row, column in offsets]
    walked = [part.T if row % 2 else part for (row, _), part in zip(offsets, parts, strict=True)]
    return Order(torch.cat([part.flatten() for part in walked]), tuple(part.numel() for part in parts))


def moves(tokens: Tensor, width: int) -> Tensor:
    """(L,): the move that led to each visited token: 0 start, 1 right, 2 left, 3 up, 4 down.

    The steps of `tokens` go to neighbours in an image of that width.
    """
    rows, cols = (part.diff(prepend=part[:1]) for part in (tokens // width, tokens % width))
    return (cols == 1) + 2 * (cols == -1) + 3 * (rows == -1) + 4 * (rows == 1)


def _image(grid: Sequence[int], device: Device) -> Tensor:
    """(H, W): each token's place in raster order."""
    return torch.arange(math.prod(grid), device=device).view(*grid)


def _turned(image: Tensor) -> Tensor:
    """(H, W) with every second row from right to left."""
    image = image.clone()
    image[1::2] = image[1::2].flip(1)
    return image


def _whole(tokens: Tensor) -> Order:
    """An order of one segment."""
    return Order(tokens.flatten(), (tokens.numel(),))


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse


def _permuted(x: Tensor, order: Tensor, *, invert: bool) -> Tensor:
    """(rows, C) -> (rows, C): x[order], or its inverse."""
    # torch.compile does not follow a function that has gradients and tangents of its own
    permute = _select if in_forward_mode() else _Permute.apply
    permuted: Tensor = permute(x, order, invert)
    return permuted


def _select(x: Tensor, order: Tensor, invert: bool) -> Tensor:
    return x.index_select(0, _inverse(order) if invert else order)


class _Permute(torch.autograd.Function):
    """`_select`, with a gradient that is as fast.

    The gradient of each is the other, as every row is taken once; that of indexing is added up row by row.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, invert: bool) -> Tensor:
        return _select(x, order, invert)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, order, ctx.invert = inputs
        ctx.save_for_backward(order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Permute.apply(grad, *ctx.saved_tensors, not ctx.invert), None, None
