"""Every mixer beside its shape: size by formula, linearity, the same bits twice, a stored copy; memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers import MIXERS
from mixers.base import TokenMixer
from mixers.s6 import SelectiveScan

C = 64


def scan(passes: int, each: int, taps: int = 49) -> int:
    """A convolution with biases, and the passes behind it."""
    return C * (taps + 1) + passes * each


# On images of 64 channels, by the papers' definitions with the defaults here: 2 passes, 16 states (64 in
# `ssd`, 128 in `mamba2`), R = 4, heads of 64 channels (1 in `ssd`, 2 in `mamba2`), heads of 32 channels with
# 16 keys each (GLA).
PARAMETERS: dict[str, int] = {
    "identity": 0,
    "pooling": 0,
    "conv": C * 50,
    "causal-conv": C * (7 * 6 + 4 + 1),
    "ssm": scan(2, C * (4 + 2 * 16) + 4 * C + C + C * 16 + C),
    "ssd": scan(2, C * (2 * 64 + 1) + 3),
    "mamba": 6 * C**2 + 2 * C * (4 + 1 + (4 + 2 * 16) + 4 + 1 + 16 + 1),
    "mamba2": C * (4 * C + 2 * 128 + 2) + (4 + 1) * (2 * C + 2 * 128) + 3 * 2 + 2 * C + 2 * C**2,
    "mambavision": 2 * C**2 + 3 * C + 32 * (4 + 2 * 8) + 4 * 32 + 32 + 32 * 8 + 32,
    "s4d": scan(2, C * (1 + 8 + 8 + 16 + 1)),
    "gru": scan(2, 6 * C**2 + 6 * C),
    "mingru": scan(2, 2 * C**2 + 2 * C),
    "causal-attention": 4 * C**2 + 4 * C,
    "attention": 4 * C**2 + 4 * C,
    "window-attention": 4 * C**2 + 4 * C,
    "linear-attention": 4 * C**2 + 4 * C,
    "causal-linear-attention": 4 * C**2 + 4 * C,
    "mila-attention": 2 * C**2 + 2 * C + 10 * C,
    "gated-linear-attention": C * (2 * 32 + C) + 2 * (16 * C + 16 * 32 + 32) + 32 + C**2,
    "random": 0,
    "sepconv": 4 * C**2 + 98 * C + 2,
    "gated-conv": 3 * C**2 + 3 * C + 50 * C,
}


def build(text: str, rank: int = 2, dim: int = C) -> TokenMixer:
    torch.manual_seed(0)
    mixer: TokenMixer = MIXERS.create(MIXERS.parse(text), dim, rank)
    return mixer


@pytest.mark.parametrize("name", list(MIXERS))
def test_parameters_by_formula(name: str) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name).parameters()) == PARAMETERS[name]


S6 = {"A_log", "D", "dt_proj.bias"}  # Mamba's, and after it everybody's
EXEMPT: dict[str, set[str]] = {
    "ssm": {f"scans.{i}.{name}" for i in (0, 1) for name in S6},
    "ssm(selective=none, scan=forward)": {f"scans.0.{name}" for name in ("A_log", "D", "dt_bias", "B", "C")},
    "ssm(selective=B, scan=forward)": {f"scans.0.{name}" for name in ("A_log", "D", "dt_bias", "C")},
    "ssm(scan=continuous)": {f"scans.0.{name}" for name in (*S6, "move_B")},
    "ssm(conv=per-pass, kernel_size=4)": {f"scans.{i}.core.{name}" for i in (0, 1) for name in S6},
    "mamba": {f"ssm.scans.0.{name}" for name in S6},
    "mamba(scan=bidirectional)": {f"ssm.scans.{i}.core.{name}" for i in (0, 1) for name in S6},
    "ssd": {f"scans.{i}.{name}" for i in (0, 1) for name in ("A_log", "D", "dt_bias")},
    "mamba2": {"A_log", "D", "dt_bias"},
    "mambavision": {f"scan.{name}" for name in S6},
    "s4d": {f"scans.{i}.{name}" for i in (0, 1) for name in ("log_dt", "log_A_real", "A_imag", "D")},
    "gated-linear-attention": {"gates.0.up.bias", "gates.1.up.bias"},
    "sepconv": {"act.scale", "act.bias"},
}
"""Parameters without weight decay; no other mixer has any."""


@pytest.mark.parametrize("text", list(dict.fromkeys([*MIXERS, *EXEMPT])))
def test_what_weight_decay_leaves_alone(text: str) -> None:
    with torch.device("meta"):
        assert build(text).no_weight_decay() == EXEMPT.get(text, set())


LINEAR = ["identity", "pooling", "random", "conv", "causal-conv"]


@pytest.mark.parametrize("name", list(MIXERS))
def test_who_is_linear(name: str) -> None:
    """Superposition, up to the constant that biases add; what selects, gates or attends has none."""
    mixer = build(name, dim=16).double()
    generator = torch.Generator().manual_seed(1)
    a, b, nothing = (torch.randn(3, 1, 3, 4, 16, dtype=torch.float64, generator=generator)).unbind(0)
    nothing = torch.zeros_like(nothing)
    gap = mixer(a + 2 * b) - mixer(nothing) - (mixer(a) - mixer(nothing)) - 2 * (mixer(b) - mixer(nothing))
    assert (gap.abs().max().item() < 1e-12) == (name in LINEAR)


@pytest.mark.parametrize("name", list(MIXERS))
def test_two_passes_have_the_same_bits_and_so_has_a_stored_copy(name: str) -> None:
    mixer = build(name, dim=16)
    torch.manual_seed(7)
    copy: nn.Module = MIXERS.create(MIXERS.parse(name), 16, 2)
    copy.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(1))

    def results(module: nn.Module) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])]

    once, again, stored = results(mixer), results(mixer), results(copy)
    for a, b, c in zip(once, again, stored, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("name", list(MIXERS))
def test_weights_in_bfloat16_compute_the_same_but_for_their_bits(name: str) -> None:
    """As `bench --dtype bfloat16` runs them."""
    mixer = build(name, rank=1, dim=16)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    narrow = build(name, rank=1, dim=16).bfloat16()
    mixer.load_state_dict(narrow.state_dict())
    y = narrow(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.float(), mixer(x.float()), rtol=0.05, atol=0.05 * y.detach().abs().max().item()
    )
    y.float().square().sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in narrow.parameters() if each.requires_grad)


# ---- the memory of an SSM ----------------------------------------------------------------------------------


def constant_ssm(delta: float, A: float) -> Callable[[Tensor], Tensor]:
    """One channel with one state, step size and decay as given, B = C = 1, no skip."""
    core = SelectiveScan(1, 1, selective="none").double()
    with torch.no_grad():
        core.dt_bias.fill_(torch.tensor(delta, dtype=torch.float64).expm1().log())
        core.A_log.fill_(A).log_()
        core.C.fill_(1)
        core.D.zero_()
    return core


@pytest.mark.parametrize(("delta", "A"), [(0.001, 1.0), (0.1, 1.0), (0.1, 16.0), (0.7, 3.0)])
def test_an_impulse_fades_as_the_step_size_says(delta: float, A: float) -> None:
    impulse = torch.zeros(1, 40, 1, dtype=torch.float64)
    impulse[0, 0] = 1
    expected = delta * torch.exp(-delta * A * torch.arange(40, dtype=torch.float64))
    torch.testing.assert_close(constant_ssm(delta, A)(impulse)[0, :, 0], expected, rtol=1e-9, atol=1e-12)


def test_the_ends_of_the_step_size() -> None:
    """Without steps nothing enters the state, y = D u; with a decay of 0 nothing stays in it."""
    torch.manual_seed(0)
    core = SelectiveScan(6, 4).double()
    u = torch.randn(2, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        core.dt_proj.bias.fill_(-1e4)
        torch.testing.assert_close(core(u), core.D * u)
        core.dt_proj.bias.fill_(1.0)
        core.A_log.fill_(20.0)
        delta, B, C = core.select(u)
        alone = F.softplus(delta + 1) * u * (B * C).sum(-1, keepdim=True) + core.D * u
        torch.testing.assert_close(core(u), alone, rtol=1e-10, atol=1e-12)
