"""What every registered mixer must satisfy; a new one is covered by being registered."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mixers.scan_cpu  # noqa: F401  registers the scan's FLOP formula before a counter copies the list
from experiments.build import choose_backend
from mixers import MIXERS, InputError
from mixers.base import TokenMixer
from mixers.conv import CausalConv

DIM = 8
GRIDS = {1: [(1,), (2,), (7,), (12,)], 2: [(1, 1), (1, 5), (4, 3), (3, 6)]}

VARIANTS = {
    "ssm": [
        "ssm(scan=forward, conv=causal, kernel_size=3)",
        "ssm(scan=forward, conv=none)",
        "ssm(d_state=3, scan=forward)",  # symmetric, so not causal
        "ssm(selective=none)",
        "ssm(selective=delta)",
        "ssm(selective=B+C, scan=forward, conv=causal, kernel_size=3)",
        "ssm(scan=bidirectional, conv=per-pass, kernel_size=4)",
    ],
    "ssd": [
        "ssd(d_state=3, head_dim=3, chunk_size=5)",
        "ssd(d_state=3, head_dim=4, chunk_size=4, scan=forward, conv=causal, kernel_size=3)",
    ],
    "s4d": ["s4d(d_state=4, A_init=inv)", "s4d(scan=forward, conv=causal, kernel_size=3)"],
    "gru": ["gru(scan=forward, conv=none)", "gru(scan=forward, conv=causal, kernel_size=3)"],
    "mingru": ["mingru(candidate=positive)", "mingru(scan=forward, conv=none)"],
    "mamba": [
        "mamba(d_state=3, expand=1, kernel_size=3)",
        "mamba(scan=bidirectional)",
        "mamba(kernel_size=1)",
    ],
    "mamba2": ["mamba2(d_state=3, expand=3, head_dim=5, kernel_size=3, chunk_size=5)"],
    "mambavision": ["mambavision(d_state=3, kernel_size=5, zero_dt_bias=true, double_dt_bias=true)"],
    "conv": ["conv(kernel_size=3)"],
    "causal-conv": ["causal-conv(kernel_size=3)"],
    "attention": ["attention(head_dim=4)", "attention(head_dim=4, rope=true)"],
    "causal-attention": [
        "causal-attention(head_dim=4, qkv_bias=false)",
        "causal-attention(rope=true)",
        "causal-attention(head_dim=4, qkv_conv=3)",
    ],
    "window-attention": [
        "window-attention(window=2, rope=true)",
        "window-attention(window=2, causal=true)",
        "window-attention(window=1, causal=true, head_dim=4)",
        "window-attention(window=3, causal=true, rope=true)",
    ],
    "linear-attention": ["linear-attention(head_dim=4, rope=true)"],
    "causal-linear-attention": ["causal-linear-attention(head_dim=4, rope=true)"],
    "mila-attention": ["mila-attention(head_dim=4, rope=false)"],
    "gated-linear-attention": [
        "gated-linear-attention(scan=forward, head_dim=4)",
        "gated-linear-attention(expand_k=1, output_gate=true)",
    ],
    "sepconv": ["sepconv(kernel_size=3, expansion_ratio=1.5)"],
    "gated-conv": ["gated-conv(kernel_size=3, act=silu)", "gated-conv(conv=causal, kernel_size=3, act=gelu)"],
    "pooling": ["pooling(pool_size=5)"],
}
IMAGE_VARIANTS = [  # whose scan is refused on a sequence
    "ssm(scan=cross)",
    "ssm(scan=cross, selective=C, conv=none)",
    "ssm(scan=local, window=2)",
    "ssm(scan=local, window=7)",
    "ssm(scan=vertical)",
    "ssm(scan=vertical-slip)",
    "ssm(scan=continuous)",
    "ssm(scan=continuous, selective=none)",
    "ssm(scan=continuous, raster_params=true)",
    "ssm(scan=atrous, atrous_step=2, kernel_size=3)",
    "ssm(scan=atrous, atrous_step=3)",
    "ssm(scan=forward, conv=per-pass, kernel_size=4)",
    "ssm(scan=cross, conv=per-pass, kernel_size=3)",
    "ssm(scan=local, window=2, conv=per-pass, kernel_size=4)",
    "ssd(scan=cross)",
    "s4d(scan=cross)",
    "gru(scan=cross)",
    "mingru(scan=cross)",
    "mingru(scan=cross, conv=per-pass, kernel_size=3)",
]
# They compute more than their definition needs, in tiles and chunks; their own tests count the definition.
COUNTED_BY_DEFINITION = {
    "window-attention",
    "causal-linear-attention",
    "gated-linear-attention",
    "ssd",
    "mamba2",
}
# torch.compile does not take torch's GRU, nor the generator that random mixing draws a new length from
UNTRACED = ("gru", "random")
# torch has no tangents of its GRU, nor of its fused attention on a CPU
WITHOUT_TANGENTS = ("gru", "attention", "causal-attention", "window-attention")
TEXTS = [text for name in MIXERS for text in (name, *VARIANTS.get(name, []))]


def build(text: str, grid_rank: int, *, dim: int = DIM, causal: bool = False, seed: int = 0) -> TokenMixer:
    """A mixer with every parameter at a generic value, in float64."""
    torch.manual_seed(seed)
    component = MIXERS.parse(text)
    mixer_class = MIXERS.load(component.name)
    resolved = MIXERS.resolve(component, mixer_class.place_defaults(grid_rank, causal))
    mixer: TokenMixer = MIXERS.create(resolved, dim, grid_rank)
    return shaken(mixer).double().eval()


def shaken(module: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that zeros and ones hide nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def cases() -> list[tuple[str, int, tuple[int, ...]]]:
    everywhere = [
        (text, rank, grid)
        for text in TEXTS
        for rank in MIXERS.load(MIXERS.parse(text).name).grid_ranks
        for grid in GRIDS[rank]
    ]
    return everywhere + [(text, 2, grid) for text in IMAGE_VARIANTS for grid in GRIDS[2]]


def ranks() -> list[tuple[str, int]]:
    return list(dict.fromkeys((text, rank) for text, rank, _ in cases()))


def inputs(grid: tuple[int, ...], *, dim: int = DIM, batch: int = 2) -> Tensor:
    return torch.randn(batch, *grid, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("text", "rank", "grid"), cases())
def test_keeps_the_shape(text: str, rank: int, grid: tuple[int, ...]) -> None:
    x = inputs(grid)
    assert build(text, rank)(x).shape == x.shape


@pytest.mark.parametrize(("text", "rank", "grid"), cases())
def test_sees_exactly_what_it_declares(text: str, rank: int, grid: tuple[int, ...]) -> None:
    """The Jacobian's pattern over positions equals `dependency_mask`: causality, window, full sight.

    The examples of a batch do not meet (tested below), so that a batch of copies gives a row with each.
    """
    mixer = build(text, rank)
    length = math.prod(grid)
    x = inputs(grid, batch=1).repeat(length * DIM, *[1] * (rank + 1)).requires_grad_()  # (L C, *grid, C)
    rows = torch.eye(length * DIM, dtype=torch.float64).view_as(x)
    (jacobian,) = torch.autograd.grad(mixer(x), x, rows)
    depends = jacobian.reshape(length, DIM, length, DIM).abs().amax(dim=(1, 3)) > 0
    assert torch.equal(depends, mixer.dependency_mask(grid))


@pytest.mark.parametrize(("text", "rank", "grid"), cases())
def test_causal_is_what_the_mask_says(text: str, rank: int, grid: tuple[int, ...]) -> None:
    mixer = build(text, rank)
    sees_the_future = mixer.dependency_mask(grid).triu(1).any().item()
    if mixer.causal:
        assert not sees_the_future
    elif math.prod(grid) > 1:
        assert sees_the_future


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_causal_by_perturbation(text: str, rank: int) -> None:
    """Moving the last tokens leaves the earlier outputs of a causal mixer where they were."""
    mixer = build(text, rank)
    grid = GRIDS[rank][-1]
    x = inputs(grid)
    length = math.prod(grid)
    moved = x.clone().view(2, length, DIM)
    moved[:, length // 2 :] += 1.0
    before, after = (mixer(each.view_as(x)).view(2, length, DIM) for each in (x, moved))
    change = (after - before)[:, : length // 2].abs().max().item()
    assert change < 1e-12 if mixer.causal else change > 1e-9


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_every_parameter_gets_a_gradient(text: str, rank: int) -> None:
    mixer = build(text, rank)
    mixer(inputs(GRIDS[rank][-1]).requires_grad_()).square().sum().backward()
    without = [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert without == []


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_examples_of_a_batch_do_not_meet(text: str, rank: int) -> None:
    mixer = build(text, rank)
    x = inputs(GRIDS[rank][-1], batch=3)
    alone = torch.cat([mixer(example[None]) for example in x])
    torch.testing.assert_close(mixer(x), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_a_batch_may_be_empty(text: str, rank: int) -> None:
    """As the last share of a split batch may be: no output, and gradients of zero."""
    mixer = build(text, rank).float()
    x = inputs(GRIDS[rank][-1], batch=0).float().requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    gradients = torch.autograd.grad(y.sum(), [x, *mixer.parameters()], allow_unused=True)
    assert gradients[0].shape == x.shape
    assert not any(gradient.any() for gradient in gradients[1:] if gradient is not None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # which torch has for tangents
@pytest.mark.parametrize(
    ("text", "rank"), [case for case in ranks() if not case[0].startswith(WITHOUT_TANGENTS)]
)
def test_tangents_are_differences(text: str, rank: int) -> None:
    """Forward mode."""
    mixer = build(text, rank)
    x = inputs(GRIDS[rank][-1])
    v = torch.randn_like(x)
    _, tangent = torch.func.jvp(mixer, (x,), (v,))
    step = 1e-6
    difference = (mixer(x + step * v) - mixer(x - step * v)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_the_seed_decides_the_parameters(text: str, rank: int) -> None:
    one, same, other = (build(text, rank, seed=seed) for seed in (3, 3, 4))
    for (name, a), (_, b) in zip(one.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    if list(one.parameters()):
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_names_without_decay_exist(text: str, rank: int) -> None:
    mixer = build(text, rank)
    assert mixer.no_weight_decay() <= {name for name, _ in mixer.named_parameters()}


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_finite_under_autocast(text: str, rank: int) -> None:
    mixer = build(text, rank).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(inputs(GRIDS[rank][-1]).float().requires_grad_())
        loss = y.float().square().sum()
    loss.backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("text", "rank"), [case for case in ranks() if MIXERS.parse(case[0]).name not in COUNTED_BY_DEFINITION]
)
def test_macs_grow_as_declared(text: str, rank: int) -> None:
    """The closed form against torch's counter, on what the counter sees."""
    grid = GRIDS[rank][-1]
    with torch.device("meta"):
        mixer = build(text, rank).float()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mixer(torch.randn(1, *grid, DIM))
    convs = [m for m in mixer.modules() if isinstance(m, CausalConv) and m.grid_rank == 2]
    # The kernel is padded with taps that are no work of the mixer.
    dead_taps = sum(m.kernel_size // 2 * m.dim for m in convs)
    assert mixer.macs(grid) == counter.get_total_flops() // 2 - dead_taps * math.prod(grid)


RECURRENT = [text for text in TEXTS if build(text, 1, causal=True).state_size(1) is not None]


def test_the_causal_mixers_are_recurrent() -> None:
    assert {"identity", "causal-conv", "ssm", "causal-attention"} <= set(RECURRENT)


@pytest.mark.parametrize("text", RECURRENT)
def test_step_by_step_equals_forward(text: str) -> None:
    mixer = build(text, 1, causal=True)
    x = inputs((11,))
    state = tuple(part.double() for part in mixer.init_state(2))
    outputs = []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), mixer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("text", RECURRENT)
def test_step_by_step_with_weights_in_bfloat16(text: str) -> None:
    """The state that `init_state` gives, in float32, needs no care of the caller's."""
    mixer = build(text, 1, causal=True).bfloat16()
    x = inputs((7,)).bfloat16()
    state = mixer.init_state(2)
    outputs = []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        assert y.dtype == torch.bfloat16
        outputs.append(y.double())
    expected = mixer.double()(x.double())
    allowed = 0.05 * expected.abs().max().item()
    torch.testing.assert_close(torch.stack(outputs, dim=1), expected, rtol=0.05, atol=allowed)


@pytest.mark.parametrize("text", RECURRENT)
def test_state_size_is_what_is_carried(text: str) -> None:
    mixer = build(text, 1, causal=True)
    state = tuple(part.double() for part in mixer.init_state(1))
    for token in inputs((6,), batch=1).unbind(1):
        _, state = mixer.step(token, state)
    assert sum(part.numel() for part in state) == mixer.state_size(6)


@pytest.mark.parametrize("text", RECURRENT)
def test_step_leaves_the_state_it_was_given(text: str) -> None:
    mixer = build(text, 1, causal=True)
    _, state = mixer.step(inputs((1,))[:, 0], tuple(part.double() for part in mixer.init_state(2)))
    before = [part.clone() for part in state]
    mixer.step(inputs((1,))[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


@pytest.mark.parametrize(
    ("text", "rank"),
    [case for case in ranks() if case[0] not in RECURRENT or (case[1] == 2 and case[0] != "identity")],
)
def test_without_a_recurrent_form_it_says_so(text: str, rank: int) -> None:
    mixer = build(text, rank)
    assert mixer.state_size(4) is None
    with pytest.raises(TypeError, match="no recurrent form"):
        mixer.init_state(1)
    with pytest.raises(TypeError, match="no recurrent form"):
        mixer.step(inputs((1,))[:, 0], ())


WITHOUT_ORDER = {
    *itertools.product(["identity", "attention", "attention(head_dim=4)", "linear-attention"], [1, 2]),
    ("window-attention", 1),  # whose window holds the whole sequence
    ("window-attention(window=1, causal=true, head_dim=4)", 1),  # whose window holds the token alone
}


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_who_ignores_the_order_of_tokens(text: str, rank: int) -> None:
    """These give permuted outputs for permuted tokens; every other mixer knows positions, and does not."""
    mixer = build(text, rank)
    grid = GRIDS[rank][-1]
    x = inputs(grid)
    order = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(2))

    def permuted(each: Tensor) -> Tensor:
        return each.flatten(1, -2)[:, order].view_as(each)

    change = (mixer(permuted(x)) - permuted(mixer(x))).abs().max().item()
    assert change < 1e-10 if (text, rank) in WITHOUT_ORDER else change > 1e-3


PER_PASS = "conv=per-pass, kernel_size=4"


def both_ways() -> list[str]:
    """Every mixer that has passes, read in both directions, in ways that have no other direction in them.

    A shared convolution has one, unless its kernel is symmetric.
    """
    texts = []
    for name in MIXERS:
        options = MIXERS.options(name)
        if "conv" in options and "scan" in options:
            texts += [f"{name}(scan=bidirectional, {conv})" for conv in ("kernel_size=1", PER_PASS)]
        elif "scan" in options:
            texts.append(f"{name}(scan=bidirectional)")
    return texts


def with_swapped_passes(mixer: TokenMixer, text: str) -> TokenMixer:
    """Parameters of the way there for those of the way back, and the other way round."""
    swapped = build(text, mixer.grid_rank)
    state = mixer.state_dict()
    there, back = r"\b(scans|gates)\.0\.", r"\1.1."
    for name in [name for name in state if re.search(there, name)]:
        other = re.sub(there, back, name)
        state[name], state[other] = state[other], state[name]
    swapped.load_state_dict(state)
    return swapped


def test_both_ways_covers_what_is_scanned() -> None:
    names = {MIXERS.parse(text).name for text in both_ways()}
    assert names == {"ssm", "mamba", "ssd", "s4d", "gru", "mingru", "gated-linear-attention"}


@pytest.mark.parametrize("text", both_ways())
def test_bidirectional_scan_with_swapped_directions_commutes_with_reversal(text: str) -> None:
    """And not without the swap: each way has parameters of its own."""
    mixer = build(text, 1)
    x = inputs((12,))
    swapped = with_swapped_passes(mixer, text)
    torch.testing.assert_close(swapped(x.flip(1)), mixer(x).flip(1), rtol=1e-10, atol=1e-10)
    assert (mixer(x.flip(1)) - mixer(x).flip(1)).abs().max() > 1e-3


def test_a_shared_causal_convolution_is_not_mirrored() -> None:
    """As in the first version of Vision Mamba's code."""
    text = "ssm(scan=bidirectional, conv=causal, kernel_size=4)"
    mixer = build(text, 1)
    x = inputs((12,))
    assert (with_swapped_passes(mixer, text)(x.flip(1)) - mixer(x).flip(1)).abs().max() > 1e-3


def test_delta_starts_where_the_paper_says() -> None:
    torch.manual_seed(0)
    mixer = MIXERS.create(MIXERS.parse("ssm"), 64, 1)
    for scan in mixer.scans:
        delta = nn.functional.softplus(scan.dt_proj.bias)
        assert 1e-3 <= delta.min() < 2e-3
        assert 5e-2 < delta.max() <= 1e-1
        assert scan.dt_proj.weight.abs().max() <= scan.dt_proj.in_features**-0.5
        torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 17.0).expand(64, 16))
        assert torch.equal(scan.D, torch.ones(64))


@pytest.mark.parametrize(("a", "b"), list(itertools.product(["conv", "causal-conv"], [1, 2])))
def test_the_convolution_of_ssm_is_that_of_conv(a: str, b: int) -> None:
    """Same parameters from the same seed: what `ssm` has beyond `conv` is the SSM."""
    kind = "causal" if a == "causal-conv" else "symmetric"
    torch.manual_seed(5)
    plain = MIXERS.create(MIXERS.parse(f"{a}(kernel_size=7)"), DIM, b)
    torch.manual_seed(5)
    inside = MIXERS.create(MIXERS.parse(f"ssm(conv={kind}, kernel_size=7)"), DIM, b).conv
    assert type(inside) is type(plain)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), inside.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sssm", "unknown mixer 'sssm'; did you mean 'ssm'"),
        ("ssm(dstate=8)", "no option 'dstate'; did you mean 'd_state'"),
        ("ssm(d_state=many)", "d_state: Input should be a valid integer"),
        ("ssm(d_state=0)", "greater than or equal to 1"),
        ("ssm(scan=sideways)", "scan: Input should be 'forward', 'bidirectional', 'cross'"),
        ("ssm(d_state)", "not of the form option=value"),
        ("ssm(d_state=8", "not of the form name"),
        ("ssm(d_state=8, d_state=9)", "given twice"),
        ("identity(k=3)", "it has none"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        MIXERS.resolve(MIXERS.parse(text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", list(MIXERS))
def test_the_text_of_a_resolved_mixer_reads_back(name: str) -> None:
    resolved = MIXERS.resolve(MIXERS.parse(name))
    assert MIXERS.resolve(MIXERS.parse(str(resolved))) == resolved


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which torch.compile does, to trace them
@pytest.mark.parametrize(("text", "rank"), [case for case in ranks() if not case[0].startswith(UNTRACED)])
def test_torch_compile_sees_one_graph(text: str, rank: int) -> None:
    """Each break of a graph costs time in every step, and more in compiling."""
    mixer = build(text, rank).float()
    choose_backend(mixer, "auto", torch.device("cpu"))
    x = inputs(GRIDS[rank][-1]).float()
    torch.compiler.reset()
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), mixer(x))


@pytest.mark.parametrize(("text", "rank"), ranks())
def test_infers_and_trains_afterwards(text: str, rank: int) -> None:
    """Nothing that inference left behind (caches, plans, buffers) may keep a later pass from training."""
    mixer = build(text, rank).float().train()
    x = inputs(GRIDS[rank][-1]).float()
    with torch.inference_mode():
        inferred = mixer(x)
    trained = mixer(x)
    torch.testing.assert_close(trained, inferred.clone())
    parameters = [parameter for parameter in mixer.parameters() if parameter.requires_grad]
    if parameters:
        trained.square().sum().backward()
        assert all(parameter.grad is not None for parameter in parameters)
