"""The skeleton on tokens: one token at a time gives what all at once give, and nobody sees the future."""

from __future__ import annotations

from itertools import product
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor

from experiments.interface import Output, TaskSpec
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.blocks import PRESETS
from experiments.skeletons.causal_lm import CausalLM, sinusoidal
from experiments.skeletons.moe import MixtureOfExperts
from mixers import MIXERS, InputError
from mixers.base import TokenMixer

VOCABULARY, LENGTH = 11, 9
PER_TOKEN = TaskSpec("tokens", VOCABULARY, (LENGTH,), VOCABULARY, output="per-token", causal=True)
ONE = TaskSpec("tokens", VOCABULARY, (LENGTH,), 3, causal=True)


def on_a_sequence(name: str) -> TokenMixer:
    mixer_class = MIXERS.load(name)
    mixer: TokenMixer = mixer_class(8, 1, **mixer_class.place_defaults(1, True))
    return mixer


CAUSAL = [name for name in MIXERS if 1 in MIXERS.load(name).grid_ranks and on_a_sequence(name).causal]
RECURRENT = [name for name in CAUSAL if on_a_sequence(name).state_size(2) is not None]


def build(mixers: str, task: TaskSpec = PER_TOKEN, **options: object) -> CausalLM:
    pattern = MIXERS.parse_pattern(mixers)

    def make(dim: int, *, grid_rank: int, stage: int, layer: int) -> torch.nn.Module:
        chosen = pattern[layer % len(pattern)]
        torch.manual_seed(layer)
        resolved = MIXERS.resolve(chosen, MIXERS.load(chosen.name).place_defaults(grid_rank, task.causal))
        return MIXERS.load(chosen.name)(dim, grid_rank, **resolved.options)

    model = CausalLM(make, task, **{"dim": 8, "depth": 2, **options})
    model.init_weights(lambda name: torch.Generator().manual_seed(crc32(name.encode())))
    return model.eval()


def ids(batch: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))


def decoded(model: CausalLM, tokens: Tensor) -> Tensor:
    """(B, L) -> (B, L, classes), one token at a time."""
    state = model.init_state(len(tokens))
    outputs = []
    for token in tokens.unbind(1):
        logits, state = model.step(token, state)
        outputs.append(logits)
    return torch.stack(outputs, dim=1)


def test_there_are_recurrent_mixers() -> None:
    assert {"ssm", "ssd", "s4d", "gru", "causal-attention", "causal-conv", "identity"} <= set(RECURRENT)


@pytest.mark.parametrize(("mixer", "block"), [*product(RECURRENT, PRESETS)])
@torch.inference_mode()
def test_decoding_gives_what_reading_all_at_once_gives(mixer: str, block: str) -> None:
    model = build(mixer, block=block, position="sinusoidal", init="fan-in")
    torch.testing.assert_close(decoded(model, ids()), model(ids()), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal"])
@torch.inference_mode()
def test_decoding_knows_its_position(position: str) -> None:
    model = build("causal-attention(head_dim=4)", position=position, init="fan-in")
    torch.testing.assert_close(decoded(model, ids()), model(ids()), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("mixer", CAUSAL)
def test_no_token_sees_the_future(mixer: str) -> None:
    model = build(mixer, block="metaformer", mlp="swiglu", init="fan-in")
    one, other = ids(), ids()
    other[:, 5:] = (other[:, 5:] + 1) % VOCABULARY
    with torch.inference_mode():
        before, after = model(one), model(other)
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=1e-5)
    assert (before[:, 5:] - after[:, 5:]).abs().amax() > 1e-3


@torch.inference_mode()
def test_patterns_and_experts() -> None:
    model = build(
        "ssm,ssm,ssm,causal-attention(head_dim=4)", depth=8, block="metaformer", experts=4, moe_every=2
    )
    kinds = [type(block.mixer).__name__ for block in model.blocks]
    assert kinds == ["SelectiveSSM", "SelectiveSSM", "SelectiveSSM", "CausalAttention"] * 2
    torch.testing.assert_close(decoded(model, ids()), model(ids()), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(
    ("mixers", "options"),
    [
        ("mamba*3,causal-attention(head_dim=4),mamba*4", {"experts_per_token": 2, "moe_every": 2}),
        ("mamba", {}),
    ],
    ids=["jamba", "moe-mamba"],
)
def test_hybrids_of_mamba(mixers: str, options: dict[str, int]) -> None:
    """Jamba's 7 Mamba layers to 1 of attention, experts in every other; MoE-Mamba, with experts in all."""
    model = build(mixers, depth=8, block="metaformer", experts=4, **options).train()
    kinds = [type(block.mixer).__name__ for block in model.blocks]
    assert kinds.count("Mamba") == (7 if "attention" in mixers else 8)
    has_experts = [isinstance(block.mlp, MixtureOfExperts) for block in model.blocks]
    assert has_experts == ([False, True] * 4 if options else [True] * 8)
    logits = model(ids())
    loss = F.cross_entropy(logits.flatten(0, 1), ids().roll(-1, 1).flatten()) + model.auxiliary_loss()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(block.mixer.in_proj.weight.grad.any() for block in model.blocks if hasattr(block.mixer, "ssm"))
    with torch.inference_mode():
        torch.testing.assert_close(decoded(model.eval(), ids()), model(ids()), atol=2e-5, rtol=2e-4)


@torch.inference_mode()
def test_one_answer_is_that_of_the_last_token() -> None:
    per_token = build(
        "ssm", task=TaskSpec("tokens", VOCABULARY, (LENGTH,), 3, output="per-token", causal=True)
    )
    one = build("ssm", task=ONE)
    one.load_state_dict(per_token.state_dict())
    torch.testing.assert_close(one(ids()), per_token(ids())[:, -1])
    torch.testing.assert_close(decoded(one, ids())[:, -1], one(ids()), atol=1e-5, rtol=1e-4)


def test_the_head_is_tied_where_it_can_be() -> None:
    model = build("ssm")
    assert model.fc.weight is model.embed.weight
    untied = build("ssm", tied=False)
    assert untied.fc.weight is not untied.embed.weight
    assert untied.fc.weight.shape == untied.embed.weight.shape
    assert build("ssm", task=ONE).fc.weight.shape == (3, 8)
    assert model.fc.bias is None, "the embedding has none"


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal"])
@torch.inference_mode()
def test_without_positions_equal_tokens_are_equal(position: str) -> None:
    """Where the mixer knows no order, a place can be told by its position only."""
    logits = build("identity", position=position, init="fan-in")(torch.full((1, LENGTH), 3))
    assert torch.equal(logits[:, :1].expand_as(logits), logits) == (position == "none")


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal"])
def test_learned_positions_do_not_decay(position: str) -> None:
    """Nor does what a mixer names, and everything else does."""
    model = build("ssm,conv", position=position)
    exempt = model.no_weight_decay()
    of_mixers = {name for name in exempt if ".mixer." in name}
    assert of_mixers
    assert all(name.startswith("blocks.0.") for name in of_mixers)
    assert exempt - of_mixers == ({"pos_embed"} if position == "learned" else set())


@pytest.mark.parametrize(("init", "std"), [(None, 0.02), ("fixed", 0.02), ("fan-in", 256**-0.5)])
def test_tokens_and_positions_start_at_one_scale(init: str | None, std: float) -> None:
    model = build("identity", position="learned", init=init, dim=256)
    assert model.pos_embed is not None
    for weight in (model.embed.weight, model.pos_embed):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_embeddings_are_dropped_in_training_only() -> None:
    model = build("identity", embed_drop=0.5, dim=64)
    seen: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda block, given, output: seen.append(given[0]))
    for training in (True, False):
        model.train(training)(ids())
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(seen[1], model.embed(ids()))


def test_the_rate_of_stochastic_depth_grows_from_the_first_block_to_the_last() -> None:
    model = build("identity", depth=3, drop_path=0.4)
    rates = [[m.drop_prob for m in block.modules() if isinstance(m, DropPath)] for block in model.blocks]
    assert rates == [[], [0.2], [0.4]]


def test_learned_positions_end_and_others_do_not() -> None:
    with torch.inference_mode():
        for position in ("none", "sinusoidal"):
            assert build("ssm", position=position)(ids(length=30)).shape == (3, 30, VOCABULARY)
        with pytest.raises(InputError, match="learned 9 positions, 30 tokens came"):
            build("ssm", position="learned")(ids(length=30))
        with pytest.raises(InputError, match="learned 9 positions, 10 tokens came"):
            decoded(build("ssm", position="learned"), ids(length=10))


def test_sines_and_cosines() -> None:
    like = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    waves = sinusoidal(3, 4, like) / (like.std() * 2**0.5)
    for row, position in enumerate(range(3, 7)):
        for pair in range(3):
            angle = torch.tensor(position / 10_000 ** (2 * pair / 6))
            torch.testing.assert_close(waves[row, 2 * pair], angle.sin())
            torch.testing.assert_close(waves[row, 2 * pair + 1], angle.cos())
    odd = like[:, :5]  # the last sine is without its cosine
    angle = torch.tensor(3 / 10_000 ** (4 / 5))
    torch.testing.assert_close((sinusoidal(3, 1, odd) / (odd.std() * 2**0.5))[0, 4], angle.sin())


def test_positions_are_of_the_type_of_the_embedding() -> None:
    model = build("causal-attention(head_dim=4)", position="sinusoidal").to(torch.bfloat16)
    with torch.inference_mode():
        assert model(ids()).dtype == torch.bfloat16


@pytest.mark.parametrize("output", ["per-pixel", "instances"])
def test_other_answers_are_refused(output: Output) -> None:
    with pytest.raises(InputError, match=f"answers one or per-token, but the task asks for '{output}'"):
        build("ssm", task=TaskSpec("tokens", VOCABULARY, (LENGTH,), 3, output=output))


def test_every_parameter_gets_a_gradient() -> None:
    model = build("ssm", block="metaformer", position="learned").train()
    model(ids()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(InputError, match="causal-lm reads tokens"):
        build("ssm", task=TaskSpec("image", 1, (4, 4), 3))
    with pytest.raises(TypeError, match="readout mean needs all tokens"):
        build("ssm", task=ONE, readout="mean").init_state(1)
    component = SKELETONS.parse("causal-lm(head=mlp)")
    with pytest.raises(InputError, match="no option 'head'"):
        SKELETONS.resolve(component, option_defaults(component))
