"""MambaVision's mixer: what its paper says, and what its released code does differently."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mixers import MIXERS
from mixers.mambavision import MambaVision
from mixers.scan_reference import selective_scan_reference


def test_it_is_its_definition() -> None:
    torch.manual_seed(0)
    mixer = MambaVision(8, 2, d_state=3, kernel_size=5).double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    tokens = mixer.in_proj(x.flatten(1, 2)).mT
    halves = (
        F.silu(F.conv1d(half, kernel, padding="same", groups=4)).mT
        for half, kernel in zip(tokens.chunk(2, dim=1), mixer.dwconv.chunk(2), strict=True)
    )
    scanned, beside = halves
    expected = mixer.out_proj(torch.cat((mixer.scan(scanned), beside), dim=-1)).view(x.shape)
    torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


def test_it_looks_one_token_ahead() -> None:
    mask = MambaVision(8, 1).dependency_mask((6,))
    assert torch.equal(mask, torch.ones(6, 6, dtype=torch.bool).tril(1))


def test_it_has_the_parameters_of_the_released_code() -> None:
    """D d + h (R + 2 N) + R h + h + h N + h + 2 h k + d D with d = D, h = D / 2, R = D / 16, N = 8, k = 3."""
    D, h, R, N, k = 320, 160, 20, 8, 3
    count = sum(parameter.numel() for parameter in MambaVision(D, 2).parameters())
    assert count == D * D + h * (R + 2 * N) + R * h + h + h * N + h + 2 * h * k + D * D


def test_its_convolutions_start_where_torch_draws_them() -> None:
    torch.manual_seed(0)
    taps = MambaVision(64, 1).dwconv
    for end in (taps.max(), -taps.min()):
        assert 0.9 * 3**-0.5 < end <= 3**-0.5


def test_the_slip_of_its_initialisation_is_an_option() -> None:
    slip, paper = (
        MIXERS.create(MIXERS.parse(f"mambavision{text}"), 64, 1) for text in ("(zero_dt_bias=true)", "")
    )
    assert not slip.scan.dt_proj.bias.any()
    delta = F.softplus(paper.scan.dt_proj.bias)
    assert 1e-3 <= delta.min() < delta.max() <= 1e-1


def test_the_bias_that_the_released_models_add_twice_is_an_option() -> None:
    """There `dt_proj` adds it, and the scan once more: outputs and the gradient of the bias."""
    torch.manual_seed(0)
    paper = MambaVision(8, 1, d_state=3).scan.double()
    slip = MambaVision(8, 1, d_state=3, double_dt_bias=True).scan.double()
    slip.load_state_dict(paper.state_dict())
    u = torch.randn(2, 9, 4, dtype=torch.float64)
    low_rank, B, C = slip.x_proj(u).split((1, 3, 3), dim=-1)
    bias, A = slip.dt_proj.bias, -slip.A_log.exp()
    released = selective_scan_reference(u, slip.dt_proj(low_rank), A, B, C, slip.D, bias)[0]
    assert not torch.allclose(paper(u), released)
    torch.testing.assert_close(slip(u), released, rtol=1e-10, atol=1e-10)
    (expected,), (found,) = (torch.autograd.grad(y.square().sum(), [bias]) for y in (released, slip(u)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dim", "options", "message"), [(7, {}, "even, got 7"), (8, {"kernel_size": 4}, "odd")]
)
def test_what_it_cannot_be(dim: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MambaVision(dim, 1, **options)
