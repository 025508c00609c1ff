"""Attention and its relatives: softmax, window, linear, gated linear; with rotary positions and without."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope, RotaryEmbeddingCat
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mixers import MIXERS
from mixers.attention import Attention, CausalAttention, attend_last
from mixers.base import TokenMixer, as_sequence
from mixers.conv import DepthwiseConv
from mixers.gated_linear_attention import GatedLinearAttention
from mixers.heads import MultiHeadMixer
from mixers.linear_attention import CausalLinearAttention, LinearAttention, elu_plus_one, linear_attention
from mixers.linear_recurrence import linear_recurrence, linear_recurrence_step
from mixers.mila import MILAAttention
from mixers.rope import check_rope, rotary_angles, rotate
from mixers.window_attention import WindowAttention

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
GRIDS = [(12,), (3, 5)]
ROPE = [False, True]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], TokenMixer]) -> TokenMixer:
    torch.manual_seed(0)
    return make().double()


def copied(source: TokenMixer, target: TokenMixer) -> TokenMixer:
    target.double().load_state_dict(source.state_dict())
    return target


def softmax_attention(mixer: MultiHeadMixer, x: Tensor) -> Tensor:
    """The definition, with the mixer's weights and its dependency mask."""
    grid = x.shape[1:-1]
    q, k, v = mixer.split_heads(x)
    scores = mixer.turn(q, grid) @ mixer.turn(k, grid).mT / math.sqrt(mixer.head_dim)
    weights = scores.masked_fill(~mixer.dependency_mask(grid), -torch.inf).softmax(-1)
    return mixer.merge_heads(weights @ v).view(x.shape)


# ---- rotary positions


@pytest.mark.parametrize("grid", GRIDS)
def test_rope_scores_depend_on_offsets_alone(grid: tuple[int, ...]) -> None:
    """One query and one key at every pair of places: equal scores at equal offsets, and others at others."""
    q, k = normal(2, 16)
    angles = rotary_angles(grid, 16, dtype=torch.float64)
    length = math.prod(grid)
    scores = rotate(q.expand(length, 16), angles) @ rotate(k.expand(length, 16), angles).T
    places = torch.cartesian_prod(*[torch.arange(size) for size in grid]).view(length, -1)
    by_offset: dict[tuple[int, ...], list[float]] = {}
    for i, j in product(range(length), repeat=2):
        by_offset.setdefault(tuple((places[j] - places[i]).tolist()), []).append(scores[i, j].item())
    assert all(max(group) - min(group) < 1e-12 for group in by_offset.values())
    firsts = sorted(group[0] for group in by_offset.values())
    assert min(b - a for a, b in pairwise(firsts)) > 1e-6


@pytest.mark.parametrize("grid", GRIDS)
def test_rope_keeps_lengths_and_leaves_the_first_token(grid: tuple[int, ...]) -> None:
    x = normal(math.prod(grid), 8)
    turned = rotate(x, rotary_angles(grid, 8, dtype=torch.float64))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), **CLOSE)
    assert torch.equal(turned[0], x[0])


def test_rope_turns_interleaved_pairs_by_the_paper_s_angles() -> None:
    """Equation 34 of RoFormer, written out for one token."""
    x, token, d = normal(1, 6), 5, 6
    turned = rotate(x, rotary_angles((token + 1,), d, dtype=torch.float64)[token:])
    for pair in range(3):
        a, b = x[0, 2 * pair], x[0, 2 * pair + 1]
        angle = torch.tensor(token * 10_000 ** (-2 * pair / d), dtype=torch.float64)
        expected = torch.stack((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))
        torch.testing.assert_close(turned[0, 2 * pair : 2 * pair + 2], expected, **CLOSE)


@pytest.mark.parametrize(("head_dim", "rank"), [(3, 1), (6, 2), (1, 1)])
def test_rope_refuses_a_head_without_pairs(head_dim: int, rank: int) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        check_rope(head_dim, rank)
    with pytest.raises(ValueError, match="multiple of"):
        Attention(12, rank, head_dim=head_dim, rope=True)


@pytest.mark.parametrize("mixer_class", [Attention, CausalAttention])
def test_rope_leaves_what_was_there_without_it(mixer_class: type[MultiHeadMixer]) -> None:
    """The option adds no parameter and no draw."""
    torch.manual_seed(0)
    qkv, proj = nn.Linear(64, 192), nn.Linear(64, 64)
    for rope in ROPE:
        torch.manual_seed(0)
        mixer = mixer_class(64, 1, rope=rope)
        expected = {
            "qkv.weight": qkv.weight,
            "qkv.bias": qkv.bias,
            "proj.weight": proj.weight,
            "proj.bias": proj.bias,
        }
        assert list(mixer.state_dict()) == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in mixer.state_dict().items())
    name = next(name for name in MIXERS if MIXERS.load(name) is mixer_class)
    with_rope = MIXERS.resolve(MIXERS.parse(f"{name}(rope=true)"))
    assert with_rope.options["rope"] is True
    assert MIXERS.resolve(MIXERS.parse(str(with_rope))) == with_rope


def test_rope_in_bfloat16_still_tells_places_apart() -> None:
    """bfloat16 has no 257: the angles are float32, in a whole sequence and in a cache."""
    mixer = Attention(8, 1, rope=True)
    q, k, v = normal(3, 1, 1, 500, 8).bfloat16()
    turned = mixer.turn(q, (500,))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.double(), mixer.turn(q.double(), (500,)), rtol=0, atol=0.02)
    last = attend_last(q[:, :, -1:], k, v, rope=True)
    expected = attend_last(q[:, :, -1:].double(), k.double(), v.double(), rope=True)
    torch.testing.assert_close(last.double(), expected, rtol=0, atol=0.02)


# ---- parity with timm


@pytest.mark.parametrize("grid", GRIDS)
def test_attention_is_timm_s(grid: tuple[int, ...]) -> None:
    ours = seeded(lambda: Attention(64, len(grid)))
    theirs = TimmAttention(64, num_heads=2, qkv_bias=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = normal(2, *grid, 64)
    torch.testing.assert_close(ours(x), theirs(as_sequence(x)).view_as(x), **CLOSE)


def test_axial_rope_is_timm_s() -> None:
    """Image attention with the rotary embedding of EVA, its pairs interleaved."""
    grid = (3, 5)
    ours = seeded(lambda: Attention(64, 2, rope=True))
    theirs = AttentionRope(64, num_heads=2, qkv_bias=True, num_prefix_tokens=0).double()
    theirs.load_state_dict(ours.state_dict())
    rope = RotaryEmbeddingCat(32, in_pixels=False, feat_shape=list(grid), dtype=torch.float64)
    x = normal(2, *grid, 64)
    expected = theirs(as_sequence(x), rope=rope.get_embed()).view_as(x)
    # timm takes its frequencies in float32
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-6)
    without = copied(ours, Attention(64, 2))
    assert (without(x) - expected).abs().max() > 1e-3


# ---- softmax attention, whole and in a window


@pytest.mark.parametrize("mixer_class", [Attention, LinearAttention, GatedLinearAttention])
def test_heads_are_whole(mixer_class: type[TokenMixer]) -> None:
    """Of 40 channels two heads of 16 are made, and what they give is 40 channels again."""
    mixer = mixer_class(40, 1, head_dim=16)
    assert mixer.num_heads == 2
    assert mixer.proj.weight.shape == (40, 32)
    assert mixer(normal(1, 3, 40).float()).shape == (1, 3, 40)


@pytest.mark.parametrize(("grid", "taps"), [((9,), 3), ((3, 3), 8)])
def test_the_convolution_of_attention_starts_where_torch_draws_it(grid: tuple[int, ...], taps: int) -> None:
    torch.manual_seed(0)
    weight = CausalAttention(32, len(grid), qkv_conv=3).conv.weight
    for end in (weight.max(), -weight.min()):
        assert 0.9 * taps**-0.5 < end <= taps**-0.5


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mixer_class", [Attention, CausalAttention, WindowAttention])
def test_with_equal_scores_attention_is_the_mean_of_what_it_sees(
    mixer_class: type[MultiHeadMixer], grid: tuple[int, ...]
) -> None:
    mixer = seeded(lambda: mixer_class(8, len(grid), head_dim=4))
    with torch.no_grad():
        mixer.qkv.weight[:16] = 0
        mixer.qkv.bias[:16] = 0
    x = normal(2, *grid, 8)
    seen = mixer.dependency_mask(grid).double()
    values = as_sequence(x) @ mixer.qkv.weight[16:].T + mixer.qkv.bias[16:]
    expected = mixer.proj(seen / seen.sum(1, keepdim=True) @ values).view_as(x)
    torch.testing.assert_close(mixer(x), expected, **CLOSE)


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("grid", [(7,), (5, 4)])
def test_a_window_of_everything_is_attention(grid: tuple[int, ...], rope: bool) -> None:
    full = seeded(lambda: Attention(8, len(grid), rope=rope))
    causal = copied(full, CausalAttention(8, len(grid), rope=rope))
    x = normal(2, *grid, 8)
    for window, is_causal in product((max(grid), 50), (False, True)):
        mixer = WindowAttention(8, len(grid), window=window, causal=is_causal, rope=rope)
        expected = (causal if is_causal else full)(x)
        torch.testing.assert_close(copied(full, mixer)(x), expected, **CLOSE)


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"), [((200,), 1), ((131,), 5), ((300,), 40), ((23, 17), 1), ((9, 31), 3), ((21, 22), 5)]
)
def test_window_attention_in_tiles_is_its_definition(
    grid: tuple[int, ...], window: int, causal: bool, rope: bool
) -> None:
    """Values and gradients, on grids of several tiles whose last ones are not full."""
    mixer = seeded(lambda: WindowAttention(8, len(grid), window=window, causal=causal, head_dim=4, rope=rope))
    assert any(mixer._tiling(size) != (size, 0, 0) for size in grid), "several tiles"
    x = normal(2, *grid, 8).requires_grad_()
    weight = normal(2, *grid, 8, seed=2)
    inputs = (x, *mixer.parameters())
    got, expected = mixer(x), softmax_attention(mixer, x)
    torch.testing.assert_close(got, expected, **CLOSE)
    gradients = (torch.autograd.grad((y * weight).sum(), inputs) for y in (got, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("grid", "window"), list(product([(1,), (9,), (70,), (4, 7), (10, 3)], [1, 3, 8])))
def test_window_attention_counts_the_pairs_that_meet(
    grid: tuple[int, ...], window: int, causal: bool
) -> None:
    mixer = WindowAttention(12, len(grid), window=window, causal=causal, head_dim=4)
    pairs = int(mixer.dependency_mask(grid).sum())
    assert mixer.macs(grid) == 4 * math.prod(grid) * 12 * 12 + 2 * pairs * 12


@pytest.mark.parametrize("small", [(512,), (32, 32)])
def test_window_attention_computes_in_proportion_to_the_length(small: tuple[int, ...]) -> None:
    def computed(grid: tuple[int, ...]) -> int:
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            WindowAttention(8, len(grid), window=4)(torch.zeros(1, *grid, 8))
        return counter.get_total_flops()

    assert computed((2 * small[0], *small[1:])) == 2 * computed(small)


def test_the_window_of_a_place() -> None:
    assert WindowAttention.place_defaults(2, False) == {"causal": False}
    assert WindowAttention.place_defaults(1, False) == {"window": 32, "causal": False}
    assert WindowAttention.place_defaults(1, True) == {"window": 64, "causal": True}
    mask = WindowAttention(8, 2).dependency_mask((9, 8))
    assert torch.equal(mask, DepthwiseConv(8, 2).dependency_mask((9, 8)))


@pytest.mark.parametrize("rope", ROPE)
def test_the_cache_of_a_window_stays_small(rope: bool) -> None:
    mixer = seeded(lambda: WindowAttention(8, 1, window=3, causal=True, rope=rope))
    state = mixer.init_state(2)
    x = normal(2, 20, 8)
    for t, token in enumerate(x.unbind(1), start=1):
        y, state = mixer.step(token, state)
        assert sum(part[0].numel() for part in state) == mixer.state_size(t) == 2 * min(t, 3) * 8
    torch.testing.assert_close(y, mixer(x)[:, -1], **CLOSE)


# ---- the linear recurrence


def one_by_one(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Tensor:
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[2]):
        decay = None if log_decay is None else log_decay[:, :, t]
        o, state = linear_recurrence_step(q[:, :, t], k[:, :, t], v[:, :, t], state, decay)
        outputs.append(o)
    return torch.stack(outputs, dim=2)


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 63, 64, 65, 150])
@pytest.mark.parametrize("decayed", [False, True])
def test_chunks_are_the_recurrence(length: int, decayed: bool) -> None:
    """Values and gradients, at lengths around those of a chunk."""
    q, k = normal(2, 2, 3, length, 4)
    inputs = [q, k, normal(2, 3, length, 5, seed=2)]
    if decayed:
        inputs.append(-normal(2, 3, length, 4, seed=3).square())
    for each in inputs:
        each.requires_grad_()
    arguments = inputs if decayed else [*inputs, None]
    got, expected = linear_recurrence(*arguments), one_by_one(*arguments)
    torch.testing.assert_close(got, expected, **CLOSE)
    weight = normal(*got.shape, seed=4)
    gradients = (torch.autograd.grad((o * weight).sum(), inputs) for o in (got, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_the_recurrence_passes_gradcheck() -> None:
    inputs = (*normal(2, 1, 1, 18, 2), normal(1, 1, 18, 2, seed=2), -normal(1, 1, 18, 2, seed=3).square())
    assert torch.autograd.gradcheck(linear_recurrence, tuple(each.requires_grad_() for each in inputs))


def test_no_decay_is_too_strong_and_no_sequence_too_long() -> None:
    """float32: decays from none to a complete loss of memory, within a chunk and across a thousand tokens."""
    length = 1000
    q, k = normal(2, 1, 2, length, 4)
    v, log_decay = normal(1, 2, length, 4, seed=2), -torch.rand(1, 2, length, 4, dtype=torch.float64)
    log_decay[..., 0] = 0.0
    log_decay[..., 1] *= 500.0
    narrow = [each.float().requires_grad_() for each in (q, k, v, log_decay)]
    got = linear_recurrence(*narrow)
    got.square().mean().backward()
    assert all(each.grad.isfinite().all() for each in narrow)
    torch.testing.assert_close(got.double(), one_by_one(q, k, v, log_decay), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("recurrence", [linear_recurrence, one_by_one])
def test_autocast_does_not_reach_the_recurrence(recurrence: Callable[..., Tensor], decayed: bool) -> None:
    q, k, v = normal(3, 2, 3, 70, 4).float()
    log_decay = -normal(2, 3, 70, 4, seed=3).float().square() if decayed else None
    expected = recurrence(q, k, v, log_decay)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recurrence(q, k, v, log_decay), expected)


# ---- linear attention


@pytest.mark.parametrize("causal", [False, True])
def test_autocast_does_not_reach_the_fraction(causal: bool) -> None:
    q, k, v = normal(3, 2, 3, 70, 4).float()
    features = elu_plus_one(q), elu_plus_one(k)
    expected = linear_attention(features, features, v, causal=causal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_attention(features, features, v, causal=causal), expected)


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("mixer_class", [LinearAttention, CausalLinearAttention])
@pytest.mark.parametrize("grid", [(1,), (64,), (70,), (5, 14)])
def test_linear_attention_is_its_definition(
    mixer_class: type[MultiHeadMixer], grid: tuple[int, ...], rope: bool
) -> None:
    """The fraction of the paper with all pairs written out; RoPE turns the numerator only."""
    mixer = seeded(lambda: mixer_class(8, len(grid), head_dim=4, rope=rope))
    x = normal(2, *grid, 8)
    q, k, v = mixer.split_heads(x)
    q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
    seen = mixer.dependency_mask(grid)
    numerator = (mixer.turn(q, grid) @ mixer.turn(k, grid).mT * seen) @ v
    denominator = (q @ k.mT * seen).sum(-1, keepdim=True)
    expected = mixer.merge_heads(numerator / denominator).view_as(x)
    torch.testing.assert_close(mixer(x), expected, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_without_features_gets_nothing(causal: bool) -> None:
    """exp(-200) is zero in float32, and so would be the denominator: finite outputs and gradients."""
    q, k, v = normal(3, 1, 1, 5, 4).float()
    q[..., 2, :] = -200
    q, k, v = (each.requires_grad_() for each in (q, k, v))
    features = elu_plus_one(q), elu_plus_one(k)
    y = linear_attention(features, features, v, causal=causal)
    assert not y[..., 2, :].any()
    assert y[..., [0, 1, 3, 4], :].all()
    assert all(each.isfinite().all() for each in torch.autograd.grad(y.sum(), [q, k, v]))


@pytest.mark.parametrize("causal", [False, True])
def test_the_fraction_is_that_of_features_of_any_size(causal: bool) -> None:
    q, k, v = normal(3, 1, 1, 5, 4).float()
    q, k = elu_plus_one(q), elu_plus_one(k)
    small = 1e-20 * q, k
    expected = linear_attention((q, k), (q, k), v, causal=causal)
    torch.testing.assert_close(linear_attention(small, small, v, causal=causal), expected)


@pytest.mark.parametrize("name", ["linear-attention", "causal-linear-attention", "mila-attention"])
def test_linear_attention_of_enormous_inputs_is_finite(name: str) -> None:
    mixer = seeded(lambda: MIXERS.create(MIXERS.parse(f"{name}(head_dim=4)"), 8, 1)).float()
    x = 1e4 * normal(2, 9, 8).float()
    y = mixer(x)
    assert y.isfinite().all()
    if mixer.causal:
        state, steps = mixer.init_state(2), []
        for token in x.unbind(1):
            step, state = mixer.step(token, state)
            steps.append(step)
        torch.testing.assert_close(torch.stack(steps, dim=1), y, rtol=1e-3, atol=1.0)


def test_the_feature_map_is_positive_where_elu_plus_one_is_rounded_to_zero() -> None:
    x = torch.tensor([-80.0, -20.0, -1.0, 0.0, 2.0], requires_grad=True)
    y = elu_plus_one(x)
    y.sum().backward()
    assert (y > 0).all()
    torch.testing.assert_close(y, nn.functional.elu(x) + 1, rtol=1e-6, atol=1e-6)
    assert nn.functional.elu(x)[1] + 1 == 0
    torch.testing.assert_close(x.grad, x.detach().clamp(max=0).exp())


# ---- gated linear attention


def forget_nothing(mixer: GatedLinearAttention) -> None:
    """Gates that are 1 to the last bit of float64."""
    with torch.no_grad():
        for gate in mixer.gates:
            gate.up.weight.zero_()
            gate.up.bias.fill_(1000.0)


@pytest.mark.parametrize("grid", [(50,), (5, 7)])
@pytest.mark.parametrize("scan", ["forward", "bidirectional"])
def test_without_forgetting_gla_is_linear_attention_without_denominator(
    grid: tuple[int, ...], scan: str
) -> None:
    mixer = seeded(lambda: GatedLinearAttention(8, len(grid), head_dim=4, scan=scan))
    forget_nothing(mixer)
    x = normal(2, *grid, 8)
    q, k, v = (
        part.unflatten(-1, (2, -1)).transpose(1, 2) for part in mixer.qkv(as_sequence(x)).split([4, 4, 8], -1)
    )
    scores = q @ k.mT / math.sqrt(2)
    # both directions count the token itself
    mixed = (scores.tril() if scan == "forward" else (scores.tril() + scores.triu()) / 2) @ v
    normed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = mixer.proj(normed.transpose(1, 2).flatten(2)).view_as(x)
    torch.testing.assert_close(mixer(x), expected, **CLOSE)


def test_the_decay_of_gla_is_the_paper_s() -> None:
    mixer = seeded(lambda: GatedLinearAttention(8, 1))
    x = normal(2, 5, 8)
    gate = mixer.gates[0]
    assert gate.down.weight.shape == (16, 8)
    alpha = torch.sigmoid(gate.up(gate.down(x))) ** (1 / 16)
    torch.testing.assert_close(gate(x).exp(), alpha, **CLOSE)
    assert gate.bfloat16()(x.bfloat16()).dtype == torch.float32  # where a decay near 1 is not 1


def test_gla_read_both_ways_commutes_with_reversal_when_its_gates_are_swapped() -> None:
    mixer = seeded(lambda: GatedLinearAttention(8, 1, output_gate=True))
    swapped = copied(mixer, GatedLinearAttention(8, 1, output_gate=True))
    swapped.gates[0].load_state_dict(mixer.gates[1].state_dict())
    swapped.gates[1].load_state_dict(mixer.gates[0].state_dict())
    x = normal(2, 20, 8)
    torch.testing.assert_close(swapped(x.flip(1)), mixer(x).flip(1), **CLOSE)
    assert (mixer(x.flip(1)) - mixer(x).flip(1)).abs().max() > 1e-4


def test_the_output_gate_of_gla_is_a_factor_before_the_projection() -> None:
    plain = seeded(lambda: GatedLinearAttention(8, 1))
    gated = GatedLinearAttention(8, 1, output_gate=True).double()
    gated.load_state_dict(plain.state_dict(), strict=False)
    x = normal(2, 9, 8)
    nn.init.eye_(plain.proj.weight)
    expected = (plain(x) * nn.functional.silu(gated.output_gate(x))) @ gated.proj.weight.T
    torch.testing.assert_close(gated(x), expected, **CLOSE)


def test_gla_runs_forward_where_a_task_is_causal() -> None:
    assert GatedLinearAttention.place_defaults(1, True) == {"scan": "forward"}
    assert GatedLinearAttention.place_defaults(2, False) == {}


# ---- costs of the recurrent forms


@pytest.mark.parametrize("text", ["causal-linear-attention", "gated-linear-attention(scan=forward)"])
@pytest.mark.parametrize("head_dim", [4, 12])
def test_macs_of_a_recurrence_are_those_of_its_steps(text: str, head_dim: int) -> None:
    """What a counter sees of one step, and the elementwise products that it does not see."""
    component = MIXERS.parse(text)
    mixer_class, options = MIXERS.load(component.name), MIXERS.resolve(component).options
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer = mixer_class(12, 1, **{**options, "head_dim": head_dim})
        mixer.step(torch.zeros(1, 12), mixer.init_state(1))
    gated = isinstance(mixer, GatedLinearAttention)
    elementwise = mixer.state_size(1) if gated else 12  # decaying the state, or the sum under the fraction
    assert mixer.macs((10,)) == 10 * (counter.get_total_flops() // 2 + elementwise)


def test_the_second_direction_of_gla_costs_a_gate_and_a_recurrence() -> None:
    one, two = (GatedLinearAttention(32, 1, scan=scan) for scan in ("forward", "bidirectional"))
    gate = 32 * 16 + 16 * 16
    assert two.macs((10,)) - one.macs((10,)) == 10 * (gate + 3 * 16 * 32)
    difference = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters())
    assert difference == gate + 16


@pytest.mark.parametrize(
    ("mixer", "length", "expected"),
    [
        (CausalAttention(64, 1), 10, 2 * 10 * 64),
        (WindowAttention(64, 1, window=4, causal=True), 10, 2 * 4 * 64),
        (CausalLinearAttention(64, 1), 10, 2 * (32 * 32 + 32)),
        (GatedLinearAttention(64, 1, scan="forward"), 10, 2 * 16 * 32),
        (GatedLinearAttention(6, 1, scan="forward", head_dim=3), 10, 2 * 1 * 3),  # keys rounded down
        (GatedLinearAttention(2, 1, scan="forward", head_dim=1), 10, 2 * 1 * 1),  # to no less than 1
    ],
)
def test_numbers_carried_between_tokens(mixer: TokenMixer, length: int, expected: int) -> None:
    assert mixer.state_size(length) == expected


# ---- MILA


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("grid", [(9,), (4, 5)])
def test_mila_attention_is_its_definition(grid: tuple[int, ...], rope: bool) -> None:
    mixer = seeded(lambda: MILAAttention(8, len(grid), head_dim=4, rope=rope))
    x = normal(2, *grid, 8)
    values = as_sequence(x)
    q, k = (nn.functional.elu(part) + 1 for part in mixer.qk(values).chunk(2, dim=-1))
    angles = rotary_angles(grid, 8, dtype=torch.float64) * rope
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        numerator = rotate(q, angles)[..., part] @ rotate(k, angles)[..., part].mT
        heads.append(numerator @ values[..., part] / (q[..., part] @ k[..., part].mT).sum(-1, keepdim=True))
    torch.testing.assert_close(mixer(x), torch.cat(heads, dim=-1).view_as(x) + mixer.lepe(x), **CLOSE)


def test_mila_attention_has_the_size_of_the_paper_s() -> None:
    mixer = MILAAttention(64, 2)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == 2 * 64**2 + 2 * 64 + 10 * 64


@pytest.mark.parametrize(("dim", "options"), [(40, {}), (6, {"head_dim": 3})])
def test_mila_attention_refuses_widths_that_it_cannot_cut(dim: int, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        MILAAttention(dim, 2, **options)
