"""Pyramids of features and the heads that read them."""

from __future__ import annotations

from itertools import product
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.interface import MixerFactory, TaskSpec
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.dense import ConvNormAct, PerPixel, UPerNet
from mixers import MIXERS, InputError
from mixers.base import TokenMixer

TASK = TaskSpec("image", 2, (64, 64), 5, output="per-pixel")
HIERARCHICAL = [name for name in SKELETONS if name.startswith("mambaout-")]
MIXERS_ON_IMAGES = [name for name in MIXERS if 2 in MIXERS.load(name).grid_ranks]
HEADS = ("linear", "upernet", "fpn")


def factory(name: str = "conv") -> MixerFactory:
    mixer_class = MIXERS.load(name)

    def make(dim: int, *, grid_rank: int, stage: int, layer: int) -> TokenMixer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(layer)
            return mixer_class(dim, grid_rank, **mixer_class.place_defaults(grid_rank, False))

    return make


def build(skeleton: str, mixer: str = "conv", task: TaskSpec = TASK, **options: object) -> nn.Module:
    model = SKELETONS.load(skeleton)(factory(mixer), task, **options)
    model.init_weights(lambda name: torch.Generator().manual_seed(crc32(name.encode())))
    return model.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- pyramids


@pytest.mark.parametrize("skeleton", HIERARCHICAL)
@pytest.mark.parametrize("grid", [(64, 64), (200, 333)])
def test_a_pyramid_has_the_strides_it_says(skeleton: str, grid: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = SKELETONS.load(skeleton)(factory("identity"), TASK)
        maps = model.forward_pyramid(torch.zeros(2, 2, *grid))
    strides = model.strides()
    assert strides == ([2, 4] if skeleton == "mambaout-nano" else [4, 8, 16, 32])
    expected = [
        (2, *(-(-side // stride) for side in grid), dim)
        for stride, dim in zip(strides, model.dims, strict=True)
    ]
    assert [tuple(each.shape) for each in maps] == expected


@pytest.mark.parametrize("mixer", MIXERS_ON_IMAGES)
def test_every_mixer_gives_a_pyramid(mixer: str) -> None:
    model = build("mambaout-pico", mixer)
    maps = model.forward_pyramid(images(1, 2, 36, 61))
    assert [tuple(each.shape[1:3]) for each in maps] == [(9, 16), (5, 8), (3, 4), (2, 2)]
    for each in maps:  # a LayerNorm stands behind every stage
        torch.testing.assert_close(each.mean(-1), torch.zeros(each.shape[:-1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(each.var(-1, correction=0), torch.ones(each.shape[:-1]), atol=0.02, rtol=0)


def test_the_last_map_is_what_classification_reads() -> None:
    dense, plain = build("mambaout-pico"), build("mambaout-pico", task=TaskSpec("image", 2, (64, 64), 5))
    x = images(2, 2, 40, 40)
    assert torch.equal(dense.forward_features(x), plain.forward_features(x))
    assert torch.equal(dense.forward_stages(x)[-1], plain.forward_features(x))
    with pytest.raises(TypeError, match="no pyramid"):
        plain.forward_pyramid(x)


def test_overlapping_patches_have_seen_a_digit() -> None:
    """11 pixels beyond a token's own 4 to every side, which is a cell of `scenes`."""
    x = images(1, 2, 64, 64).requires_grad_()
    build("isotropic-dense", "identity").patch_embed(x)[0, 8, 8].sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amin(0).tolist(), seen.amax(0).tolist()) == ([21, 21], [43, 43])
    with pytest.raises(InputError, match="must be 1, 2 or 4, got 16"):
        build("isotropic-dense", patch_size=16)


# ---- heads


@pytest.mark.parametrize(
    ("skeleton", "head"), [*product(["mambaout-nano", "mambaout-tiny", "isotropic-nano"], HEADS)]
)
def test_every_pixel_gets_an_answer(skeleton: str, head: str) -> None:
    with torch.device("meta"):
        model = SKELETONS.load(skeleton)(factory("identity"), TASK, head=head)
        finest = model.forward_pyramid(torch.zeros(2, 2, 64, 64))[0]
        training = model.train()(torch.zeros(2, 2, 64, 64))
        assert model.eval()(torch.zeros(2, 2, 64, 64)).shape == (*finest.shape[:3], 5)
    assert isinstance(training, tuple) == (head != "linear")


@pytest.mark.parametrize(("skeleton", "head"), [*product(["mambaout-nano", "isotropic-nano"], HEADS)])
def test_every_parameter_gets_a_gradient(skeleton: str, head: str) -> None:
    model = build(skeleton, head=head).train()
    outputs = model(images(2, 2, 17, 23))
    for logits in outputs if isinstance(outputs, tuple) else (outputs,):
        assert logits.isfinite().all()
        logits.square().sum().backward(retain_graph=True)
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_the_linear_head_is_one_layer_on_the_concatenated_maps() -> None:
    head = PerPixel([3, 4], classes=5)
    fine, coarse = images(2, 6, 8, 3), images(2, 3, 4, 4)
    resized = F.interpolate(coarse.permute(0, 3, 1, 2), size=(6, 8), mode="bilinear").permute(0, 2, 3, 1)
    weight = torch.cat([part.weight for part in head.parts], dim=1)
    expected = F.linear(torch.cat([fine, resized], dim=-1), weight, head.parts[0].bias)
    torch.testing.assert_close(head([fine, coarse]), expected)


def reach(head: nn.Module, dims: list[int]) -> float:
    """Share of the pixels of the first map that the answer at its corner depends on."""
    maps = [images(1, 16 >> level, 16 >> level, dim).requires_grad_() for level, dim in enumerate(dims)]
    head.eval()(maps)[0, 0, 0].sum().backward()
    return (maps[0].grad[0].abs().sum(-1) > 0).double().mean().item()


def test_only_the_pyramid_pooling_tells_a_pixel_of_the_whole_image() -> None:
    torch.manual_seed(0)
    assert reach(PerPixel([4], 3), [4]) == 1 / 256
    assert reach(UPerNet([4], 3, 8, pooling=False), [4]) < 0.1
    assert reach(UPerNet([4], 3, 8, pooling=True), [4]) == 1


def test_behind_a_convolution_come_batch_norm_and_relu() -> None:
    torch.manual_seed(0)
    layer, x = ConvNormAct(3, 4, 3), torch.randn(2, 3, 5, 6)
    normed = F.batch_norm(F.conv2d(x, layer.conv.weight, padding=1), None, None, training=True)
    torch.testing.assert_close(layer(x), normed.clamp(min=0))


def test_upernet_is_mmsegmentations() -> None:
    """Its parameters, counted by hand: no convolution has a bias but the classifiers."""
    dims, width, classes = [96, 192, 384, 576], 512, 150

    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side**2 + 2 * outputs  # and its batch norm

    pooling = 4 * conv(576, width, 1) + conv(576 + 4 * width, width, 3)
    pyramid = sum(conv(dim, width, 1) + conv(width, width, 3) for dim in dims[:3])
    decode = pooling + pyramid + conv(4 * width, width, 3) + width * classes + classes
    auxiliary = conv(384, 256, 3) + 256 * classes + classes
    with torch.device("meta"):
        head = UPerNet(dims, classes, width, pooling=True)
    assert sum(parameter.numel() for parameter in head.parameters()) == decode + auxiliary
    pools = [module.output_size for module in head.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    assert pools == [1, 2, 3, 6]
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout2d)] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (TASK, {"head": "mlp"}, "head mlp does not suit this task, whose output is per-pixel: choose linear"),
        (TaskSpec("image", 2, (8, 8), 5), {"head": "upernet"}, "choose mlp or linear"),
        (TASK, {"readout": "last"}, "readout last has no meaning"),
    ],
)
def test_a_head_that_does_not_suit_is_refused(task: TaskSpec, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SKELETONS.load("mambaout-nano")(factory(), task, **options)


@pytest.mark.parametrize(("skeleton", "one", "dense"), [("mambaout-pico", "mlp", "upernet")])
def test_the_head_follows_the_task_unless_one_is_named(skeleton: str, one: str, dense: str) -> None:
    component = SKELETONS.parse(skeleton)
    assert option_defaults(component)["head"] == one
    assert option_defaults(component, "per-pixel")["head"] == dense
    named = SKELETONS.parse(f"{skeleton}(head=linear)")
    assert SKELETONS.resolve(named, option_defaults(named, "per-pixel")).options["head"] == "linear"
