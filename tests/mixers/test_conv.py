"""Depthwise convolutions: what they see, what they compute, what they cost, and which path computes it."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mixers.base import TokenMixer
from mixers.conv import CausalConv, DepthwiseConv, _DepthwiseConv2d, depthwise_conv
from mixers.sepconv import SepConv

SEQUENCES = [(1,), (2,), (3,), (13,)]
IMAGES = [(1, 1), (1, 5), (4, 1), (3, 5), (9, 8)]
CASES = [
    *product([DepthwiseConv], [1, 3, 7], SEQUENCES + IMAGES),
    *product([CausalConv], [1, 3, 7], SEQUENCES + IMAGES),
    *product([CausalConv], [2, 4], SEQUENCES),
]


def dense(mixer: TokenMixer) -> TokenMixer:
    """The mixer in float64 with every parameter away from zero."""
    mixer = mixer.double()
    generator = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return mixer


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("mixer_class", "kernel_size", "grid"), CASES)
def test_dependency_mask_is_the_pattern_of_the_jacobian(mixer_class, kernel_size, grid):
    dim, length = 2, math.prod(grid)
    mixer = dense(mixer_class(dim, len(grid), kernel_size=kernel_size))
    x = normal(1, *grid, dim)
    jacobian = torch.autograd.functional.jacobian(mixer, x).view(length, dim, length, dim)
    assert torch.equal(jacobian.abs().sum((1, 3)) > 0, mixer.dependency_mask(grid))
    across_channels = jacobian[:, [0, 1], :, [1, 0]]
    assert not across_channels.any()


@pytest.mark.parametrize(("mixer_class", "kernel_size", "grid"), CASES)
def test_causal_means_that_no_later_token_is_seen(mixer_class, kernel_size, grid):
    length = math.prod(grid)
    mixer = dense(mixer_class(3, len(grid), kernel_size=kernel_size))
    x = normal(2, *grid, 3)
    y = mixer(x).flatten(1, -2)
    for token in range(length):
        changed = x.clone()
        changed.flatten(1, -2)[:, token] += 1
        unmoved = torch.equal(mixer(changed).flatten(1, -2)[:, :token], y[:, :token])
        if mixer.causal:
            assert unmoved
        elif token == length - 1:
            assert not unmoved or length == 1


def test_only_a_pointwise_symmetric_kernel_is_causal():
    assert DepthwiseConv(2, 2, kernel_size=1).causal
    assert not DepthwiseConv(2, 2, kernel_size=3).causal


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_steps_equal_forward(kernel_size, length):
    mixer = dense(CausalConv(5, 1, kernel_size=kernel_size))
    x = normal(3, length, 5)
    state = mixer.init_state(3)
    assert sum(part[0].numel() for part in state) == mixer.state_size(length) == 5 * (kernel_size - 1)
    outputs = []
    for token in x.unbind(1):
        before = [part.clone() for part in state]
        y, next_state = mixer.step(token, state)
        assert all(map(torch.equal, before, state)), "step wrote into its state"
        outputs.append(y)
        state = next_state
    torch.testing.assert_close(torch.stack(outputs, 1), mixer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer_class", [DepthwiseConv, CausalConv])
def test_shifting_the_input_shifts_the_output(mixer_class):
    mixer = dense(mixer_class(2, 2, kernel_size=3))
    nn.init.zeros_(mixer.bias)
    x = torch.zeros(1, 12, 14, 2, dtype=torch.float64)
    x[:, 3:7, 4:8] = normal(1, 4, 4, 2)
    torch.testing.assert_close(mixer(x.roll((2, 3), (1, 2))), mixer(x).roll((2, 3), (1, 2)))


@pytest.mark.parametrize(("mixer_class", "kernel_size", "grid"), CASES)
def test_macs_are_those_of_the_counter(mixer_class, kernel_size, grid):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        mixer = mixer_class(4, len(grid), kernel_size=kernel_size)
        mixer(torch.zeros(1, *grid, 4))
    taps = mixer.weight[0].numel()
    # the counter sees the whole square of a causal kernel, of which the later taps do not exist
    computed = kernel_size ** len(grid)
    assert mixer.macs(grid) * computed == counter.get_total_flops() // 2 * taps


def test_a_causal_image_kernel_has_no_parameters_for_later_tokens():
    mixer = CausalConv(1, 2, kernel_size=3)
    assert mixer.weight.shape == (1, 8)  # two rows of three, then two taps of the token's own row
    impulse = torch.zeros(1, 5, 5, 1)
    impulse[0, 1, 2] = 1
    response = mixer(impulse)[0, :, :, 0] - mixer.bias
    kernel = response[1:4, 1:4].flip(0, 1).flatten()  # a convolution answers an impulse with its mirror image
    torch.testing.assert_close(kernel[:8], mixer.weight[0])
    assert kernel[8] == 0


def test_defaults_depend_on_the_place():
    assert CausalConv.place_defaults(1, True) == CausalConv.place_defaults(1, False) == {"kernel_size": 4}
    assert CausalConv.place_defaults(2, True) == {}
    assert DepthwiseConv.place_defaults(2, False) == {}


@pytest.mark.parametrize(
    ("mixer_class", "grid_rank"), [(DepthwiseConv, 1), (DepthwiseConv, 2), (CausalConv, 2)]
)
def test_an_even_window_is_refused(mixer_class, grid_rank):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        mixer_class(4, grid_rank, kernel_size=4)


@pytest.mark.parametrize("mixer", [DepthwiseConv(4, 1), DepthwiseConv(4, 2), CausalConv(4, 2)])
def test_without_a_recurrent_form(mixer):
    assert mixer.state_size(9) is None
    with pytest.raises(TypeError, match="no recurrent form"):
        mixer.init_state(1)
    with pytest.raises(TypeError, match="no recurrent form"):
        mixer.step(torch.zeros(1, 4), ())


@pytest.mark.parametrize(("mixer_class", "grid_rank"), [*product([DepthwiseConv, CausalConv], [1, 2])])
def test_initialised_as_mambaout(mixer_class, grid_rank):
    torch.manual_seed(0)
    mixer = mixer_class(2000, grid_rank)
    assert mixer.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert mixer.weight.mean().abs() < 1e-3
    assert not mixer.bias.any()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("grid", [(13,), (9, 8)])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_depthwise_convolutions_of_sequences_and_images(kernel_size, grid, with_bias):
    """With a bias or without, they are torch's, and so are their gradients."""
    rank = len(grid)
    x, kernel = normal(2, *grid, 5, dtype=torch.float32), normal(5, 1, *[kernel_size] * rank).float()
    bias = normal(5).float() if with_bias else None
    convolve = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    results = []
    for ours in (True, False):
        leaves = [each.clone().requires_grad_() for each in (x, kernel, bias) if each is not None]
        given = leaves if with_bias else [*leaves, None]
        padding = (kernel_size // 2,) * rank
        if ours:
            y = depthwise_conv(*given, padding)
        else:
            y = convolve(given[0].movedim(-1, 1), *given[1:], padding=padding, groups=5).movedim(1, -1)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


# ---- the gradient of the kernel on CPU


def last_function(y: Tensor) -> str:
    assert y.grad_fn is not None
    return y.grad_fn.next_functions[0][0].name()  # before the permutation


@pytest.mark.parametrize("kernel_size", [5, 7])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 3), (2, 3, 9, 16), (5, 30, 31, 17), (40, 8, 8, 16), (3, 50, 47, 8)]
)
def test_gradients_in_float32_equal_those_of_torch_in_float64(shape, kernel_size):
    channels, padding = shape[-1], (kernel_size // 2,) * 2
    x, kernel, bias = normal(*shape), normal(channels, 1, kernel_size, kernel_size), normal(channels)
    grad = normal(*shape[::-1]).permute(3, 2, 1, 0)  # not laid out as the output is
    gradients = []
    for dtype, path in ((torch.float32, "_DepthwiseConv2d"), (torch.float64, "ConvolutionBackward")):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, kernel, bias)]
        y = depthwise_conv(*leaves, padding)
        assert path in last_function(y)
        gradients.append(torch.autograd.grad(y, leaves, grad.to(dtype)))
    atol = 1e-5 * math.prod(shape[:3]) ** 0.5  # sums of that many terms of order 1
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (1, 3)])
def test_gradients_of_first_and_second_order(padding):
    inputs = [normal(*shape).requires_grad_() for shape in ((2, 2, 5, 6), (2, 1, 5, 5), (2,))]

    def convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return _DepthwiseConv2d.apply(x, kernel, bias, padding)

    assert torch.autograd.gradcheck(convolve, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, inputs, fast_mode=True)


def test_small_kernels_and_other_dtypes_are_left_to_torch():
    x = torch.zeros(1, 4, 4, 2)
    assert "ConvolutionBackward" in last_function(DepthwiseConv(2, 2, kernel_size=3)(x))
    assert "ConvolutionBackward" in last_function(DepthwiseConv(2, 2, kernel_size=7).double()(x.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "ConvolutionBackward" in last_function(DepthwiseConv(2, 2, kernel_size=7)(x))


@pytest.mark.parametrize("mixer_class", [DepthwiseConv, SepConv])  # with a bias, and without
def test_per_example_gradients(mixer_class):
    mixer = mixer_class(4, 2)
    parameters = dict(mixer.named_parameters())
    x = normal(3, 6, 6, 4, dtype=torch.float32)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, parameters, image[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    together = torch.autograd.grad(mixer(x).square().sum(), list(parameters.values()))
    for name, total in zip(parameters, together, strict=True):
        torch.testing.assert_close(each[name].sum(0), total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer_class", [DepthwiseConv, CausalConv])
def test_no_images_give_gradients_of_zero(mixer_class):
    mixer = mixer_class(3, 2, kernel_size=7)
    x = torch.zeros(0, 4, 5, 3, requires_grad=True)
    mixer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not mixer.weight.grad.any()
    assert not mixer.bias.grad.any()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_tangents_of_the_kernel_with_gradients_of_its_own():
    mixer = DepthwiseConv(3, 2, kernel_size=7)
    x, v = normal(2, 4, 5, 3, dtype=torch.float32), normal(2, 4, 5, 3, dtype=torch.float32).flip(0)
    _, tangent = torch.func.jvp(mixer, (x,), (v,))
    torch.testing.assert_close(tangent, mixer(v) - mixer(torch.zeros_like(v)), rtol=1e-4, atol=1e-6)
