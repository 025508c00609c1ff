"""The mixture of experts: against the dense mixture, its routing, its loss, its costs, its options."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.build import build_model, count_costs
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.base import Skeleton
from experiments.skeletons.blocks import Block
from experiments.skeletons.moe import ExpertOptions, MixtureOfExperts, count_choices, load_balancing
from experiments.store import Store, TrialFolder
from experiments.train import run_trial
from experiments.trial import Trial
from mixers import InputError
from mixers.registry import Component

MakeTrial = Callable[..., Trial]

DIM, HIDDEN, DEPTH, TOKENS = 32, 128, 4, 16  # isotropic-nano(block=metaformer) on 8 x 8 pixels
MLP = 2 * DIM * HIDDEN  # MACs per token


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mixture(experts: int, per_token: int, balance: float = 0.01, dim: int = 6) -> MixtureOfExperts:
    """In float64, with every parameter drawn."""
    layer = MixtureOfExperts(
        dim, lambda: Mlp(dim, 3 * dim), ExpertOptions(experts, per_token, balance=balance)
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7, generator=generator)
    return layer.double()


def metaformer(**options: object) -> str:
    return str(Component("isotropic-nano", {"block": "metaformer", **options}))


def mlps(model: nn.Module) -> list[nn.Module]:
    return [module.get_submodule("mlp") for module in model.modules() if isinstance(module, Block)]


# ---- one expert is the plain MLP


@pytest.mark.parametrize("skeleton", ["isotropic-nano", "mambaout-nano"])
def test_one_expert_is_the_plain_mlp(tiny_trial: MakeTrial, skeleton: str) -> None:
    left_out, one = (
        build_model(tiny_trial(skeleton=f"{skeleton}(block=metaformer{more})"))
        for more in ("", ", experts=1")
    )
    assert all(type(mlp) is Mlp for mlp in mlps(one))
    assert {name for name, _ in mlps(one)[0].named_parameters()} == {
        f"{layer}.{parameter}" for layer in ("fc1", "fc2") for parameter in ("weight", "bias")
    }
    assert str(left_out) == str(one)
    first, second = left_out.state_dict(), one.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    x = images(3, 1, 8, 8)
    assert torch.equal(left_out(x), one(x))
    assert one.train()(x).isfinite().all()
    assert one.auxiliary_loss() == 0.0
    assert isinstance(one.auxiliary_loss(), float)


# ---- routing


@pytest.mark.parametrize("grid", [(7,), (3, 5)])
def test_all_experts_are_the_dense_mixture(grid: tuple[int, ...]) -> None:
    layer = mixture(experts=3, per_token=3)
    x = images(2, *grid, 6).double()
    scores = (x @ layer.router.weight.T).exp()
    weights = scores / scores.sum(-1, keepdim=True)
    expected = torch.zeros_like(x)
    for index, expert in enumerate(layer.experts):
        hidden = F.gelu(x @ expert.fc1.weight.T + expert.fc1.bias)
        expected += weights[..., index, None] * (hidden @ expert.fc2.weight.T + expert.fc2.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("per_token", [1, 2, 3])
def test_each_token_goes_to_its_likeliest_experts(per_token: int) -> None:
    layer = mixture(experts=4, per_token=per_token)
    x = images(2, 3, 5, 6).double()
    y = layer(x)
    for place in [(0, 0, 0), (1, 2, 4), (0, 1, 3), (1, 0, 1)]:
        probabilities = layer.router(x[place]).softmax(-1)
        best = sorted(range(4), key=lambda e: -probabilities[e])[:per_token]
        expected = sum(probabilities[e] * layer.experts[e](x[place]) for e in best)
        torch.testing.assert_close(y[place], expected)


def test_a_token_does_not_depend_on_the_others() -> None:
    """No capacity that others could use up: a causal model stays causal."""
    layer = mixture(experts=4, per_token=2)
    x = images(1, 9, 6).double()
    torch.testing.assert_close(layer(x)[:, 4:5], layer(x[:, 4:5]))


def test_the_layout_in_memory_does_not_matter() -> None:
    layer = mixture(experts=4, per_token=2)
    x = images(2, 6, 3, 5).double().permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_same_input_same_bits() -> None:
    layer = mixture(experts=5, per_token=2).float()
    gradients = []
    for _ in range(2):
        x = images(4, 50, 6).requires_grad_()
        (layer(x).square().sum() + layer.balance_loss).backward()
        gradients.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
        layer.zero_grad()
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("per_token", [1, 2])
def test_gradients_reach_the_router_and_the_used_experts(per_token: int) -> None:
    layer = mixture(experts=4, per_token=per_token, balance=0.0)
    nn.init.eye_(layer.router.weight)
    x = torch.eye(6, dtype=torch.float64)[None, :2]  # token 0 likes expert 0, token 1 likes expert 1
    layer(x).square().sum().backward()
    assert layer.router.weight.grad.any()
    if per_token == 1:
        used = [all(p.grad.any() for p in expert.parameters()) for expert in layer.experts]
        assert used == [True, True, False, False]
    assert all(parameter.grad is not None for parameter in layer.parameters()), "zeros where unused"


def test_gradients_by_finite_differences() -> None:
    layer = mixture(experts=3, per_token=2)
    x = images(1, 4, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (layer(x), layer.balance_loss), (x,))


# ---- balance


def test_the_balance_loss_is_alpha_at_uniform_routing_and_more_when_collapsed() -> None:
    layer = mixture(experts=4, per_token=1, balance=0.3)
    x = torch.eye(6, dtype=torch.float64)[None, :4]
    nn.init.zeros_(layer.router.weight)
    layer(x)
    assert layer.balance_loss.item() == pytest.approx(0.3)
    nn.init.eye_(layer.router.weight)  # one token for each expert
    layer(x)
    assert layer.balance_loss.item() == pytest.approx(0.3)
    with torch.no_grad():
        layer.router.weight[0] = 50  # all of them for the first
    layer(x)
    assert layer.balance_loss.item() == pytest.approx(0.3 * 4)


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_the_balance_loss_line_by_line(per_token: int) -> None:
    probabilities = images(50, 4).double().softmax(-1)
    chosen = probabilities.topk(per_token).indices
    expected = 0.0
    for expert in range(4):
        f = sum(expert in row for row in chosen.tolist()) / (50 * per_token)
        expected += 4 * f * probabilities[:, expert].mean().item()
    assert load_balancing(probabilities, count_choices(chosen, 4)).item() == pytest.approx(expected)


def test_descending_the_balance_loss_spreads_the_tokens() -> None:
    layer = mixture(experts=4, per_token=1, balance=1.0)
    x = images(1, 64, 6).double() + 1
    with torch.no_grad():
        layer.router.weight[0] += 2
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    losses = []
    for _ in range(100):
        layer(x)
        losses.append(layer.balance_loss.item())
        optimizer.zero_grad()
        layer.balance_loss.backward()
        optimizer.step()
    assert losses[0] > 3
    assert losses[-1] < 1.1


def test_the_auxiliary_loss_is_the_sum_over_the_layers_of_the_last_training_pass(
    tiny_trial: MakeTrial,
) -> None:
    model = build_model(tiny_trial(skeleton=metaformer(experts=4, balance=0.5)))
    assert model.auxiliary_loss() == 0.0
    x = images(3, 1, 8, 8)
    model.train()(x)
    expected = torch.stack([mlp.balance_loss for mlp in mlps(model)]).sum()
    loss = model.auxiliary_loss()
    torch.testing.assert_close(loss, expected)
    assert model.auxiliary_loss() == 0.0, "it is handed over once"
    assert loss.item() >= DEPTH * 0.5 * 0.9
    loss.backward()
    assert all(mlp.router.weight.grad.any() for mlp in mlps(model))
    model.eval()(x)
    assert model.auxiliary_loss() == 0.0


def test_a_layer_that_was_trained_can_be_copied() -> None:
    layer = mixture(experts=3, per_token=1)
    x = images(2, 5, 6).double()
    y = layer(x)
    copied = copy.deepcopy(layer)
    assert copied.balance_loss == 0.0
    assert layer.balance_loss.item() > 0, "the original keeps its own"
    assert torch.equal(copied(x), y)


def test_no_tokens_need_no_balance() -> None:
    layer = mixture(experts=3, per_token=1)
    y = layer(torch.zeros(0, 5, 6, dtype=torch.float64))
    (y.sum() + layer.balance_loss).backward()
    assert layer.balance_loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in layer.parameters())


def curve(trial: Trial, folder: TrialFolder) -> list[dict[str, float]]:
    run_trial(trial, folder, Runtime())
    names, *rows = (line.split(",") for line in folder.curve.read_text().splitlines())
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def test_the_auxiliary_loss_enters_the_training_loss(
    tiny_trial: MakeTrial, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial(skeleton=metaformer(experts=4), epochs=1, warmup_epochs=0)
    plain = curve(trial, Store(tmp_path / "plain").folder(trial.id))
    heavy = tiny_trial(skeleton=metaformer(experts=4, balance=10.0), epochs=1, warmup_epochs=0)
    pulled = curve(heavy, Store(tmp_path / "heavy").folder(heavy.id))
    assert pulled[0]["validation_loss"] != plain[0]["validation_loss"], "its gradient counts"
    original = Skeleton.auxiliary_loss
    monkeypatch.setattr(Skeleton, "auxiliary_loss", lambda model: original(model) + 1000.0)
    raised = curve(trial, Store(tmp_path / "raised").folder(trial.id))
    assert raised[0]["train_loss"] - plain[0]["train_loss"] == pytest.approx(1000, abs=0.01)
    assert raised[0]["validation_loss"] == pytest.approx(plain[0]["validation_loss"], rel=1e-3)


def test_a_trial_repeats_its_bits(tiny_trial: MakeTrial, tmp_path) -> None:
    trial = tiny_trial(skeleton=metaformer(experts=3, experts_per_token=2), epochs=1, warmup_epochs=0)
    one, two = (curve(trial, Store(tmp_path / name).folder(trial.id)) for name in "ab")
    assert one == two


# ---- costs


@pytest.mark.parametrize(("experts", "per_token", "every"), [(4, 1, 1), (4, 2, 1), (16, 2, 2), (3, 3, 4)])
def test_costs_in_closed_form(tiny_trial: MakeTrial, experts: int, per_token: int, every: int) -> None:
    options = {"experts": experts, "experts_per_token": per_token, "moe_every": every}
    trial = tiny_trial(skeleton=metaformer(**options))
    plain, routed = count_costs(tiny_trial(skeleton=metaformer())), count_costs(trial)
    layers = DEPTH // every
    router = DIM * experts
    assert routed.params - plain.params == layers * (router + (experts - 1) * (MLP + HIDDEN + DIM))
    assert routed.macs - plain.macs == layers * TOKENS * (router + (per_token - 1) * MLP)
    assert routed.macs_mixer == plain.macs_mixer


@pytest.mark.parametrize("per_token", [1, 2])
def test_meta_counts_what_routed_tokens_cost(per_token: int) -> None:
    def macs(layer: nn.Module, x: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            assert layer(x).shape == x.shape
        return counter.get_total_flops() // 2

    layer, x = mixture(experts=5, per_token=per_token), images(2, 3, 5, 6).double()
    counted = macs(layer, x)
    assert counted == 30 * (6 * 5 + per_token * 2 * 6 * 18)
    assert macs(layer.to("meta"), x.to("meta")) == counted
    assert layer.balance_loss.is_meta


# ---- options


@pytest.mark.parametrize(
    ("skeleton", "every", "where"),
    [
        ("isotropic-nano", 1, [0, 1, 2, 3]),
        ("isotropic-nano", 2, [1, 3]),
        ("isotropic-nano", 3, [2]),
        ("mambaout-nano", 2, [1, 3, 5]),
    ],
)
def test_which_blocks_have_experts(
    tiny_trial: MakeTrial, skeleton: str, every: int, where: list[int]
) -> None:
    model = build_model(tiny_trial(skeleton=f"{skeleton}(block=metaformer, experts=2, moe_every={every})"))
    found = [index for index, mlp in enumerate(mlps(model)) if isinstance(mlp, MixtureOfExperts)]
    assert found == where


def test_options_resolve_and_their_text_reads_back(tiny_trial: MakeTrial) -> None:
    text = metaformer(experts=16, experts_per_token=2, moe_every=2, balance=0.001)
    given = SKELETONS.parse(text)
    resolved = SKELETONS.resolve(given, option_defaults(given))
    again = SKELETONS.parse(str(resolved))
    assert SKELETONS.resolve(again, option_defaults(again)) == resolved
    assert [resolved.options[name] for name in ("experts", "experts_per_token", "moe_every", "balance")] == [
        16, 2, 2, 0.001,
    ]  # fmt: skip
    left_out = tiny_trial().skeleton.options
    assert (left_out["experts"], left_out["experts_per_token"]) == (1, 1)
    assert (left_out["moe_every"], left_out["balance"]) == (1, 0.01)
    trial = tiny_trial(skeleton=text)
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial


@pytest.mark.parametrize("block", ["gated", "mamba"])
@pytest.mark.parametrize("option", ["experts=2", "experts=2, experts_per_token=2", "experts=4, moe_every=2"])
def test_gated_blocks_refuse_experts(tiny_trial: MakeTrial, block: str, option: str) -> None:
    with pytest.raises(InputError, match=rf"no meaning in a block {block}: it has no channel MLP"):
        count_costs(tiny_trial(skeleton=f"isotropic-nano(block={block}, {option})"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("experts=2, experts_per_token=3", "experts_per_token 3 is more than there are: experts 2"),
        ("experts_per_token=2", "experts_per_token 2 is more than there are: experts 1"),
        ("moe_every=2", "no meaning with experts 1"),
        ("balance=0.1", "no meaning with experts 1"),
        ("experts=2, moe_every=5", "leaves none of 4 blocks"),
        ("experts=0", "experts"),
        ("experts=2, moe_every=0", "moe_every"),
        ("experts=2, balance=-1", "balance"),
        ("expert=2", "did you mean 'experts'"),
    ],
)
def test_bad_options_are_refused(tiny_trial: MakeTrial, options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        count_costs(tiny_trial(skeleton=f"isotropic-nano(block=metaformer, {options})"))


# ---- initialisation


def test_experts_start_differently_and_everything_else_as_without_them(tiny_trial: MakeTrial) -> None:
    plain, routed = (
        dict(build_model(tiny_trial(skeleton=metaformer(**options))).named_parameters())
        for options in ({}, {"experts": 3, "moe_every": 2})
    )
    drawn = [routed[f"blocks.{layer}.mlp.experts.{e}.fc1.weight"] for layer in (1, 3) for e in range(3)]
    assert all(not torch.equal(one, two) for i, one in enumerate(drawn) for two in drawn[:i])
    assert routed["blocks.1.mlp.router.weight"].std().item() == pytest.approx(DIM**-0.5, rel=0.3)
    shared = plain.keys() & routed.keys()
    assert {"blocks.0.mlp.fc1.weight", "blocks.2.mlp.fc2.bias", "head.fc.weight"} <= shared
    assert all(torch.equal(plain[name], routed[name]) for name in shared)
