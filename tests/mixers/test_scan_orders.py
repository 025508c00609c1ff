"""The orders as pictures, and the passes over an image against loops, flips and transposes written out."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixers import MIXERS
from mixers.continuous_scan import ContinuousScan
from mixers.scan_orders import (
    columns,
    moves,
    phases,
    raster,
    scan_pattern,
    snake_columns,
    snake_rows,
    windows,
)

ORDERS = {
    "raster": raster,
    "columns": columns,
    "windows-2": partial(windows, window=2),
    "windows-7": partial(windows, window=7),
    "snake-rows": snake_rows,
    "snake-columns": snake_columns,
    "phases-2": partial(phases, step=2),
    "phases-3": partial(phases, step=3),
}
GRIDS = [(1, 1), (1, 5), (5, 1), (2, 2), (4, 3), (3, 6), (8, 8), (9, 10)]
PATTERNS = ["forward", "bidirectional", "cross", "local", "vertical", "vertical-slip", "continuous", "atrous"]
generator = torch.Generator()

# The step at which each token is visited, drawn by hand from the papers' figures.
PICTURES = {
    "raster": """
         0  1  2  3
         4  5  6  7
         8  9 10 11""",
    "columns": """
         0  3  6  9
         1  4  7 10
         2  5  8 11""",
    "windows-2": """
         0  1  4  5
         2  3  6  7
         8  9 10 11""",
    "snake-rows": """
         0  1  2  3
         7  6  5  4
         8  9 10 11""",
    "snake-columns": """
         0  5  6 11
         1  4  7 10
         2  3  8  9""",
}
# Phase (row offset, column offset): (0, 0) by rows, (1, 0) by columns, (0, 1) by rows, (1, 1) by columns.
ATROUS_PICTURE = """
         0  8  1  9
         4 12  6 14
         2 10  3 11
         5 13  7 15"""
# 5 x 3, so that both sides are odd and the phases differ in size.
ATROUS_ODD_PICTURE = """
         0 10  1
         6 13  8
         2 11  3
         7 14  9
         4 12  5"""


def picture(text: str) -> Tensor:
    return torch.tensor([[int(step) for step in line.split()] for line in text.strip().splitlines()])


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator.manual_seed(5))


def make(text: str, dim: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    mixer: torch.nn.Module = MIXERS.create(MIXERS.parse(text), dim, 2)
    return mixer.double()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PICTURES)
def test_the_order_of_visits(name: str) -> None:
    assert torch.equal(ORDERS[name]((3, 4)).steps().view(3, 4), picture(PICTURES[name]))


@pytest.mark.parametrize(
    ("text", "segments"), [(ATROUS_PICTURE, (4,) * 4), (ATROUS_ODD_PICTURE, (6, 4, 3, 2))]
)
def test_the_phases_of_the_atrous_scan(text: str, segments: tuple[int, ...]) -> None:
    expected = picture(text)
    order = phases(tuple(expected.shape), step=2)
    assert torch.equal(order.steps().view(expected.shape), expected)
    assert order.segments == segments


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_order_visits_each_token_once(name: str, grid: tuple[int, int]) -> None:
    order = ORDERS[name](grid)
    length = math.prod(grid)
    assert torch.equal(order.tokens.sort().values, torch.arange(length))
    assert sum(order.segments) == length
    x = noise(2, length, 3)
    assert torch.equal(order.unscan(order.scan(x)), x)
    segments = x.split(order.segments, dim=1)
    for part, segment in zip(order.scan(order.unscan(segments)), segments, strict=True):
        assert torch.equal(part, segment)
    assert torch.equal(torch.cat(order.scan(x), dim=1), x[:, order.tokens])


def test_gradients_go_back_the_way_they_came() -> None:
    order = phases((3, 2), step=2)
    assert order.segments == (2, 1, 2, 1)

    def scanned(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.square() for part in order.scan(x))

    def unscanned(*parts: Tensor) -> Tensor:
        return order.unscan(parts).square()

    parts = [noise(2, length, 2).requires_grad_() for length in order.segments]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(scanned, noise(2, 6, 2).requires_grad_())
        assert check(unscanned, parts)


@pytest.mark.parametrize("make_order", [snake_rows, snake_columns])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_snake_never_jumps(make_order: object, grid: tuple[int, int]) -> None:
    for tokens in (make_order(grid).tokens, make_order(grid).tokens.flip(0)):
        places = torch.stack((tokens // grid[1], tokens % grid[1]))
        assert (places.diff(dim=1).abs().sum(0) == 1).all()
        walked = moves(tokens, grid[1])
        assert walked[0] == 0
        assert (walked[1:] > 0).all()


def test_moves_along_the_snakes() -> None:
    start, right, left, up, down = range(5)
    rows = snake_rows((2, 3)).tokens
    assert moves(rows, 3).tolist() == [start, right, right, down, left, left]
    assert moves(rows.flip(0), 3).tolist() == [start, right, right, up, left, left]
    cols = snake_columns((2, 3)).tokens
    assert moves(cols, 3).tolist() == [start, down, right, up, right, down]
    assert moves(snake_rows((3, 1)).tokens, 1).tolist() == [start, down, down]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("grid", GRIDS)
def test_what_a_pattern_sees(name: str, grid: tuple[int, int]) -> None:
    options = {"local": {"window": 2}, "atrous": {"atrous_step": 2}}.get(name, {})
    pattern = scan_pattern(name, 2, **options)
    visible = pattern.visible(grid)
    rows, cols = (torch.arange(math.prod(grid)) // grid[1], torch.arange(math.prod(grid)) % grid[1])
    if name == "forward":
        assert torch.equal(visible, torch.ones_like(visible).tril())
    elif name == "atrous":
        same_phase = ((rows[:, None] - rows) % 2 == 0) & ((cols[:, None] - cols) % 2 == 0)
        assert torch.equal(visible | visible.T, same_phase)
        assert torch.equal(visible & visible.T, torch.eye(len(rows), dtype=torch.bool))
    else:
        assert visible.all()


def test_cross_scan_against_flips_and_transposes() -> None:
    mixer = make("ssm(scan=cross, conv=none)")
    x = noise(2, 3, 5, 3).requires_grad_()
    u = F.silu(x)
    by_rows, by_columns = u.flatten(1, 2), u.transpose(1, 2).flatten(1, 2)
    core = mixer.scans
    ys = [
        core[0](by_rows).view(2, 3, 5, 3),
        core[1](by_rows.flip(1)).flip(1).view(2, 3, 5, 3),
        core[2](by_columns).view(2, 5, 3, 3).transpose(1, 2),
        core[3](by_columns.flip(1)).flip(1).view(2, 5, 3, 3).transpose(1, 2),
    ]
    expected = sum(ys) / 4
    close(mixer(x), expected)
    weights = noise(*x.shape)
    parameters = [x, *mixer.parameters()]
    ours, theirs = (torch.autograd.grad((y * weights).sum(), parameters) for y in (mixer(x), expected))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


@pytest.mark.parametrize("text", ["ssm(scan=cross, conv=none)", "ssd(scan=cross, conv=none)"])
def test_cross_scan_commutes_with_the_symmetries_of_the_image(text: str) -> None:
    """Transposing, or turning by half, is the same as giving the passes each other's parameters."""
    mixer = make(text)
    x = noise(1, 4, 3, 3)

    def with_passes(order: list[int], image: Tensor) -> Tensor:
        other = make(text)
        for i, j in enumerate(order):
            other.scans[i].load_state_dict(mixer.scans[j].state_dict())
        y: Tensor = other(image)
        return y

    close(with_passes([2, 3, 0, 1], x.transpose(1, 2)), mixer(x).transpose(1, 2))
    close(with_passes([1, 0, 3, 2], x.flip(1, 2)), mixer(x).flip(1, 2))


def test_local_scan_against_a_loop_over_windows() -> None:
    mixer = make("ssm(scan=local, window=2, conv=none)")
    x = noise(1, 5, 3, 3)
    places = [
        (row, column)
        for top in range(0, 5, 2)
        for left_side in range(0, 3, 2)
        for row in range(top, min(top + 2, 5))
        for column in range(left_side, min(left_side + 2, 3))
    ]
    u = torch.stack([F.silu(x)[:, row, column] for row, column in places], dim=1)
    y = (mixer.scans[0](u) + mixer.scans[1](u.flip(1)).flip(1)) / 2
    expected = torch.empty_like(x)
    for t, (row, column) in enumerate(places):
        expected[:, row, column] = y[:, t]
    close(mixer(x), expected)


@pytest.mark.parametrize("grid", [(3, 3), (2, 3), (4, 6)])
def test_vertical_scan_and_the_slip_of_its_code(grid: tuple[int, int]) -> None:
    """Column by column; the slip applies the permutation twice, which a square image does not show."""
    x = noise(1, *grid, 3)
    by_columns = F.silu(x).transpose(1, 2).flatten(1, 2)
    right, wrong = (make(f"ssm(scan={name}, conv=none)") for name in ("vertical", "vertical-slip"))
    y = (right.scans[0](by_columns) + right.scans[1](by_columns.flip(1)).flip(1)) / 2
    close(right(x), y.unflatten(1, grid[::-1]).transpose(1, 2))
    close(wrong(x), y.unflatten(1, grid).transpose(1, 2).flatten(1, 2).view(x.shape))
    assert torch.equal(right(x), wrong(x)) == (grid[0] == grid[1])


@pytest.mark.parametrize(("step", "grid"), [(2, (4, 6)), (2, (5, 3)), (2, (1, 3)), (3, (6, 7))])
def test_atrous_scan_against_strided_slices(step: int, grid: tuple[int, int]) -> None:
    mixer = make(f"ssm(scan=atrous, atrous_step={step}, conv=none)")
    x = noise(2, *grid, 3)
    expected = torch.empty_like(x)
    phase = 0
    for column in range(step):
        for row in range(step):
            part = F.silu(x)[:, row::step, column::step]
            if part.numel():
                walked = part.transpose(1, 2) if row % 2 else part
                y = mixer.scans[phase](walked.flatten(1, 2)).view(walked.shape)
                expected[:, row::step, column::step] = y.transpose(1, 2) if row % 2 else y
            phase += 1
    close(mixer(x), expected)


@pytest.mark.parametrize("raster_params", [False, True])
def test_continuous_scan_against_four_walks(raster_params: bool) -> None:
    """Token by token along hand-made walks: each step names its place and the move that led there."""
    mixer = make(f"ssm(scan=continuous, conv=none, raster_params={str(raster_params).lower()})")
    core = mixer.scans[0]
    x = noise(1, 2, 3, 3)
    u = F.silu(x)[0]
    start, right, left, up, down = core.move_B
    walks = [
        [((0, 0), start), ((0, 1), right), ((0, 2), right), ((1, 2), down), ((1, 1), left), ((1, 0), left)],
        [((1, 0), start), ((1, 1), right), ((1, 2), right), ((0, 2), up), ((0, 1), left), ((0, 0), left)],
        [((0, 0), start), ((1, 0), down), ((1, 1), right), ((0, 1), up), ((0, 2), right), ((1, 2), down)],
        [((1, 2), start), ((0, 2), up), ((0, 1), left), ((1, 1), down), ((1, 0), left), ((0, 0), up)],
    ]
    expected = torch.zeros_like(u)
    for walk in walks:
        h = torch.zeros(3, 16, dtype=torch.float64)
        for t, (place, move) in enumerate(walk):
            source = u[divmod(t, 3)] if raster_params else u[place]
            delta, B, C = core.select(source)
            delta = F.softplus(delta + core.delta_bias)
            h = torch.exp(-delta[:, None] * core.A_log.exp()) * h
            h = h + (delta * u[place])[:, None] * (B + move)
            expected[place] += (h @ C + core.D * u[place]) / 4
    close(mixer(x)[0], expected)


def test_moves_start_as_in_the_code_of_plain_mamba() -> None:
    torch.manual_seed(0)
    assert ContinuousScan(2, 1000).move_B.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("text", "rank", "message"),
    [
        ("ssm(scan=cross)", 1, "scan=cross is for images"),
        ("ssm(scan=continuous)", 1, "scan=continuous is for images"),
        ("gru(scan=cross)", 1, "scan=cross is for images"),
        ("ssm(window=2)", 2, "window belongs to scan=local"),
        ("ssm(scan=local, atrous_step=2)", 2, "atrous_step belongs to scan=atrous"),
        ("ssm(scan=cross, raster_params=true)", 2, "raster_params belongs to scan=continuous"),
        ("ssm(scan=continuous, conv=per-pass)", 2, "conv=per-pass does not go with scan=continuous"),
        ("gru(scan=forward, conv=per-pass)", 1, "conv=per-pass is for several passes"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIXERS.create(MIXERS.parse(text), 8, rank)


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown scan 'zigzag'"):
        scan_pattern("zigzag", 2)
    with pytest.raises(ValueError, match="scan=local needs its window"):
        scan_pattern("local", 2)
    with pytest.raises(ValueError, match="scan=atrous needs its atrous_step"):
        scan_pattern("atrous", 2)
