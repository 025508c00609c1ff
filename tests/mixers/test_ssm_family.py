"""`ssm`, `mamba`, `ssd`, `mamba2`, `s4d`, `gru` and `mingru`: each is what its name says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.skeletons.blocks import PRESETS, GatedBlock
from mixers import MIXERS
from mixers.conv import CausalConv
from mixers.gru import GRU, GRUCore
from mixers.long_conv import DIRECT_LENGTH, fft_conv, long_conv, long_conv_macs, toeplitz_conv
from mixers.mamba import Mamba
from mixers.mamba2 import Mamba2
from mixers.mingru import MinGRUCore
from mixers.s4d import S4DCore
from mixers.s6 import SelectiveScan
from mixers.scan import selective_scan
from mixers.ssd import SSDCore
from mixers.ssd_scan import ssd_scan

FAMILY = ["ssm", "ssd", "s4d", "gru", "mingru"]
SELECTIONS = ["all", "none", "delta", "B", "C", "delta+B", "delta+C", "B+C"]


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    """Relative to the largest value."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def same_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    close(ours, theirs, tolerance)
    weights = noise(*ours.shape, seed=9).to(ours)
    pairs = (torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True) for y in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, tolerance)


# ---- ssm ---------------------------------------------------------------------------------------------------


def mamba(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The Mamba mixer of arXiv 2312.00752, figure 3 and algorithm 2, one line per operation."""
    z, u = (x @ weights["in_proj"].T).chunk(2, dim=-1)  # gate and value, (B, L, E)
    channels, width = weights["conv"].shape
    u = F.conv1d(F.pad(u.mT, (width - 1, 0)), weights["conv"][:, None], weights["conv_bias"], groups=channels)
    u = F.silu(u).mT
    dt_rank, d_state = weights["dt_proj"].shape[1], weights["A_log"].shape[1]
    dt, B, C = (u @ weights["x_proj"].T).split((dt_rank, d_state, d_state), dim=-1)
    delta = F.softplus(dt @ weights["dt_proj"].T + weights["dt_bias"])
    A = -torch.exp(weights["A_log"])
    h = torch.zeros(x.shape[0], channels, d_state, dtype=x.dtype)
    ys = []
    for t in range(x.shape[1]):
        A_bar = torch.exp(torch.einsum("be,en->ben", delta[:, t], A))
        B_bar_u = torch.einsum("be,bn,be->ben", delta[:, t], B[:, t], u[:, t])
        h = A_bar * h + B_bar_u
        ys.append(torch.einsum("ben,bn->be", h, C[:, t]) + weights["D"] * u[:, t])
    return (torch.stack(ys, dim=1) * F.silu(z)) @ weights["out_proj"].T


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_ssm_in_the_mamba_block_is_mamba(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    options = MIXERS.parse("ssm(scan=forward, conv=causal, kernel_size=4, d_state=5)")
    block = GatedBlock(12, lambda dim: MIXERS.create(options, dim, 1), **PRESETS["mamba"]).to(dtype)
    weights = weights_of_mamba(block, block.mixer.conv, block.mixer.scans[0])
    x = noise(2, 37, 12, dtype=dtype).requires_grad_()
    expected = x + mamba(block.norm(x), weights)
    same_gradients(block(x), expected, [x, *weights.values()], tolerance)


def weights_between(conv: nn.Module, core: nn.Module) -> dict[str, Tensor]:
    """Of convolution and SSM, as `mamba` names them."""
    return {
        "conv": conv.weight,
        "conv_bias": conv.bias,
        "x_proj": core.x_proj.weight,
        "dt_proj": core.dt_proj.weight,
        "dt_bias": core.dt_proj.bias,
        "A_log": core.A_log,
        "D": core.D,
    }


def weights_of_mamba(block: GatedBlock, conv: nn.Module, core: nn.Module) -> dict[str, Tensor]:
    """As `mamba` names them."""
    return {
        "in_proj": block.fc1.weight,
        **weights_between(conv, core),
        "out_proj": block.fc2.weight,
    }


@pytest.mark.parametrize("grid", [(37,), (4, 5)])
def test_ssm_with_a_convolution_per_pass_is_vision_mamba(grid: tuple[int, ...]) -> None:
    """Algorithm 1 of arXiv 2401.09417: the mean of Mamba over the tokens and over their reversal.

    Each way has weights of its own, but for the projections in and out.
    """
    torch.manual_seed(0)
    options = MIXERS.parse("ssm(scan=bidirectional, conv=per-pass, kernel_size=4, d_state=5)")
    block = GatedBlock(12, lambda dim: MIXERS.create(options, dim, len(grid)), **PRESETS["mamba"]).double()
    there, back = (weights_of_mamba(block, each.conv, each.core) for each in block.mixer.scans)
    x = noise(2, *grid, 12).requires_grad_()
    tokens = block.norm(x).flatten(1, -2)
    mixed = (mamba(tokens, there) + mamba(tokens.flip(1), back).flip(1)) / 2
    same_gradients(block(x), x + mixed.view_as(x), [x, *there.values(), *back.values()])


@pytest.mark.parametrize("selective", SELECTIONS)
def test_what_is_not_selective_is_constant(selective: str) -> None:
    core = SelectiveScan(20, 3, selective=selective).double()
    selected = core.select(noise(2, 7, 20))
    chosen = ["delta", "B", "C"] if selective == "all" else selective.split("+")
    for name, value in zip(("delta", "B", "C"), selected, strict=True):
        changes = (value - value[:1, :1]).abs().max().item() > 0
        assert changes == (name in chosen)
    A_log, D, delta_bias = 20 * 3, 20, 20
    B_and_C = sum(20 * 3 if name in chosen else 3 for name in ("B", "C"))
    to_delta = 20 * 2 * 2 if "delta" in chosen else 0  # down to rank 2 and up again
    count = sum(parameter.numel() for parameter in core.parameters())
    assert count == A_log + D + delta_bias + B_and_C + to_delta


@pytest.mark.parametrize("selective", SELECTIONS)
def test_the_selections_start_from_the_same_draws(selective: str) -> None:
    torch.manual_seed(3)
    everything = SelectiveScan(20, 400)
    torch.manual_seed(3)
    core = SelectiveScan(20, 400, selective=selective)
    assert torch.equal(core.delta_bias, everything.delta_bias)
    parts = everything.x_proj.weight.split((2, 400, 400))
    kept = [part for name, part in zip(("delta", "B", "C"), parts, strict=True) if name in core.widths]
    if kept:
        assert torch.equal(core.x_proj.weight, torch.cat(kept))
        assert core.x_proj.out_features == len(core.x_proj.weight)
    if "B" not in core.widths:
        assert torch.equal(core.B, torch.ones(1, 400))
    if "C" not in core.widths:
        assert core.C.std().item() == pytest.approx(1, rel=0.1)
    if "delta" in core.widths:
        assert torch.equal(core.dt_proj.weight, everything.dt_proj.weight)


def test_without_selection_the_ssm_is_a_convolution() -> None:
    core = SelectiveScan(4, 5, selective="none").double()
    u = noise(2, 70, 4)
    delta = F.softplus(core.dt_bias)[:, None]
    powers = torch.exp(-delta * core.A_log.exp())[..., None] ** torch.arange(70)  # (C, N, L)
    kernel = ((core.B * core.C * delta)[..., None] * powers).sum(1)
    close(core(u), fft_conv(u, kernel) + core.D * u)
    close(core(u, reverse=True), fft_conv(u.flip(1), kernel).flip(1) + core.D * u)


@pytest.mark.parametrize("selective", ["all", "delta", "B", "C"])
def test_with_selection_it_is_not_linear(selective: str) -> None:
    core = SelectiveScan(4, 5, selective=selective).double()
    u = noise(1, 9, 4)
    assert (core(2 * u) - 2 * core(u)).abs().max() > 1e-6


def test_every_option_reads_back() -> None:
    for added in ("selective=B+C", "scan=local, window=3", "scan=atrous, atrous_step=3"):
        resolved = MIXERS.resolve(MIXERS.parse(f"ssm({added})"))
        assert MIXERS.resolve(MIXERS.parse(str(resolved))) == resolved
        assert added.split(", ")[-1] in str(resolved)


# ---- mamba -------------------------------------------------------------------------------------------------


def weights_of_one_way(mixer: Mamba, conv: nn.Module, core: nn.Module) -> dict[str, Tensor]:
    """As `mamba` names them; there the gate comes first, in Mamba's code second."""
    value, gate = mixer.in_proj.weight.chunk(2)
    return {
        "in_proj": torch.cat((gate, value)),
        **weights_between(conv, core),
        "out_proj": mixer.out_proj.weight,
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("grid", [(37,), (4, 5)])
def test_mamba_is_mamba(dtype: torch.dtype, tolerance: float, grid: tuple[int, ...]) -> None:
    """Values and all gradients; an image is the sequence of its pixels."""
    torch.manual_seed(0)
    mixer = Mamba(36, len(grid), d_state=5).to(dtype)
    x = noise(2, *grid, 36, dtype=dtype).requires_grad_()
    weights = weights_of_one_way(mixer, mixer.ssm.conv, mixer.ssm.scans[0])
    expected = mamba(x.flatten(1, -2), weights).view_as(x)
    same_gradients(mixer(x), expected, [x, *mixer.parameters()], tolerance)


def test_mamba_both_ways_is_vision_mamba() -> None:
    torch.manual_seed(0)
    mixer = Mamba(12, 1, d_state=5, scan="bidirectional").double()
    there, back = (weights_of_one_way(mixer, each.conv, each.core) for each in mixer.ssm.scans)
    x = noise(2, 21, 12).requires_grad_()
    expected = (mamba(x, there) + mamba(x.flip(1), back).flip(1)) / 2
    same_gradients(mixer(x), expected, [x, *mixer.parameters()])


@pytest.mark.parametrize(("dim", "published"), [(192, 251_520), (384, 963_840), (768, 3_770_880)])
def test_mamba_has_the_parameters_of_the_released_code(dim: int, published: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Mamba(dim, 1).parameters()) == published


VISION_MAMBA_DEPTH, VISION_MAMBA_TOKENS = 24, 197  # 14 x 14 patches of 16 x 16 pixels and a class token
PATCH, CLASSES = 3 * 16 * 16, 1000


@pytest.mark.parametrize(("dim", "published"), [(192, 7_148_008), (384, 25_796_584), (768, 97_598_440)])
def test_vision_mamba_has_the_parameters_of_the_released_models(dim: int, published: int) -> None:
    """Tiny, small and base: a norm per layer and a last one, patches, positions, class token, head."""
    with torch.device("meta"):
        mixer = sum(parameter.numel() for parameter in Mamba(dim, 1, scan="bidirectional").parameters())
    layers = VISION_MAMBA_DEPTH * (mixer + dim) + dim
    around = (PATCH + 1) * dim + VISION_MAMBA_TOKENS * dim + dim + (dim + 1) * CLASSES
    assert layers + around == published


@pytest.mark.parametrize(("dim", "published"), [(192, 1.5), (384, 5.1)])
def test_macs_of_vision_mamba_as_published(dim: int, published: float) -> None:
    """In GMACs, for tiny and small, by LocalMamba (arXiv 2403.09338), whose count is not ours.

    A scan is the 5 multiplications per (token, channel, state) of a reference implementation, and skip and
    gate beside them, where ours is 3. Convolution and projections are counted for one of the two ways.
    """
    L, N = VISION_MAMBA_TOKENS, 16
    with torch.device("meta"):
        mixer = Mamba(dim, 1, scan="bidirectional")
    ours = 3 * L * 2 * dim * N
    theirs = 5 * L * 2 * dim * N + 2 * L * 2 * dim
    left_out = mixer.ssm.scans[1].macs(L) - ours
    layer = mixer.macs((L,)) - 2 * ours + 2 * theirs - left_out
    around = (L - 1) * PATCH * dim + CLASSES * dim
    assert round((VISION_MAMBA_DEPTH * layer + around) / 1e9, 1) == published


@pytest.mark.parametrize("scan", ["forward", "bidirectional"])
def test_mamba_starts_as_in_its_code(scan: str) -> None:
    """Linear maps and convolutions in the range of torch's own draws; R from the width of the model."""
    torch.manual_seed(0)
    mixer = MIXERS.create(MIXERS.parse(f"mamba(scan={scan})"), 100, 1)
    in_proj, out_proj = mixer.in_proj.weight, mixer.out_proj.weight
    convs = [module for module in mixer.modules() if isinstance(module, CausalConv)]
    cores = [module for module in mixer.modules() if isinstance(module, SelectiveScan)]
    assert len(convs) == len(cores) == (1 if scan == "forward" else 2)
    draws = [(in_proj, 100), (out_proj, 200), *((p, 4) for conv in convs for p in (conv.weight, conv.bias))]
    for parameter, fan_in in draws:
        assert 0.9 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5
    for core in cores:
        assert core.dt_proj.weight.shape == (200, 7)  # 100 / 16 rounded up
        for end in (core.dt_proj.weight.max(), -core.dt_proj.weight.min()):
            assert 0.9 * 7**-0.5 < end <= 7**-0.5
        delta = F.softplus(core.dt_proj.bias)
        assert 1e-3 <= delta.min() < 2e-3 < 5e-2 < delta.max() <= 1e-1
        torch.testing.assert_close(core.A_log.exp(), torch.arange(1.0, 17.0).expand(200, 16))
        assert torch.equal(core.D, torch.ones(200))


def test_ssm_starts_with_another_rank_and_a_smaller_convolution() -> None:
    """In the Mamba block it differs from `mamba` in these two alone."""
    torch.manual_seed(0)
    options = MIXERS.parse("ssm(scan=forward, conv=causal, kernel_size=4)")
    block = GatedBlock(96, lambda dim: MIXERS.create(options, dim, 1), **PRESETS["mamba"])
    whole = Mamba(96, 1)
    assert block.mixer.scans[0].dt_proj.in_features == 2 * whole.ssm.scans[0].dt_proj.in_features == 12
    assert 10 < whole.ssm.conv.weight.std() / block.mixer.conv.weight.std() < 20
    assert not block.mixer.conv.bias.any()


# ---- ssd ---------------------------------------------------------------------------------------------------


def ssd_inputs(length: int, scale: float = 1.0) -> list[Tensor]:
    """x, delta, A, B, C, D with 3 heads of 2 channels and 4 states."""
    x, delta = noise(2, length, 3, 2, seed=1), scale * F.softplus(noise(2, length, 3, seed=2))
    A, D = -noise(3, seed=3).exp(), noise(3, seed=4)
    B, C = noise(2, length, 4, seed=5), noise(2, length, 4, seed=6)
    return [each.requires_grad_() for each in (x, delta, A, B, C, D)]


@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65])
@pytest.mark.parametrize("chunk_size", [1, 4, 16, 256])
def test_ssd_in_chunks_is_the_quadratic_form(length: int, chunk_size: int) -> None:
    """y = (L o C B^T)(delta x) + D x, with L the products of decays (arXiv 2405.21060)."""
    inputs = x, delta, A, B, C, D = ssd_inputs(length)
    log_decay = delta * A  # (B, L, H)
    t, s, r = (torch.arange(length).view(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    between = ((s < r) & (r <= t)).double()  # the decays from token s to token t
    mask = torch.einsum("tsr,brh->bhts", between, log_decay).exp().tril()
    expected = torch.einsum("bhts,btn,bsn,bsh,bshp->bthp", mask, C, B, delta, x) + D[:, None] * x
    same_gradients(ssd_scan(*inputs, chunk_size=chunk_size)[0], expected, inputs)


@pytest.mark.parametrize("length", [1, 7, 64, 65])
@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_ssd_goes_on_where_it_stopped(length: int, chunk_size: int) -> None:
    """The states between two halves and at the end, and all gradients, are those of the recurrence."""
    inputs = x, delta, A, B, C, D = ssd_inputs(length)
    start = noise(2, 3, 2, 4, seed=7).requires_grad_()
    h, ys = start, []
    for t in range(length):
        written = torch.einsum("bh,bhp,bn->bhpn", delta[:, t], x[:, t], B[:, t])
        h = torch.exp(delta[:, t] * A)[..., None, None] * h + written
        ys.append(torch.einsum("bhpn,bn->bhp", h, C[:, t]) + D[:, None] * x[:, t])
    state, halves = start, []
    for part in (slice(length // 2), slice(length // 2, None)):
        tokens = [each[:, part] for each in (x, delta, B, C)]
        if tokens[0].shape[1]:
            tokens.insert(2, A)
            y, last = ssd_scan(*tokens, D, chunk_size=chunk_size, initial_state=state, return_state=True)
            assert last is not None
            alone = ssd_scan(*tokens, D, chunk_size=chunk_size, initial_state=state)
            assert torch.equal(alone[0], y)
            assert alone[1] is None
            halves, state = [*halves, y], last
    ours, theirs = (
        torch.cat([y.flatten(), last.flatten()])
        for y, last in ((torch.cat(halves, dim=1), state), (torch.stack(ys, dim=1), h))
    )
    same_gradients(ours, theirs, [*inputs, start])


@pytest.mark.parametrize("length", [7, 65])  # one chunk, and two
def test_ssd_starts_from_zeros(length: int) -> None:
    inputs, zeros = ssd_inputs(length), torch.zeros(2, 3, 2, 4, dtype=torch.float64)
    y, last = ssd_scan(*inputs, chunk_size=64, return_state=True)
    expected = ssd_scan(*inputs, chunk_size=64, initial_state=zeros, return_state=True)
    assert torch.equal(y, expected[0])
    assert torch.equal(last, expected[1])


@pytest.mark.parametrize("length", [1, 50, 196])
def test_ssd_is_s6_with_one_decay_per_head(length: int) -> None:
    inputs = x, delta, A, B, C, D = ssd_inputs(length)
    inverse = delta + torch.log(-torch.expm1(-delta))  # softplus(inverse) = delta
    expected = selective_scan(
        x.flatten(2), inverse.repeat_interleave(2, 2), A.repeat_interleave(2)[:, None].expand(6, 4), B, C
    )
    expected = expected.unflatten(2, (3, 2)) + D[:, None] * x
    same_gradients(ssd_scan(*inputs, chunk_size=16)[0], expected, inputs, 1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_ssd_survives_any_step_size(scale: float) -> None:
    inputs = [each.detach().float().requires_grad_() for each in ssd_inputs(40, scale)]
    y, _ = ssd_scan(*inputs, chunk_size=16)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.square().sum(), inputs))


def test_ssd_heads_need_not_divide_the_channels() -> None:
    """A last head of 1 channel, against the same head among channels that are thrown away."""
    torch.manual_seed(0)
    core = SSDCore(7, 4, head_dim=3, chunk_size=5).double()
    u = noise(2, 12, 7)
    hidden, ys = torch.zeros(2, 7, 4, dtype=torch.float64), []
    for token in u.unbind(1):
        y, hidden = core.step(token, hidden)
        ys.append(y)
    assert core.num_heads == 3
    close(core(u), torch.stack(ys, dim=1))


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_macs_of_ssd_are_those_of_its_recurrence(chunk_size: int) -> None:
    """Per channel and state a token decays the state, adds to it and reads it; the rest is counted."""
    core = SSDCore(12, 5, head_dim=8, chunk_size=chunk_size)
    with FlopCounterMode(display=False) as counter:
        core.step(torch.zeros(1, 12), torch.zeros(1, 12, 5))
    assert core.macs(10) == 10 * (counter.get_total_flops() // 2 + 3 * 12 * 5)


def test_ssd_starts_as_in_mamba_2() -> None:
    torch.manual_seed(0)
    core = SSDCore(64 * 50, 4, head_dim=64, chunk_size=64)
    delta, A = F.softplus(core.dt_bias), core.A_log.exp()
    assert 1e-3 <= delta.min() < delta.max() <= 1e-1
    assert 1 <= A.min() < 2 < 15 < A.max() <= 16


# ---- mamba2 ------------------------------------------------------------------------------------------------


def mamba2(x: Tensor, mixer: Mamba2) -> Tensor:
    """The Mamba-2 mixer of arXiv 2405.21060, figure 6, one line per operation and token by token."""
    inner, d_state = mixer.hidden_shape
    heads, width = len(mixer.A_log), mixer.conv.weight.shape[1]
    z, v, dt = (x @ mixer.in_proj.weight.T).split((inner, inner + 2 * d_state, heads), dim=-1)
    v = F.conv1d(F.pad(v.mT, (width - 1, 0)), mixer.conv.weight[:, None], mixer.conv.bias, groups=v.shape[2])
    u, B, C = F.silu(v).mT.split((inner, d_state, d_state), dim=-1)
    u = u.unflatten(2, (heads, -1))  # (B, L, H, P)
    delta = F.softplus(dt + mixer.dt_bias)
    h = torch.zeros(x.shape[0], *u.shape[2:], d_state, dtype=x.dtype)
    ys = []
    for t in range(x.shape[1]):
        decay = torch.exp(-delta[:, t] * torch.exp(mixer.A_log))
        written = torch.einsum("bh,bhp,bn->bhpn", delta[:, t], u[:, t], B[:, t])
        h = decay[..., None, None] * h + written
        ys.append(torch.einsum("bhpn,bn->bhp", h, C[:, t]) + mixer.D[:, None] * u[:, t])
    gated = torch.stack(ys, dim=1).flatten(2) * F.silu(z)
    normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    return normed @ mixer.out_proj.weight.T


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("grid", [(37,), (4, 5)])
def test_mamba2_is_mamba_2(dtype: torch.dtype, tolerance: float, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mixer = Mamba2(12, len(grid), d_state=5, head_dim=8, chunk_size=16).to(dtype)
    with torch.no_grad():
        for parameter in (mixer.norm.weight, mixer.D):
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = noise(2, *grid, 12, dtype=dtype).requires_grad_()
    expected = mamba2(x.flatten(1, -2), mixer).view_as(x)
    same_gradients(mixer(x), expected, [x, *mixer.parameters()], tolerance)


def test_mamba2_has_the_parameters_of_the_released_code() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Mamba2(768, 1).parameters()) == 3_764_552


def test_mamba2_starts_as_in_its_code() -> None:
    torch.manual_seed(0)
    mixer = Mamba2(64, 1, head_dim=1)
    draws = [(mixer.in_proj.weight, 64), (mixer.out_proj.weight, 128)]
    for parameter, fan_in in [*draws, (mixer.conv.weight, 4), (mixer.conv.bias, 4)]:
        assert 0.9 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5
    delta, A = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert 1e-3 <= delta.min() < delta.max() <= 1e-1
    assert 1 <= A.min() < 2 < 15 < A.max() <= 16
    assert torch.equal(mixer.D, torch.ones(128))
    assert torch.equal(mixer.norm.weight, torch.ones(128))


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_macs_of_mamba2_are_those_of_its_recurrence(chunk_size: int) -> None:
    """Per channel and state a token decays the state, adds to it and reads it; linear maps are counted."""
    mixer = Mamba2(12, 1, d_state=5, head_dim=8, chunk_size=chunk_size)
    with FlopCounterMode(display=False) as counter:
        mixer.step(torch.zeros(1, 12), mixer.init_state(1))
    convolution, recurrence = 4 * (24 + 2 * 5), 3 * 24 * 5
    assert mixer.macs((10,)) == 10 * (counter.get_total_flops() // 2 + convolution + recurrence)


# ---- s4d ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 63, 196])
@pytest.mark.parametrize("A_init", ["lin", "inv"])
def test_s4d_kernel_is_the_sum_over_states(length: int, A_init: str) -> None:
    torch.manual_seed(0)
    core = S4DCore(3, 6, A_init=A_init).double()
    A = torch.complex(-core.log_A_real.exp(), core.A_imag)
    delta_A = core.log_dt.exp()[:, None] * A
    C = torch.complex(*core.C.unbind(-1))
    weight = C * (delta_A.exp() - 1) / A
    taps = [2 * (weight * torch.exp(delta_A * step)).sum(1).real for step in range(length)]
    close(core.kernel(length), torch.stack(taps, dim=1))


@pytest.mark.parametrize("convolve", [long_conv, toeplitz_conv, fft_conv])
@pytest.mark.parametrize("length", [1, 2, 5, DIRECT_LENGTH, DIRECT_LENGTH + 1, 196])
def test_long_convolution_against_the_sum_of_its_definition(convolve: object, length: int) -> None:
    u, kernel = noise(2, length, 3).requires_grad_(), noise(3, length, seed=2).requires_grad_()
    rows = [(kernel[:, : t + 1].flip(1).mT * u[:, : t + 1]).sum(1) for t in range(length)]
    same_gradients(convolve(u, kernel), torch.stack(rows, dim=1), [u, kernel])


@pytest.mark.parametrize("length", [9, 100])
def test_s4d_is_its_recurrence(length: int) -> None:
    torch.manual_seed(0)
    core = S4DCore(3, 6).double()
    u = noise(2, length, 3)
    for reverse in (False, True):
        hidden, ys = torch.zeros(2, *core.hidden_shape, dtype=torch.float64), []
        for token in (u.flip(1) if reverse else u).unbind(1):
            y, hidden = core.step(token, hidden)
            ys.append(y)
        expected = torch.stack(ys[::-1] if reverse else ys, dim=1)
        close(core(u, reverse=reverse), expected)


@pytest.mark.parametrize("length", [DIRECT_LENGTH, DIRECT_LENGTH + 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_autocast_does_not_reach_the_long_convolution(length: int, reverse: bool) -> None:
    torch.manual_seed(0)
    core = S4DCore(3, 6)
    u = noise(2, length, 3, dtype=torch.float32)
    expected = core(u, reverse=reverse)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(core(u, reverse=reverse), expected)


def test_s4d_selects_nothing() -> None:
    """Superposition, which no selective scan has."""
    core = S4DCore(3, 6).double()
    a, b = noise(1, 80, 3), noise(1, 80, 3, seed=2)
    close(core(a + 2 * b), core(a) + 2 * core(b))


def test_s4d_starts_as_in_the_paper() -> None:
    core = S4DCore(2, 8)
    torch.testing.assert_close(core.A_imag[1], torch.tensor([0, 1, 2, 3]) * math.pi)
    torch.testing.assert_close(core.log_A_real.exp(), torch.full((2, 4), 0.5))
    inverse = S4DCore(2, 8, A_init="inv").A_imag[0]
    torch.testing.assert_close(inverse, 8 / math.pi * (torch.tensor([8, 8 / 3, 8 / 5, 8 / 7]) - 1))
    torch.manual_seed(0)
    core = S4DCore(1000, 8)
    assert core.C.std(dim=(0, 1)).tolist() == pytest.approx([0.5**0.5] * 2, rel=0.05)  # |C|^2 is 1
    assert core.D.std().item() == pytest.approx(1, rel=0.1)
    with pytest.raises(ValueError, match="d_state must be even"):
        S4DCore(2, 7)


def test_macs_of_a_long_convolution() -> None:
    assert long_conv_macs(64, 3) == 3 * 64**2
    assert long_conv_macs(100, 3) == 3 * 3 * 5 * 256 * 8 // 4  # three transforms of 256 numbers
    assert long_conv_macs(1024, 1) == 3 * 5 * 2048 * 11 // 4


# ---- gru, mingru -------------------------------------------------------------------------------------------


def test_gru_both_ways_is_that_of_torch() -> None:
    torch.manual_seed(0)
    mixer = MIXERS.create(MIXERS.parse("gru(conv=none)"), 5, 1).double()
    theirs = nn.GRU(5, 5, batch_first=True, bidirectional=True).double()
    for core, ending in zip(mixer.scans, ("", "_reverse"), strict=True):
        for name, parameter in core.gru.named_parameters():
            getattr(theirs, name + ending).data.copy_(parameter)
    x = noise(2, 13, 5)
    forward, backward = theirs(F.silu(x))[0].chunk(2, dim=-1)
    close(mixer(x), (forward + backward) / 2)


def test_gru_takes_a_long_sequence_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    core, u = GRUCore(4).double(), torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)

    def run(reverse: bool) -> tuple[Tensor, ...]:
        y = core(u, reverse=reverse)
        return y, *torch.autograd.grad(y.square().sum(), [u, *core.parameters()])

    whole = [run(reverse) for reverse in (False, True)]
    monkeypatch.setattr("mixers.gru._TOKENS", 3)
    for reverse, expected in enumerate(whole):
        torch.testing.assert_close(run(bool(reverse)), expected)


def test_gru_takes_a_short_sequence_whole() -> None:
    """Cut into one part, its gradient would have another layout and that of the convolution other bits."""
    mixer = GRU(8, 1, scan="forward", conv="symmetric")
    x = torch.randn(2, 33, 8, requires_grad=True)
    y, expected = mixer(x), mixer.scans[0].gru(F.silu(mixer.conv(x)))[0]
    gradients, those = (
        torch.autograd.grad(each.square().sum(), [x, *mixer.parameters()]) for each in (y, expected)
    )
    assert all(map(torch.equal, gradients, those))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("bias", [0.0, -30.0, -200.0, 60.0])
@pytest.mark.parametrize("reverse", [False, True])
def test_mingru_is_its_recurrence(dtype: torch.dtype, tolerance: float, bias: float, reverse: bool) -> None:
    """With gates half open, shut, shut beyond underflow, and open."""
    torch.manual_seed(0)
    core = MinGRUCore(4).to(dtype)
    core.to_z.bias.data += bias
    u = noise(2, 33, 4, dtype=dtype).requires_grad_()
    z, candidate = core.to_z(u).sigmoid(), core.to_h(u)
    h, hs = torch.zeros(2, 4, dtype=dtype), []
    for t in reversed(range(33)) if reverse else range(33):
        h = (1 - z[:, t]) * h + z[:, t] * candidate[:, t]
        hs.append(h)
    expected = torch.stack(hs[::-1] if reverse else hs, dim=1)
    same_gradients(core(u, reverse=reverse), expected, [u, *core.parameters()], tolerance)


def test_mingru_with_positive_candidates_is_the_papers_scan_in_log_space() -> None:
    """h_t = exp(a_t + logcumsumexp(log(z c) - a)_t), where a sums log(1 - z)."""
    torch.manual_seed(0)
    core = MinGRUCore(4, candidate="positive").double()
    u = noise(2, 50, 4).requires_grad_()
    k, v = core.to_z(u), core.to_h(u)
    log_candidate = torch.where(v >= 0, (v.relu() + 0.5).log(), F.logsigmoid(v))
    a = F.logsigmoid(-k).cumsum(1)
    expected = (a + torch.logcumsumexp(F.logsigmoid(k) + log_candidate - a, dim=1)).exp()
    same_gradients(core(u), expected, [u, *core.parameters()], 1e-9)


# ---- what they share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_the_place_of_the_ssm_is_the_same(name: str) -> None:
    """From one seed all have the convolution of `conv`, and on a causal task that of `causal-conv`."""
    for other, causal in (("conv", False), ("causal-conv", True)):
        convolutions = []
        for each in (name, other):
            torch.manual_seed(5)
            defaults = MIXERS.load(each).place_defaults(1, causal)
            mixer = MIXERS.create(MIXERS.resolve(MIXERS.parse(each), defaults), 8, 1)
            convolutions.append(getattr(mixer, "conv", mixer))
            assert mixer.causal == causal
        assert type(convolutions[0]) is type(convolutions[1])
        for a, b in zip(*(each.parameters() for each in convolutions), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILY)
def test_the_mean_over_passes_keeps_the_scale(name: str) -> None:
    """Passes with the same parameters over one token give what a single pass gives."""
    forward, cross = (
        MIXERS.create(MIXERS.parse(f"{name}(scan={scan}, conv=none)"), 6, 2) for scan in ("forward", "cross")
    )
    for core in cross.scans:
        core.load_state_dict(forward.scans[0].state_dict())
    x = noise(2, 1, 1, 6, dtype=torch.float32)
    torch.testing.assert_close(cross(x), forward(x))


@pytest.mark.parametrize(
    "step_sizes",
    [
        lambda: F.softplus(SelectiveScan(2000, 1).delta_bias),
        lambda: F.softplus(SSDCore(2000, 1, head_dim=1, chunk_size=64).dt_bias),
        lambda: F.softplus(Mamba2(1000, 1, d_state=1, head_dim=1).dt_bias),
        lambda: S4DCore(2000, 2).log_dt.exp(),
    ],
    ids=["s6", "ssd", "mamba2", "s4d"],
)
def test_step_sizes_start_log_uniform(step_sizes: Callable[[], Tensor]) -> None:
    """A draw for each, as many in every tenth of the way from log 0.001 to log 0.1."""
    torch.manual_seed(0)
    counts = torch.histc(step_sizes().log10(), bins=10, min=-3, max=-1)
    assert ((counts / 2000 - 0.1).abs() < 0.03).all()


def test_states_have_the_declared_sizes() -> None:
    """At 8 channels; the causal convolution's window adds 3 tokens to each."""
    sizes = {"ssm": 8 * 16, "ssd": 8 * 64, "s4d": 8 * 16, "gru": 8, "mingru": 8}
    for name, size in sizes.items():
        defaults = MIXERS.load(name).place_defaults(1, True)
        mixer = MIXERS.create(MIXERS.resolve(MIXERS.parse(name), defaults), 8, 1)
        assert mixer.state_size(1000) == size + 3 * 8
    assert Mamba(8, 1).state_size(1000) == 16 * 16 + 3 * 16
    assert Mamba2(8, 1).state_size(1000) == 16 * 128 + 3 * (16 + 2 * 128)


def test_which_cores_have_a_choice_of_kernels() -> None:
    ssd = SSDCore(4, 2, head_dim=2, chunk_size=4)
    cores = [SelectiveScan(4, 2), MinGRUCore(4), ssd, GRUCore(4), S4DCore(4, 2)]
    assert [core.operation for core in cores] == ["scan", "scan", "ssd", None, None]
    assert all(core.backend == "auto" for core in cores)
