"""Every skeleton with several mixers: shapes, options, initialisation, and the block line by line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.interface import MixerFactory, TaskSpec
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.base import read_out
from experiments.skeletons.blocks import PRESETS, GatedBlock, MetaFormerBlock, mixer_slots
from experiments.skeletons.isotropic import resize_positions
from mixers import MIXERS, Component, InputError
from mixers.base import TokenMixer
from mixers.conv import DepthwiseConv
from mixers.identity import Identity

MIXER_NAMES = ["identity", "conv", "causal-conv", "attention"]
ON_IMAGES = [name for name in SKELETONS if name != "causal-lm"]
SMALL = ["mambaout-nano", "mambaout-pico", "isotropic-nano"]
BLOCKS = list(PRESETS)
TASK = TaskSpec(input="image", channels=2, grid=(16, 16), classes=5)
ON_TOKENS = TaskSpec("tokens", 8, (16,), 8, output="per-token")


def factory(name: str = "conv") -> MixerFactory:
    mixer_class = MIXERS.load(name)

    def make(dim: int, *, grid_rank: int, stage: int, layer: int) -> TokenMixer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(layer)
            return mixer_class(dim, grid_rank)

    return make


def build(skeleton: str, mixer: str = "conv", task: TaskSpec = TASK, **options: object) -> nn.Module:
    model = SKELETONS.load(skeleton)(factory(mixer), task, **options)
    model.init_weights(generator_of)
    return model.eval()


def generator_of(parameter: str) -> torch.Generator:
    return torch.Generator().manual_seed(crc32(parameter.encode()))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- every skeleton on images


@pytest.mark.parametrize(("skeleton", "mixer"), [*product(ON_IMAGES, MIXER_NAMES)])
def test_shapes(skeleton, mixer):
    with torch.device("meta"):
        model = SKELETONS.load(skeleton)(factory(mixer), TASK)
        x = torch.zeros(2, 2, 16, 16)
        features = model.forward_features(x)
        assert features.shape[0] == 2
        assert features.ndim == 4
        assert model.forward_head(features).shape == model(x).shape == (2, 5)


@pytest.mark.parametrize(("skeleton", "mixer", "block"), [*product(SMALL, MIXER_NAMES, BLOCKS)])
def test_every_parameter_gets_a_gradient(skeleton, mixer, block):
    model = build(skeleton, mixer, block=block, drop_path=0.1, layer_scale=0.5)
    logits = model.train()(images(4, 2, 16, 16))
    assert logits.isfinite().all()
    logits.square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize(("skeleton", "grid"), [*product(SMALL, [(1, 1), (15, 17), (9, 32)])])
@pytest.mark.parametrize("readout", ["mean", "last", "middle"])
def test_odd_sizes(skeleton, grid, readout):
    task = TaskSpec(input="image", channels=2, grid=grid, classes=5)
    assert build(skeleton, task=task, readout=readout)(images(2, 2, *grid)).isfinite().all()


@pytest.mark.parametrize(("skeleton", "mixer"), [*product(ON_IMAGES, ["conv", "ssm"])])
def test_no_weight_decay_names_parameters(skeleton, mixer):
    with torch.device("meta"):
        model = SKELETONS.load(skeleton)(factory(mixer), TASK)
    names = dict(model.named_parameters())
    exempt = model.no_weight_decay()
    assert exempt <= names.keys()
    assert ("pos_embed" in exempt) == ("pos_embed" in names)
    of_mixers = {f"{slot}.{name}" for slot, held in mixer_slots(model) for name in held.no_weight_decay()}
    assert of_mixers <= exempt
    assert bool(of_mixers) == (mixer == "ssm")


@pytest.mark.parametrize("skeleton", ON_IMAGES)
def test_the_mixers_are_told_where_they_are(skeleton):
    places = []

    def make(dim: int, *, grid_rank: int, stage: int, layer: int) -> nn.Module:
        places.append((stage, layer))
        assert grid_rank == 2
        return Identity(dim, grid_rank)

    size = SKELETONS.load(skeleton)
    with torch.device("meta"):
        size(make, TASK)
    depths = size.depths if hasattr(size, "depths") else [size.depth]
    stages = [stage for stage, depth in enumerate(depths) for _ in range(depth)]
    assert places == [(stage, layer) for layer, stage in enumerate(stages)]


@pytest.mark.parametrize("skeleton", ON_IMAGES)
@pytest.mark.parametrize(
    "task",
    [
        TaskSpec("tokens", 256, (16,), 256, "per-token", causal=True),
        TaskSpec("image", 3, (8, 8), 2, "per-token"),
    ],
)
def test_other_tasks_are_refused(skeleton, task):
    with pytest.raises(InputError, match=r"^this skeleton .* task.*(tokens|per-token)"):
        SKELETONS.load(skeleton)(factory(), task)


class Elements(TorchDispatchMode):
    """Counts the elements that operations return in real memory, and on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.real = self.meta = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.real += 0 if tensor.is_meta else tensor.numel()
                self.meta += tensor.numel() if tensor.is_meta else 0
        return result


@pytest.mark.parametrize("skeleton", [*SKELETONS])
def test_construction_on_meta_allocates_and_draws_nothing(skeleton):
    """What makes a plan cheap, counted: a time would be a matter of the machine."""

    def construct(device: str) -> Elements:
        task = TASK if skeleton in ON_IMAGES else ON_TOKENS
        with torch.device(device), Elements() as elements:
            SKELETONS.load(skeleton)(factory(), task).init_weights(generator_of)
        return elements

    on_meta = construct("meta")
    assert on_meta.meta > 0
    assert on_meta.real == 0
    if skeleton in SMALL:
        assert construct("cpu").real > on_meta.meta, "the count does see memory and what is drawn into it"


def test_importing_the_registry_does_not_import_torch():
    code = "import sys, experiments.skeletons; assert not {'torch', 'timm'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- options


@pytest.mark.parametrize(("skeleton", "block"), [*product(SKELETONS, BLOCKS)])
def test_resolved_options_build_the_same_model_as_options_left_out(skeleton, block):
    left_out = Component(skeleton, {"block": block})
    resolved = SKELETONS.resolve(left_out, option_defaults(left_out))
    may_be_none = {"layer_scale"} | ({"conv_ratio", "gate", "mlp"} - PRESETS[block].keys())
    assert {name for name, value in resolved.options.items() if value is None} == may_be_none
    with torch.device("meta"):
        task = TASK if skeleton in ON_IMAGES else ON_TOKENS
        models = [SKELETONS.load(skeleton)(factory(), task, **c.options) for c in (left_out, resolved)]
    assert str(models[0]) == str(models[1])


def test_options_given_win_over_the_preset():
    given = SKELETONS.parse("mambaout-nano(block=mamba, act=gelu, conv_ratio=0.5, drop_path=0.3)")
    options = SKELETONS.resolve(given, option_defaults(given)).options
    assert (options["act"], options["conv_ratio"], options["drop_path"]) == ("gelu", 0.5, 0.3)
    assert (options["expansion_ratio"], options["bias"]) == (2.0, False)


@pytest.mark.parametrize("skeleton", SMALL)
def test_what_is_switched_off_is_off(skeleton):
    blocks = [
        next(module for module in build(skeleton, **options).modules() if isinstance(module, GatedBlock))
        for options in ({}, {"gate": False, "bias": False})
    ]
    assert [block.fc1.out_features // block.fc2.in_features for block in blocks] == [2, 1]
    assert [block.fc1.bias is None and block.fc2.bias is None for block in blocks] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mambaout-nano(block=gatd)", "block"),
        ("mambaout-nano(expansion_ratio=0)", "expansion_ratio"),
        ("mambaout-nano(drop_path=1)", "drop_path"),
        ("mambaout-nano(patch_size=2)", "no option 'patch_size'"),
        ("isotropic-nano(patch_size=0)", "patch_size"),
        ("mambaout-nao", "did you mean 'mambaout-nano'"),
    ],
)
def test_bad_options_are_refused(text, message):
    def resolve() -> Component:
        component = SKELETONS.parse(text)
        return SKELETONS.resolve(component, option_defaults(component))

    with pytest.raises(InputError, match=message):
        resolve()


@pytest.mark.parametrize("skeleton", SMALL)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expansion_ratio": 0.9}, "hidden channels of"),
        ({"conv_ratio": 3.0}, "hands .* to the mixer"),
        ({"conv_ratio": 0.01}, "hands 0 to the mixer"),
        ({"block": "mamba", "expansion_ratio": 0.001}, "hidden channels of"),
        ({"block": "metaformer", "expansion_ratio": 0.001}, "no hidden channels"),
        ({"block": "metaformer", "conv_ratio": 1.0}, "conv_ratio has no meaning"),
        ({"block": "metaformer", "gate": False}, "gate has no meaning in block metaformer"),
        ({"block": "gated", "mlp": "swiglu"}, "mlp has no meaning in block gated"),
        ({"block": "metaformer", "mlp": "none", "experts": 2}, "has no channel MLP to replace"),
    ],
)
def test_widths_that_do_not_work_out_are_refused(skeleton, options, message):
    with pytest.raises(InputError, match=message), torch.device("meta"):
        SKELETONS.load(skeleton)(factory(), TASK, **options)


# ---- initialisation


@pytest.mark.parametrize(("skeleton", "block"), [*product(SMALL, BLOCKS)])
def test_mixers_are_left_as_they_initialised_themselves(skeleton, block):
    model = SKELETONS.load(skeleton)(factory("ssm"), TASK, block=block)
    model.init_weights(generator_of)
    for layer, (_, mixer) in enumerate(mixer_slots(model)):
        torch.manual_seed(layer)
        alone = type(mixer)(mixer.dim, mixer.grid_rank).state_dict()
        for name, value in mixer.state_dict().items():
            assert torch.equal(value, alone[name]), name


def test_the_mixers_linear_layers_are_drawn_anew_on_request() -> None:
    """As VMamba's released code does to Delta's projection; its bias, and with it the step size, stays."""
    kept, redrawn = (
        initialised(SKELETONS.load("mambaout-nano")(factory("ssm"), TASK, init=init))
        for init in ("fixed", "fixed-all")
    )
    changed = {name for name in kept if not torch.equal(kept[name], redrawn[name])}
    assert {name.rpartition("scans.")[2][2:] for name in changed} == {"x_proj.weight", "dt_proj.weight"}
    for name in changed:
        assert redrawn[name].std().item() == pytest.approx(0.02, rel=0.3), name


def initialised(model: nn.Module, calls: list[str] | None = None) -> dict[str, Tensor]:
    def recorded(name: str) -> torch.Generator:
        if calls is not None:
            calls.append(name)
        return generator_of(name)

    model.init_weights(recorded)
    return model.state_dict()


@pytest.mark.parametrize("skeleton", SMALL)
@pytest.mark.parametrize(
    "other", [{"mixer": "attention"}, {"expansion_ratio": 4.0}, {"conv_ratio": "all"}, {"readout": "last"}]
)
def test_what_two_arms_share_starts_equal(skeleton, other):
    options = {name: value for name, value in other.items() if name != "mixer"}
    first = initialised(SKELETONS.load(skeleton)(factory(), TASK))
    second = initialised(SKELETONS.load(skeleton)(factory(other.get("mixer", "conv")), TASK, **options))
    shared = [
        name
        for name in first.keys() & second.keys()
        if ".mixer." not in name and first[name].shape == second[name].shape
    ]
    assert any(name.startswith("head.") for name in shared)
    for name in shared:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("skeleton", SMALL)
@pytest.mark.parametrize("init", ["fixed", "fan-in", "fixed-all"])
def test_distribution_of_the_initial_weights(skeleton, init):
    calls: list[str] = []
    model = SKELETONS.load(skeleton)(factory("identity"), TASK, layer_scale=0.25, init=init)
    weights = initialised(model, calls)
    for name, value in weights.items():
        if "norm" in name and name.endswith("weight"):
            assert torch.equal(value, torch.ones_like(value))
        elif name.endswith("gamma"):
            assert torch.equal(value, torch.full_like(value, 0.25))
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert name in calls
            fan_in = 0.5 if name == "pos_embed" else value[0].numel() ** -0.5
            expected = fan_in if init == "fan-in" else 0.02
            assert value.std().item() == pytest.approx(expected, rel=0.3), name
    assert len(calls) == len(set(calls))


def test_initialisation_does_nothing_on_meta():
    with torch.device("meta"):
        model = SKELETONS.load("isotropic-nano")(factory(), TASK)
    model.init_weights(lambda name: pytest.fail(f"asked for {name}"))


# ---- readout, positions, patches


def test_readouts():
    tokens = torch.arange(10.0).view(1, 5, 2)
    assert read_out(tokens, "mean").tolist() == [[4.0, 5.0]]
    assert read_out(tokens, "last").tolist() == [[8.0, 9.0]]
    assert read_out(tokens, "middle").tolist() == [[4.0, 5.0]]
    assert read_out(tokens[:, :4], "middle").tolist() == [[4.0, 5.0]]
    assert read_out(tokens[:, :1], "middle").tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(("readout", "token"), [("last", (1, 2)), ("middle", (1, 0))])
def test_the_head_looks_at_one_token(readout, token):
    head = build("isotropic-nano", readout=readout).head
    features = images(1, 2, 3, 32).requires_grad_()
    head(features).sum().backward()
    assert features.grad is not None
    seen = features.grad.abs().sum(-1)[0] > 0
    assert seen.nonzero().tolist() == [list(token)]


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_heads_line_by_line(head):
    model = build("isotropic-nano", head=head)
    features = images(2, 3, 4, 32)
    p = dict(model.head.named_parameters())
    x = F.layer_norm(features.mean((1, 2)), (32,), p["norm.weight"], p["norm.bias"], 1e-6)
    if head == "mlp":
        x = F.gelu(x @ p["pre_logits.fc.weight"].T + p["pre_logits.fc.bias"])
        x = F.layer_norm(x, (128,), p["pre_logits.norm.weight"], p["pre_logits.norm.bias"], 1e-6)
    torch.testing.assert_close(model.forward_head(features), x @ p["fc.weight"].T + p["fc.bias"])


def test_patches_and_positions_line_by_line():
    model = build("isotropic-nano", "identity", patch_size=4)
    x = images(1, 2, 16, 16)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model(x)
    patch = x[0, :, 4:8, 8:12].flatten()  # row 1, column 2
    expected = model.patch_embed.weight.flatten(1) @ patch + model.patch_embed.bias + model.pos_embed[1, 2]
    torch.testing.assert_close(seen[0][0, 1, 2], expected)


def test_positions_are_resized_to_other_images():
    model = build("isotropic-nano")
    assert model(images(1, 2, 20, 31)).isfinite().all()
    constant = torch.ones(4, 5, 3)
    torch.testing.assert_close(resize_positions(constant, 7, 2), torch.ones(7, 2, 3))
    assert resize_positions(constant, 4, 5) is constant


@pytest.mark.parametrize("size", [(7, 2), (9, 11), (2, 3)])
def test_positions_are_resized_as_timm_does(size):
    positions = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    theirs = resample_abs_pos_embed(
        positions.reshape(1, 20, 3), new_size=[*size], old_size=[4, 5], num_prefix_tokens=0
    )
    torch.testing.assert_close(resize_positions(positions, *size), theirs.view(*size, 3))


def test_images_are_padded_at_the_right_and_at_the_bottom():
    """And each patch has a position of its own, the padded ones too."""
    task = TaskSpec(input="image", channels=2, grid=(6, 9), classes=5)
    model = SKELETONS.load("isotropic-nano")(factory("identity"), task, patch_size=4)
    image = images(1, 2, *task.grid)
    padded = F.pad(image, (0, 3, 0, 2))
    tokens = model.patch_embed(image)
    assert torch.equal(tokens, model.patch_embed(padded))
    assert model.pos_embed.shape == tokens.shape[1:] == (2, 3, model.dim)


def test_without_positions_a_skeleton_of_pointwise_mixers_ignores_the_order():
    model = build("isotropic-nano", "identity", position="none", patch_size=1)
    x = images(1, 2, 4, 4)
    torch.testing.assert_close(model(x), model(x.flip(2).transpose(2, 3)), rtol=1e-4, atol=1e-6)
    learned = build("isotropic-nano", "identity", position="learned", patch_size=1)
    assert not torch.allclose(learned(x), learned(x.flip(2).transpose(2, 3)))


# ---- blocks line by line


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module.double()


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias


@pytest.mark.parametrize("grid", [(7,), (5, 6)])
@pytest.mark.parametrize(
    ("preset", "dim", "hidden", "mixed"), [("gated", 6, 16, 6), ("mamba", 6, 12, 12), ("gated", 7, 18, 7)]
)
def test_gated_block_line_by_line(preset, dim, hidden, mixed, grid):
    def make(channels: int) -> nn.Module:
        assert channels == mixed
        return DepthwiseConv(channels, len(grid), kernel_size=3)

    block = randomised(GatedBlock(dim, make, **PRESETS[preset], layer_scale=0.1))
    act: Callable[[Tensor], Tensor] = F.silu if preset == "mamba" else F.gelu
    x = images(2, *grid, dim).double()
    g, i, v = linear(norm(x, block.norm), block.fc1).split((hidden, hidden - mixed, mixed), dim=-1)
    y = linear(act(g) * torch.cat((i, block.mixer(v)), dim=-1), block.fc2)
    torch.testing.assert_close(block(x), x + block.residual.layer_scale.gamma * y)
    assert (block.fc1.bias is None) == (preset == "mamba")


@pytest.mark.parametrize("grid", [(7,), (5, 6)])
def test_metaformer_block_line_by_line(grid):
    options = {name: value for name, value in PRESETS["metaformer"].items() if name != "conv_ratio"}
    mixer = DepthwiseConv(6, len(grid), kernel_size=3)
    block = randomised(MetaFormerBlock(6, lambda channels: mixer, **options, layer_scale=0.1))
    x = images(2, *grid, 6).double()
    y = x + block.residual1.layer_scale.gamma * block.mixer(norm(x, block.norm1))
    mlp = linear(F.gelu(linear(norm(y, block.norm2), block.mlp.fc1)), block.mlp.fc2)
    torch.testing.assert_close(block(x), y + block.residual2.layer_scale.gamma * mlp)
    assert block.mlp.fc1.out_features == 24


def test_drop_path_drops_whole_branches():
    block = GatedBlock(6, lambda channels: DepthwiseConv(channels, 2), drop_path=0.5).train()
    x = images(64, 3, 3, 6)
    torch.manual_seed(0)
    dropped = (block(x) == x).flatten(1).all(1)
    assert 16 < dropped.sum() < 48


@pytest.mark.parametrize("skeleton", ON_IMAGES)
@pytest.mark.parametrize("asked", [None, 0.0, 0.3])
def test_drop_path_is_what_was_asked_for_and_none_is_none(skeleton, asked):
    size = SKELETONS.load(skeleton)
    with torch.device("meta"):
        model = size(factory("identity"), TASK, drop_path=asked)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    last = size.drop_path_rate if asked is None else asked
    assert rates == sorted(rates)
    assert max(rates, default=0.0) == pytest.approx(last)


# ---- switches of the blocks


def test_a_gated_block_without_its_gate():
    block = randomised(GatedBlock(6, lambda dim: DepthwiseConv(dim, 2), gate=False))
    x = images(2, 5, 4, 6).double()
    hidden = block.fc1(block.norm(x))
    i, v = hidden[..., :-6], hidden[..., -6:]
    expected = x + block.fc2(torch.cat([F.gelu(i), F.gelu(block.mixer(v))], dim=-1))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("act", "expected"), [(None, nn.SiLU), ("gelu", nn.GELU)])
def test_a_swiglu_has_silu_unless_told_otherwise(act, expected):
    """On record as in the model."""
    given = Component(
        "isotropic-nano", {"block": "metaformer", "mlp": "swiglu"} | ({"act": act} if act else {})
    )
    resolved = SKELETONS.resolve(given, option_defaults(given))
    assert resolved.options["act"] == (act or "silu")
    for options in (given.options, resolved.options):
        model = SKELETONS.load(given.name)(factory(), TASK, **options)
        assert type(model.blocks[0].mlp.act) is expected
    plain = Component("isotropic-nano", {"block": "metaformer"})
    assert SKELETONS.resolve(plain, option_defaults(plain)).options["act"] == "gelu"


def test_the_channel_mlp_is_a_switch():
    plain, swiglu, none = (
        randomised(MetaFormerBlock(6, lambda dim: Identity(dim, 2), mlp=mlp))
        for mlp in ("plain", "swiglu", "none")
    )
    x = images(2, 5, 4, 6).double()
    mixed = x + plain.norm1(x)
    z = plain.norm2(mixed)
    torch.testing.assert_close(plain(x), mixed + plain.mlp.fc2(F.gelu(plain.mlp.fc1(z))))
    mixed = x + swiglu.norm1(x)
    z, mlp = swiglu.norm2(mixed), swiglu.mlp
    torch.testing.assert_close(swiglu(x), mixed + mlp.fc2(F.gelu(mlp.fc1_g(z)) * mlp.fc1_x(z)))
    torch.testing.assert_close(none(x), x + none.norm1(x))
