"""The token mixers of MetaFormer (random, separable convolution, pooling) and the gated convolution."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from timm.models.metaformer import Pooling as TimmPooling
from timm.models.metaformer import SepConv as TimmSepConv
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mixers.base import as_sequence
from mixers.conv import CausalConv, DepthwiseConv
from mixers.gated_conv import GatedConv
from mixers.pooling import Pooling
from mixers.random_mixing import RandomMixing
from mixers.sepconv import SepConv, StarReLU

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_mixing(seed: int, grid_rank: int = 1) -> RandomMixing:
    torch.manual_seed(seed)
    return RandomMixing(3, grid_rank)


# ---- random mixing


@pytest.mark.parametrize("grid", [(1,), (9,), (2, 5)])
def test_random_mixing_is_a_weighted_mean_with_fixed_weights(grid: tuple[int, ...]) -> None:
    mixer = random_mixing(0, len(grid))
    x = normal(2, *grid, 3)
    matrix = mixer.matrix(as_sequence(x).shape[1], x.dtype, x.device)
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64), **CLOSE)
    # the softmax of numbers in [0, 1): no weight is e times another one of its row
    assert (matrix > 0).all()
    assert (matrix.amax(1) < torch.e * matrix.amin(1)).all()
    assert torch.equal(mixer(x), (matrix @ as_sequence(x)).view_as(x))
    torch.testing.assert_close(mixer(2 * x - 1), 2 * mixer(x) - 1, **CLOSE)


def test_random_mixing_is_random() -> None:
    """The logarithms of the weights, up to a number per row, are uniform in an interval of length 1."""
    logs = random_mixing(0).matrix(400, torch.float64, torch.device("cpu")).log()
    logs = logs - logs.amin(1, keepdim=True)
    assert 0.99 < logs.max() < 1
    torch.testing.assert_close(logs.mean(), torch.tensor(0.5, dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(logs.var(), torch.tensor(1 / 12, dtype=torch.float64), rtol=0, atol=0.005)


def test_random_mixing_follows_its_seed() -> None:
    x = normal(2, 9, 3)
    one, same, other = random_mixing(3), random_mixing(3), random_mixing(4)
    assert torch.equal(one(x), same(x))
    assert not torch.allclose(one(x), other(x))
    assert not torch.allclose(one(x[:, :4]), one(x)[:, :4])
    assert torch.equal(one(x), same(x)), "a matrix comes back after another length"
    torch.testing.assert_close(one.float()(x.float()), same(x).float())


def test_random_mixing_is_stored_and_loaded_by_its_seed() -> None:
    x = normal(2, 9, 3)
    one, other = random_mixing(3), random_mixing(4)
    assert {name: int(value) for name, value in one.state_dict().items()} == {"seed": one.seed}
    assert not torch.allclose(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x)), "the old matrix is forgotten"
    assert torch.equal(copy.deepcopy(one)(x), one(x))
    stored = io.BytesIO()
    torch.save(one, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(x), one(x))


def test_random_mixing_keeps_its_matrix_when_weights_are_averaged() -> None:
    """A mean of the seed, in floating point, would be another one."""
    x = normal(2, 9, 3)
    model = torch.nn.Sequential(random_mixing(3), torch.nn.Linear(3, 3)).double()
    averaged = AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        averaged.update_parameters(model)
    torch.testing.assert_close(averaged(x), model(x))


def test_random_mixing_follows_a_seed_that_is_replaced() -> None:
    x = normal(2, 9, 3)
    one, other = random_mixing(3), random_mixing(4)
    other(x)
    other.seed = one.seed
    assert torch.equal(other(x), one(x))


def test_random_mixing_is_loaded_inside_a_model() -> None:
    one, other = (torch.nn.Sequential(random_mixing(seed), torch.nn.Linear(3, 3)) for seed in (3, 4))
    assert list(one.state_dict()) == ["0.seed", "1.weight", "1.bias"]
    other.load_state_dict(one.state_dict())
    assert other[0].seed == one[0].seed
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(torch.nn.Sequential(torch.nn.Identity(), one[1]).state_dict())


def test_random_mixing_still_draws_what_it_drew() -> None:
    """Trials on record have this matrix."""
    mixer = random_mixing(0)
    assert mixer.seed == 900450186894289455
    row = [0.2130557585998124, 0.4094153920032259, 0.19990993915712868, 0.177618910239833]
    first = mixer.matrix(4, torch.float64, torch.device("cpu"))[0]
    torch.testing.assert_close(first, torch.tensor(row, dtype=torch.float64))


def test_random_mixing_trains_after_inference() -> None:
    mixer = random_mixing(0)
    x = normal(2, 9, 3).requires_grad_()
    with torch.inference_mode():
        mixer(x.detach())
    mixer(x).square().sum().backward()
    assert x.grad is not None


def test_random_mixing_keeps_no_matrix_of_a_transform() -> None:
    """Such a tensor cannot be copied, and a fake one would make every later output fake."""
    x = normal(2, 9, 3)
    expected = random_mixing(0)(x)
    mixer = random_mixing(0)
    torch.func.grad(lambda x: mixer(x).square().sum())(x)
    copied = copy.deepcopy(mixer)
    with FakeTensorMode() as fake:
        copied(fake.from_tensor(x))
    assert torch.equal(mixer(x), expected)
    assert torch.equal(copied(x), expected)
    assert mixer.matrix(9, x.dtype, x.device) is mixer.matrix(9, x.dtype, x.device)


def test_random_mixing_has_nothing_to_train_and_draws_one_number() -> None:
    mixer = random_mixing(0)
    assert list(mixer.parameters()) == []
    x = normal(2, 9, 3).requires_grad_()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert mixer(x).requires_grad
    assert torch.equal(torch.rand(3), expected), "the matrix leaves the global generator alone"
    with torch.device("meta"):
        torch.manual_seed(0)
        on_meta = RandomMixing(3, 1)
        assert on_meta(torch.zeros(2, 9, 3)).is_meta
    assert on_meta.seed == mixer.seed


# ---- separable convolution


@pytest.mark.parametrize("grid", [(1, 1), (5, 9), (12, 8)])
def test_sepconv_is_timm_s(grid: tuple[int, int]) -> None:
    """Values and gradients."""
    torch.manual_seed(0)
    ours, theirs = SepConv(6, 2).double(), TimmSepConv(6).double()
    with torch.no_grad():
        ours.act.scale.fill_(0.9)
        ours.act.bias.fill_(-0.4)
    pairs = {
        "pwconv1.weight": ours.pwconv1.weight,
        "act1.scale": ours.act.scale,
        "act1.bias": ours.act.bias,
        "dwconv.weight": ours.dwconv,
        "pwconv2.weight": ours.pwconv2.weight,
    }
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: value.detach().view(shapes[name]) for name, value in pairs.items()})
    x, weight = normal(2, *grid, 6), normal(2, *grid, 6, seed=2)
    y, expected = ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(y, expected, **CLOSE)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(pairs[name].grad.view_as(parameter), parameter.grad, **CLOSE)


def test_sepconv_in_float32_takes_the_fast_path_of_conv() -> None:
    torch.manual_seed(0)
    mixer = SepConv(8, 2)
    x = normal(2, 9, 7, 8)
    y = mixer(x.float())
    y.square().sum().backward()
    narrow = {name: parameter.grad.double() for name, parameter in mixer.named_parameters()}
    mixer.zero_grad()
    mixer.double()(x).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        torch.testing.assert_close(narrow[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_sepconv_of_a_sequence_is_that_of_an_image_of_one_row() -> None:
    torch.manual_seed(0)
    sequence, image = SepConv(4, 1).double(), SepConv(4, 2).double()
    image.load_state_dict(
        {**image.state_dict(), **{n: v for n, v in sequence.state_dict().items() if n != "dwconv"}}
    )
    with torch.no_grad():
        image.dwconv.copy_(torch.zeros_like(image.dwconv))
        image.dwconv[:, :, 3].copy_(sequence.dwconv)
    x = normal(2, 11, 4)
    torch.testing.assert_close(sequence(x), image(x[:, None])[:, 0], **CLOSE)


@pytest.mark.parametrize("dim", [16, 64])
def test_sepconv_has_the_size_of_the_paper_s(dim: int) -> None:
    mixer = SepConv(dim, 2)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == 4 * dim**2 + 98 * dim + 2
    assert mixer.macs((5, 6)) == 30 * (4 * dim**2 + 98 * dim)


def test_starrelu_starts_as_a_squared_relu() -> None:
    x = normal(20)
    assert torch.equal(StarReLU().double()(x), x.relu().square())


def test_sepconv_refuses_an_even_kernel() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        SepConv(4, 1, kernel_size=4)


# ---- pooling


@pytest.mark.parametrize("pool_size", [3, 5])
@pytest.mark.parametrize("grid", [(1, 1), (4, 3), (9, 8)])
def test_pooling_is_timm_s(grid: tuple[int, int], pool_size: int) -> None:
    x = normal(2, *grid, 5)
    expected = TimmPooling(pool_size)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(Pooling(5, 2, pool_size=pool_size)(x), expected, **CLOSE)


# ---- gated convolution


@pytest.mark.parametrize("act", ["sigmoid", "silu", "gelu"])
@pytest.mark.parametrize("grid", [(9,), (4, 5)])
@pytest.mark.parametrize("conv", ["symmetric", "causal"])
def test_gated_conv_is_its_definition(conv: str, grid: tuple[int, ...], act: str) -> None:
    torch.manual_seed(0)
    mixer = GatedConv(4, len(grid), conv=conv, act=act, kernel_size=3).double()
    assert type(mixer.conv) is (DepthwiseConv if conv == "symmetric" else CausalConv)
    x = normal(2, *grid, 4)
    w, b = mixer.in_proj.weight, mixer.in_proj.bias
    gate = getattr(nn.functional, act)(x @ w[4:].T + b[4:])
    torch.testing.assert_close(mixer(x), mixer.out_proj(mixer.conv(x @ w[:4].T + b[:4]) * gate), **CLOSE)


def test_gated_conv_of_one_tap_is_a_gated_linear_unit() -> None:
    torch.manual_seed(0)
    mixer = GatedConv(4, 1, kernel_size=1).double()
    assert mixer.causal
    nn.init.ones_(mixer.conv.weight)
    x = normal(2, 9, 4)
    torch.testing.assert_close(mixer(x), mixer.out_proj(nn.functional.glu(mixer.in_proj(x))), **CLOSE)


def test_gated_conv_of_a_place() -> None:
    assert GatedConv.place_defaults(1, False) == GatedConv.place_defaults(2, False) == {}
    assert GatedConv.place_defaults(1, True) == {"conv": "causal", "kernel_size": 4}
    assert GatedConv.place_defaults(2, True) == {"conv": "causal"}
