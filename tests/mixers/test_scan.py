"""The CPU kernel against the float64 reference, in outputs, last state and every gradient."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mixers import backends, scan_cpu
from mixers.scan import selective_scan, selective_scan_step
from mixers.scan_reference import selective_scan_reference


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
OPTIONAL = ("D", "delta_bias", "initial_state")


def make_inputs(
    batch: int, length: int, dim: int, d_state: int, without: tuple[str, ...] = (), seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "u": normal(batch, length, dim),
        "delta": normal(batch, length, dim) - 1,
        "A": -torch.exp(normal(dim, d_state)),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(dim),
        "delta_bias": normal(dim),
        "initial_state": normal(batch, dim, d_state),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}


def run(inputs: dict[str, Tensor], backend: str, reverse: bool = False) -> dict[str, Tensor]:
    """y, last_state and the gradient of each input, for a loss that uses both outputs."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    before = backends.calls[backend]
    y, last_state = selective_scan(**leaves, reverse=reverse, return_state=True, backend=backend)
    assert backends.calls[backend] == before + 1
    generator = torch.Generator().manual_seed(1)
    # weights that bfloat16 can hold, so that every dtype has the same loss
    weights = [
        torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype) for out in (y, last_state)
    ]
    loss = (y * weights[0]).sum().to(last_state.dtype) + (last_state * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(leaves, gradients, strict=True))}


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in inputs.items()}


def assert_close(
    results: dict[str, Tensor],
    expected: dict[str, Tensor],
    tolerance: float,
    rounded: dict[str, Tensor] | None = None,
) -> None:
    """Largest difference, relative to the largest value of each tensor.

    `rounded` is what the reference gives in the precision of the results: where a sum cancels, the relative
    error has no bound, and may be some times as large as the reference's own.
    """
    assert results.keys() == expected.keys()
    for name, value in results.items():
        assert value.shape == expected[name].shape, name
        # clamp: after one token and no initial state, the gradient of A is zero
        scale = expected[name].abs().max().clamp(min=1e-30)
        error = (value.double() - expected[name]).abs().max() / scale
        own = (rounded[name].double() - expected[name]).abs().max() / scale if rounded else 0.0
        assert error <= max(tolerance, 8 * own), f"{name}: {error:.1e}"


# ---- parity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 196, 1000])
def test_lengths(length: int, reverse: bool) -> None:
    inputs = make_inputs(2, length, 7, 4)
    assert_close(run(inputs, "cpu", reverse), run(double(inputs), "reference", reverse), 5e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 16, 48, 300])
@pytest.mark.parametrize("d_state", [1, 3, 4, 16, 64])
def test_widths(dim: int, d_state: int, reverse: bool) -> None:
    inputs = make_inputs(2, 34, dim, d_state)
    given_values = {name: tensor.clone() for name, tensor in inputs.items()}
    assert_close(run(inputs, "cpu", reverse), run(double(inputs), "reference", reverse), 5e-6)
    assert all(
        torch.equal(inputs[name], given_values[name]) for name in inputs
    )  # nothing was written in place


def test_largest_d_state() -> None:
    inputs = make_inputs(1, 40, 3, 256)
    assert_close(run(inputs, "cpu"), run(double(inputs), "reference"), 5e-6)


@pytest.mark.parametrize("without", [(), ("D",), ("delta_bias",), ("initial_state",), OPTIONAL])
def test_optional_inputs(without: tuple[str, ...]) -> None:
    inputs = make_inputs(2, 33, 20, 5, without)
    assert_close(run(inputs, "cpu"), run(double(inputs), "reference"), 5e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_constant_B_and_C(backend: str) -> None:
    """(1, 1, d_state) counts for every token, and its gradient is the sum over them."""
    inputs = make_inputs(3, 20, 6, 4)
    static = {**inputs, "B": inputs["B"][:1, :1], "C": inputs["C"][:1, :1]}
    whole = {**inputs, "B": static["B"].expand(3, 20, 4), "C": static["C"].expand(3, 20, 4)}
    expected = run(double(whole), "reference")
    expected["B"] = expected["B"].sum((0, 1), keepdim=True)
    expected["C"] = expected["C"].sum((0, 1), keepdim=True)
    assert_close(run(static, backend), expected, 5e-6)


def test_inputs_need_not_be_contiguous() -> None:
    inputs = make_inputs(2, 37, 20, 4)
    strided = {name: t.repeat_interleave(2, dim=-1)[..., ::2] for name, t in inputs.items()}
    strided["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(t.is_contiguous() for t in strided.values())
    results, expected = run(strided, "cpu"), run(inputs, "cpu")
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_bfloat16() -> None:
    """Results in bfloat16, states and sums in float32: only the last rounding is coarse."""
    inputs = make_inputs(2, 70, 20, 4, without=("initial_state",))
    low = {name: t if name in ("A", "D", "delta_bias") else t.bfloat16() for name, t in inputs.items()}
    results = run(low, "cpu")
    assert results["y"].dtype == results["u"].dtype == results["B"].dtype == torch.bfloat16
    assert results["last_state"].dtype == results["A"].dtype == torch.float32
    assert_close(results, run(double(low), "reference"), 2**-8)
    assert_close({"h": results["last_state"]}, {"h": run(double(low), "reference")["last_state"]}, 5e-6)
    assert_close(run(low, "reference"), run(double(low), "reference"), 2**-8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_keeps_the_state_in_float32(backend: str) -> None:
    inputs = make_inputs(2, 70, 20, 4)
    expected = selective_scan(**inputs, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(**inputs, backend=backend)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("wide", [*((name,) for name in NAMES), NAMES], ids=str)
def test_an_input_in_float64_is_computed_in_float64(wide: tuple[str, ...]) -> None:
    exact = double(make_inputs(1, 5, 3, 2))
    inputs = {name: t if name in wide else t.float() for name, t in exact.items()}
    y, last_state = selective_scan(**inputs, return_state=True)
    expected, last_expected = selective_scan(**exact, return_state=True)
    assert y.dtype == inputs["u"].dtype
    assert last_state.dtype == torch.float64
    torch.testing.assert_close(last_state, last_expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y, expected.to(y.dtype))
    with pytest.raises(ValueError, match="the cpu scan computes in float32"):
        scan_cpu.selective_scan_cpu(**inputs)


def test_float64_stays_float64() -> None:
    inputs = double(make_inputs(1, 5, 3, 2))
    before = backends.calls["reference"]
    y, last_state = selective_scan(**inputs, return_state=True)
    assert y.dtype == last_state.dtype == torch.float64
    assert backends.calls["reference"] == before + 1
    with pytest.raises(ValueError, match="float64"):
        selective_scan(**inputs, backend="cpu")


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck_of_the_reference(reverse: bool) -> None:
    inputs = {name: t.requires_grad_() for name, t in double(make_inputs(2, 4, 3, 2)).items()}
    torch.autograd.gradcheck(
        lambda *tensors: selective_scan_reference(*tensors, reverse), tuple(inputs[name] for name in NAMES)
    )


def test_small_decays_are_exact() -> None:
    """exp over its range: a state of ones decays by exp(Delta A) in one step, here from 1 to 1e-75.

    So does the gradient. What is below 1e-30 is zero, in both.
    """
    dim = 4096
    A = -torch.linspace(0, 250, dim).reshape(dim, 1)
    zeros = torch.zeros(1, 1, dim)
    one = torch.zeros(1, 1, 1)
    start = torch.ones(1, dim, 1, requires_grad=True)
    _, state = selective_scan(
        zeros, zeros, A, one, one, initial_state=start, return_state=True, backend="cpu"
    )
    (gradient,) = torch.autograd.grad(state.sum(), start)
    expected = torch.exp(A.double() * torch.log(torch.tensor(2.0, dtype=torch.float64)))  # softplus(0) = ln 2
    # rounding Delta A itself to float32 costs |Delta A| 2**-23
    allowed = 3e-7 + A.double().abs() * 2**-22
    for decayed in (state[0], gradient[0]):
        assert ((decayed - expected).abs() <= allowed * expected + 1e-30).all()
        assert not decayed[expected < 9e-31].any()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 20)),
    without=st.sets(st.sampled_from(OPTIONAL)),
    reverse=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(shape=(1, 50, 1, 1), without={"D", "delta_bias"}, reverse=True, seed=3)  # the sum for A cancels
def test_any_shape(shape: tuple[int, int, int, int], without: set[str], reverse: bool, seed: int) -> None:
    inputs = make_inputs(*shape, without=tuple(without), seed=seed)
    expected, rounded = run(double(inputs), "reference", reverse), run(inputs, "reference", reverse)
    assert_close(run(inputs, "cpu", reverse), expected, 2e-5, rounded)


# ---- the recurrence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_reverse_is_forward_on_the_flipped_sequence(backend: str) -> None:
    inputs = make_inputs(2, 45, 9, 4)
    flipped = {name: t.flip(1) if name in ("u", "delta", "B", "C") else t for name, t in inputs.items()}
    y, last_state = selective_scan(**inputs, reverse=True, return_state=True, backend=backend)
    y_flipped, last_flipped = selective_scan(**flipped, return_state=True, backend=backend)
    torch.testing.assert_close(y, y_flipped.flip(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last_state, last_flipped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("split", [1, 31, 32, 50])
def test_two_halves_with_the_state_carried_are_the_whole(split: int, reverse: bool, backend: str) -> None:
    inputs = make_inputs(2, 70, 18, 5)
    whole, last_state = selective_scan(**inputs, reverse=reverse, return_state=True, backend=backend)

    def part(tokens: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        sliced = {name: t[:, tokens] if name in ("u", "delta", "B", "C") else t for name, t in inputs.items()}
        sliced["initial_state"] = state
        return selective_scan(**sliced, reverse=reverse, return_state=True, backend=backend)

    order = [slice(0, split), slice(split, None)]
    first, state = part(order[reverse], inputs["initial_state"])
    second, state = part(order[not reverse], state)
    halves = torch.cat([second, first] if reverse else [first, second], dim=1)
    torch.testing.assert_close(halves, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state, last_state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("without", [(), ("D", "delta_bias")])
def test_steps_are_the_sequence(without: tuple[str, ...]) -> None:
    inputs = make_inputs(2, 40, 18, 5, without)
    y, last_state = selective_scan(**inputs, return_state=True)
    state = inputs["initial_state"]
    for t in range(40):
        u_t, delta_t, B_t, C_t = (inputs[name][:, t] for name in ("u", "delta", "B", "C"))
        bias = inputs.get("delta_bias")
        y_t, state = selective_scan_step(u_t, delta_t, inputs["A"], B_t, C_t, inputs.get("D"), bias, state)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_visible(name: str) -> None:
    inputs = make_inputs(2, 40, 18, 5)
    inputs[name].view(-1)[len(inputs[name].view(-1)) // 3] = float("nan")
    y, expected = (selective_scan(**inputs, backend=backend) for backend in ("cpu", "reference"))
    assert 0 < expected.isnan().sum() < expected.numel()
    assert torch.equal(y.isnan(), expected.isnan())


# ---- the operator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_opcheck(without: tuple[str, ...]) -> None:
    inputs = {name: t.requires_grad_() for name, t in make_inputs(2, 40, 18, 5, without).items()}
    arguments = (*(inputs.get(name) for name in NAMES), False, True)
    torch.library.opcheck(torch.ops.mixers.selective_scan.default, arguments)


def test_the_compiler_is_told_the_types_of_results_and_gradients() -> None:
    inputs = make_inputs(2, 40, 18, 5)
    u, delta, A, B, C, *vectors = (inputs[name] for name in NAMES[:7])
    strided = u.bfloat16().mT.contiguous().mT
    tensors = (strided, delta, A.bfloat16(), B.bfloat16(), C.bfloat16(), *vectors)
    scan = torch.ops.mixers.selective_scan
    torch.library.opcheck(scan.default, (*tensors, None, False, True), test_utils="test_faketensor")
    y, last_state, states = scan(*tensors, None, False, True)
    torch.library.opcheck(
        torch.ops.mixers.selective_scan_backward.default,
        (y, last_state, *tensors, states, False),
        test_utils="test_faketensor",
    )


def test_gradient_through_the_last_state_alone() -> None:
    inputs = {name: t.requires_grad_() for name, t in make_inputs(2, 40, 18, 5).items()}
    gradients = {}
    for backend in ("cpu", "reference"):
        _, last_state = selective_scan(**inputs, return_state=True, backend=backend)
        used = [inputs[name] for name in NAMES if name not in ("C", "D")]
        gradients[backend] = torch.autograd.grad(last_state.square().sum(), used)
    for ours, theirs in zip(gradients["cpu"], gradients["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_same_bits_whatever_the_threads() -> None:
    # two slabs of channels and enough elements for more threads, of which 4 get unequal shares
    scan_cpu._pool.cache_clear()
    inputs = make_inputs(3, 200, 300, 16)
    results = []
    for count in (1, 1, 2, 3, 4):
        torch.set_num_threads(count)
        results.append(run(inputs, "cpu"))
    assert scan_cpu._pool.cache_info().currsize == 3, "2, 3 and 4 have run"
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


def _checksum() -> float:
    torch.set_num_threads(2)
    return float(run(make_inputs(2, 100, 300, 16), "cpu")["delta"].double().sum())


def test_spawned_processes() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(_checksum).result()
    assert theirs == _checksum()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_makes_a_pool_of_its_own() -> None:
    """That of its parent has no threads there, so that a scan would wait for ever."""
    pool = scan_cpu._pool(1)
    child = os.fork()
    if child == 0:
        os._exit(scan_cpu._pool(1) is pool)
    assert os.waitpid(child, 0)[1] == 0


def test_memory_has_no_state_axis() -> None:
    """Neither what autograd keeps nor the peak grows like (batch, length, dim, d_state)."""
    resource = pytest.importorskip("resource")
    batch, length, dim, d_state = 1, 4096, 128, 128
    inputs = {name: t.requires_grad_() for name, t in make_inputs(batch, length, dim, d_state).items()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = selective_scan(**inputs, backend="cpu")
    y.sum().backward()
    everything = 4 * batch * length * dim * d_state
    assert sum(saved.values()) < everything / 12
    grown_kib = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    )  # bytes on macOS, which is stricter
    assert grown_kib * 1024 < everything / 2


def test_no_states_are_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(1, 320, 16, 4)
    arguments = [inputs.get(name) for name in NAMES]
    states = [torch.ops.mixers.selective_scan(*arguments, False, keep)[2] for keep in (False, True)]
    assert states[0].shape[1] == 1
    assert states[1].shape[1] == 11
    backends.resolve("cpu", "cpu")  # which trains, to try the kernel out
    kept, forward = [], scan_cpu._scan._forward
    monkeypatch.setattr(scan_cpu._scan, "_forward", lambda *call: kept.append(call[-1]) or forward(*call))
    for trained, mode in ((True, True), (True, False), (False, True)):
        inputs["u"].requires_grad_(trained)
        with torch.set_grad_enabled(mode):
            selective_scan(**inputs, backend="cpu")
    assert kept == [True, False, False]


def test_flops_on_the_meta_device() -> None:
    batch, length, dim, d_state = 2, 50, 12, 4
    inputs = {
        name: t.to("meta").requires_grad_() for name, t in make_inputs(batch, length, dim, d_state).items()
    }
    elements = batch * length * dim * d_state
    with FlopCounterMode(display=False) as forward:
        y = selective_scan(**inputs)
    assert y.device.type == "meta"
    assert forward.get_total_flops() == 6 * elements
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 12 * elements
    assert all(t.grad is not None and t.grad.shape == t.shape for t in inputs.values())


def test_backward_needs_the_kept_states() -> None:
    inputs = {name: t.requires_grad_() for name, t in make_inputs(1, 4, 3, 2).items()}
    y, _, states = torch.ops.mixers.selective_scan(*(inputs[name] for name in NAMES), False, False)
    assert not states.requires_grad, "nobody may differentiate them"
    with pytest.raises(RuntimeError, match="keep=False"):
        y.sum().backward()


def test_second_derivatives_are_refused_by_the_kernel_only() -> None:
    inputs = {name: t.requires_grad_() for name, t in make_inputs(1, 4, 3, 2).items()}
    for backend in ("reference", "cpu"):
        y = selective_scan(**inputs, backend=backend)
        (first,) = torch.autograd.grad(y.sum(), inputs["u"], create_graph=True)
        if backend == "reference":
            first.sum().backward()
        else:
            with pytest.raises(NotImplementedError, match="second derivative"):
                first.sum().backward()


def test_defaults_of_torch_do_not_matter() -> None:
    inputs = make_inputs(1, 40, 3, 2)
    expected = run(inputs, "cpu")
    backends.forget()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            y = selective_scan(**inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(y, expected["y"])
    assert backends.resolve("auto", "cpu") == ("cpu", "auto")


def test_an_empty_batch() -> None:
    assert selective_scan(**make_inputs(0, 4, 3, 2), backend="cpu").shape == (0, 4, 3)


def test_one_thread_makes_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pool(threads: int) -> None:
        raise AssertionError("a thread pool was asked for")

    monkeypatch.setattr(scan_cpu, "_pool", no_pool)
    run(make_inputs(3, 200, 300, 16), "cpu")


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (2, 5)),
        ("u", (2, 0, 4)),
        ("delta", (2, 5, 3)),
        ("A", (3, 6)),
        ("B", (2, 4, 6)),
        ("C", (2, 5, 1)),
        ("D", (1, 4)),
        ("delta_bias", (3,)),
        ("initial_state", (1, 4, 6)),
    ],
)
def test_shape_errors_name_the_input(name: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(2, 5, 4, 6)
    inputs[name] = -torch.ones(shape)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        selective_scan(**inputs)


def test_positive_A_is_refused() -> None:
    inputs = make_inputs(1, 5, 4, 6)
    inputs["A"][1, 2] = 0.5
    with pytest.raises(ValueError, match="A must not be positive"):
        selective_scan(**inputs, backend="cpu")
