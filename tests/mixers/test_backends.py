"""Backend choice: by running, once, out loud; and the adapters to CUDA packages, on stand-ins for them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from experiments.build import choose_backend
from mixers import MIXERS, InputError, backends, scan_cpu
from mixers.conv import causal_conv_reference
from mixers.conv_cuda import causal_conv_cuda
from mixers.s6 import SelectiveScan
from mixers.scan import selective_scan
from mixers.scan_cuda import selective_scan_mamba_ssm
from mixers.scan_reference import selective_scan_reference
from mixers.ssd_cuda import ssd_scan_mamba_ssm


@pytest.fixture(autouse=True)
def forget_probes() -> Iterator[None]:
    """Each test probes anew and leaves nothing behind."""
    backends.forget()
    yield
    backends.forget()


ignore_jit = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
"""By which torch decomposes operations that have no tangents."""


def make_inputs(batch: int = 2, length: int = 9, dim: int = 5, d_state: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u, delta, B, C = (normal(batch, length, size) for size in (dim, dim, d_state, d_state))
    return u, delta, -normal(dim, d_state).exp(), B, C, normal(dim), normal(dim)


# ---- probe and resolve -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_probe_runs_the_backend(name: str) -> None:
    result = backends.probe(name, "cpu")
    assert (result.found, result.ran, result.fix) == (True, True, "")
    assert result.version
    assert backends.probe(name, "cpu") is result  # once per process


def test_auto_takes_the_kernel_on_cpu_and_the_record_shows_it() -> None:
    assert backends.resolve("auto", "cpu") == ("cpu", "auto")
    before = backends.calls.copy()
    selective_scan(*make_inputs())
    assert backends.calls - before == {"cpu": 1}


def test_auto_passes_over_what_cannot_do_the_job() -> None:
    name, reason = backends.resolve("auto", "cpu", {"float64"})
    assert name == "reference"
    assert reason == "auto; cpu has no float64"


def test_auto_falls_back_when_the_kernel_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> tuple[Tensor, Tensor]:
        raise OSError("no compiler\nmore lines")

    monkeypatch.setattr(scan_cpu, "selective_scan_cpu", broken)
    assert backends.resolve("auto", "cpu") == ("reference", "auto; cpu: OSError: no compiler")
    with pytest.raises(backends.BackendUnavailable, match=r"no compiler.*Fix: pip install numba"):
        backends.resolve("cpu", "cpu")


def with_another_gradient(y: Tensor) -> Tensor:
    return y * 1.01 - y.detach() * 0.01


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y, last_state: (y * 1.01, last_state),
        lambda y, last_state: (y, last_state * 1.01),
        lambda y, last_state: (with_another_gradient(y), last_state),
    ],
    ids=["y", "last_state", "gradient"],
)
def test_a_wrong_result_is_not_a_backend(
    spoil: Callable[..., tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object) -> tuple[Tensor, Tensor]:
        return spoil(*selective_scan_reference(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(scan_cpu, "selective_scan_cpu", wrong)
    assert not backends.probe("cpu", "cpu").ran
    assert "differs from the reference" in backends.probe("cpu", "cpu").reason


def test_a_missing_package_is_reported_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(backends.BACKENDS["cpu"], package="no-such-package")
    monkeypatch.setitem(backends.BACKENDS, "cpu", missing)
    result = backends.probe("cpu", "cpu")
    assert (result.found, result.version, result.ran) == (False, None, False)
    with pytest.raises(
        backends.BackendUnavailable, match=r"no-such-package is not installed\. Fix: pip install numba"
    ):
        backends.resolve("cpu", "cpu")


def test_gpu_backend_on_cpu_tensors() -> None:
    with pytest.raises(backends.BackendUnavailable, match=r"does not run on cpu.*move the tensors to cuda"):
        selective_scan(*make_inputs(), backend="mamba_ssm")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_gpu_backend_without_a_gpu() -> None:
    with pytest.raises(backends.BackendUnavailable, match="no GPU here"):
        backends.resolve("mamba_ssm", "cuda")


def test_mamba_ssm_without_its_cuda_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plain install gives: the package is there and its scan fails when called."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends.importlib.metadata, "version", lambda package: "2.3.2")

    def fails(*arguments: object) -> float:
        raise RuntimeError("selective_scan_cuda is not built")

    monkeypatch.setattr(backends, "_largest_error", fails)
    with pytest.raises(backends.BackendUnavailable, match=r"not built.*MAMBA_KEEP_CUDA_BUILD=TRUE") as error:
        backends.resolve("mamba_ssm", "cuda")
    assert "\n" not in str(error.value)


def test_unknown_names_and_lacking_features_are_value_errors() -> None:
    with pytest.raises(ValueError, match="'numba'; known: auto, reference, cpu, mamba_ssm"):
        backends.resolve("numba", "cpu")
    with pytest.raises(ValueError, match="'mamba_ssm' has no initial_state, state_gradient"):
        backends.resolve("mamba_ssm", "cuda", {"initial_state", "state_gradient"})


def test_probing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    backends.probe("cpu", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_probe_works_without_gradients_and_under_autocast() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert backends.probe("cpu", "cpu").ran


def first_in(context: str, mixer: torch.nn.Module, x: Tensor) -> None:
    """Call the mixer where a probe that ran in the same surroundings would fail or see other numbers."""
    match context:
        case "jvp":
            torch.func.jvp(mixer, (x,), (x,))
        case "grad":
            torch.func.grad(lambda x: mixer(x).sum())(x)
        case "vmap":
            torch.func.vmap(mixer)(x[None])
        case "fake tensors":
            with FakeTensorMode(allow_non_fake_inputs=True):
                mixer(x)
        case "export":
            torch.export.export(mixer, (x,))
        case "packed tensors":
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.float()):
                mixer(x)
        case "checkpoint":
            checkpoint(mixer, x.requires_grad_(), use_reentrant=False).sum().backward()
        case "compile":
            torch.compiler.reset()
            torch.compile(mixer, backend="eager", fullgraph=True)(x)


@ignore_jit
@pytest.mark.filterwarnings("ignore:.*should not be instantiated", "ignore:.*performance drop")
@pytest.mark.parametrize(
    "context", ["jvp", "grad", "vmap", "fake tensors", "export", "packed tensors", "checkpoint", "compile"]
)
def test_where_the_first_call_comes_from_does_not_matter(context: str) -> None:
    mixer = MIXERS.create(MIXERS.parse("ssm(scan=forward, conv=causal, kernel_size=4)"), 4, 1)
    first_in(context, mixer, torch.randn(1, 5, 4))
    before = backends.calls.copy()
    mixer(torch.randn(1, 5, 4))
    assert backends.calls - before == {"cpu": 1, "conv: reference": 1}
    assert backends.resolve("auto", "cpu") == ("cpu", "auto")


def test_a_failure_of_the_reference_is_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(backends, "_largest_error", lambda *arguments: float("nan"))
        with pytest.raises(backends.BackendUnavailable, match="differs from the reference by nan"):
            backends.resolve("reference", "cpu")
    assert backends.resolve("reference", "cpu") == ("reference", "requested")


# ---- forward mode and torch.func ---------------------------------------------------------------------------


@ignore_jit
@pytest.mark.parametrize("text", ["ssm", "conv", "mamba2"])
def test_forward_mode_sees_through_every_operation(text: str) -> None:
    """The kernels would drop tangents, so that the derivative would be zero."""
    torch.manual_seed(0)
    mixer = MIXERS.create(MIXERS.parse(text), 4, 1)
    x, v = torch.randn(2, 1, 9, 4)
    mixer(x)
    _, tangent = torch.func.jvp(mixer, (x,), (v,))
    rows = torch.func.jacrev(mixer)(x).flatten(4).flatten(0, 3)  # by reverse mode
    torch.testing.assert_close(tangent.flatten(), rows @ v.flatten(), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        unpacked = forward_ad.unpack_dual(mixer(forward_ad.make_dual(x, v)))
    torch.testing.assert_close(unpacked.tangent, tangent)


@ignore_jit
def test_a_kernel_asked_for_by_name_refuses_to_drop_tangents() -> None:
    inputs = make_inputs()

    def scan(u: Tensor) -> Tensor:
        return selective_scan(u, *inputs[1:], backend="cpu")

    with pytest.raises(ValueError, match="scan backend 'cpu' has no forward_ad; use backend='reference'"):
        torch.func.jvp(scan, inputs[:1], inputs[:1])
    with pytest.raises(ValueError, match=r"scan backend 'cpu' has no torch\.func"):
        torch.func.grad(lambda u: scan(u).sum())(inputs[0])


@ignore_jit
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_forward_mode() -> None:
    mixer = MIXERS.create(MIXERS.parse("ssm"), 4, 1)
    x, v = torch.randn(2, 1, 9, 4)

    def tangent(x: Tensor, v: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(mixer, (x,), (v,))[1]
        return found

    torch.compiler.reset()
    compiled = torch.compile(tangent, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, v), tangent(x, v))


# ---- the adapter to mamba-ssm ------------------------------------------------------------------------------


def closed_form(  # type: ignore[no-untyped-def]
    u, delta, A, B, C, D, delta_bias
):
    """The recurrence written out, in mamba-ssm's layout: channels before length, B and C in one group."""
    B, C = B[:, 0], C[:, 0]
    dt = F.softplus(
        delta.float() + (0 if delta_bias is None else delta_bias[:, None])
    )  # (batch, dim, length)
    elapsed = dt.cumsum(-1)
    # h[t] = sum over s <= t of exp(A (elapsed[t] - elapsed[s])) dt[s] u[s] B[s]
    gap = (elapsed[..., :, None] - elapsed[..., None, :]).tril()
    decay = torch.exp(torch.einsum("bdts,dn->bdtsn", gap, A)) * torch.ones_like(gap).tril()[..., None]
    h = torch.einsum("bdtsn,bds,bns->bdtn", decay, dt * u.float(), B.float())
    y = torch.einsum("bdtn,bnt->bdt", h, C.float()) + (0 if D is None else D[:, None] * u.float())
    return y.to(u.dtype), h[:, :, -1]


class SelectiveScanCuda(ModuleType):
    """A stand-in for mamba-ssm's compiled module, which only a GPU can run: same signatures, same demands."""

    def fwd(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus):  # type: ignore[no-untyped-def]
        assert all(t.is_contiguous() and t.dtype == u.dtype for t in (u, delta, B, C))
        assert all(t is None or t.dtype == torch.float32 for t in (A, D, delta_bias))
        assert (delta_softplus, z) == (True, None)
        y, last_state = closed_form(u, delta, A, B, C, D, delta_bias)
        pairs = torch.stack((torch.full_like(last_state, torch.nan), last_state), dim=-1)
        return [y.contiguous(), pairs.flatten(2)[:, :, None]]  # one chunk

    def bwd(  # type: ignore[no-untyped-def]
        self, u, delta, A, B, C, D, z, delta_bias, dout, states, out, dz, delta_softplus, recompute_out_z
    ):
        assert all(t.is_contiguous() and t.dtype == u.dtype for t in (u, delta, B, C, dout))
        assert states.is_contiguous()
        assert states.shape == (len(u), len(A), 1, 2 * A.shape[1])
        assert (z, out, dz, delta_softplus, recompute_out_z) == (None, None, None, True, False)
        given = (u, delta, A, B, C, D, delta_bias)

        def gradients() -> list[torch.Tensor | None]:
            leaves = [None if t is None else t.detach().requires_grad_() for t in given]
            y, _ = closed_form(*leaves)
            return list(torch.autograd.grad(y, [t for t in leaves if t is not None], dout))

        with ThreadPoolExecutor(1) as thread:  # in an operator's own thread nothing can be differentiated
            found = iter(thread.submit(gradients).result())
        return [None if t is None else next(found).contiguous() for t in given]


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SelectiveScanCuda("selective_scan_cuda"))


@pytest.mark.parametrize("count", [5, 7])  # without D and delta_bias, with them
@pytest.mark.parametrize("reverse", [False, True])
def test_adapter_layout(mamba_ssm: None, reverse: bool, count: int) -> None:
    inputs = tuple(t.requires_grad_() for t in make_inputs())[:count]
    y, last_state = selective_scan_mamba_ssm(*inputs, reverse=reverse)
    y_expected, last_expected = selective_scan_reference(*inputs, reverse=reverse)
    torch.testing.assert_close(y, y_expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last_state, last_expected, rtol=1e-5, atol=1e-5)
    assert not last_state.requires_grad
    weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    ours = torch.autograd.grad((y * weight).sum(), inputs)
    theirs = torch.autograd.grad((y_expected * weight).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_adapter_compiles_in_one_graph(mamba_ssm: None) -> None:
    """mamba-ssm's own function would break it: the compiler cannot look into a compiled module."""
    inputs = tuple(t.requires_grad_() for t in make_inputs())
    compiled = torch.compile(selective_scan_mamba_ssm, fullgraph=True, backend="aot_eager")
    results = [each(*inputs, reverse=True)[0] for each in (compiled, selective_scan_mamba_ssm)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in results]
    torch.testing.assert_close(*gradients)


def test_adapter_gives_the_kernel_one_dtype(mamba_ssm: None) -> None:
    u, delta, A, B, C, D, bias = make_inputs()
    inputs = u.bfloat16(), delta, A, B, C.bfloat16(), D.bfloat16(), bias
    y, last_state = selective_scan_mamba_ssm(*(t.requires_grad_() for t in inputs))
    assert y.dtype == torch.bfloat16
    assert last_state is not None
    assert last_state.dtype == torch.float32
    # the kernel returns gradients in its own dtypes, autograd those of the inputs
    for given, gradient in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
        assert gradient.dtype == given.dtype


def test_adapter_leaves_out_the_last_state(mamba_ssm: None) -> None:
    inputs = make_inputs()
    y, none = selective_scan_mamba_ssm(*inputs, return_state=False)
    assert none is None
    torch.testing.assert_close(y, selective_scan_mamba_ssm(*inputs)[0], rtol=0, atol=0)


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_what_the_adapter_returns_can_be_written_into(
    mamba_ssm: None, reverse: bool, return_state: bool
) -> None:
    inputs = tuple(t.requires_grad_() for t in make_inputs())
    y, _ = selective_scan_mamba_ssm(*inputs, reverse=reverse, return_state=return_state)
    y_expected, _ = selective_scan_reference(*inputs, reverse=reverse)
    y *= 2
    y[:, 0] = 0
    weight = torch.ones_like(y).index_fill(1, torch.tensor(0), 0)
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad((2 * y_expected * weight).square().sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_adapter_refuses_what_the_kernel_lacks(mamba_ssm: None) -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match="no initial_state"):
        selective_scan_mamba_ssm(*inputs, initial_state=torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="no float64"):
        selective_scan_mamba_ssm(*(t.double() for t in inputs))
    with pytest.raises(ValueError, match="d_state up to 256, got 300"):
        selective_scan_mamba_ssm(*make_inputs(1, 2, 1, 300))


def test_adapter_refuses_a_second_derivative(mamba_ssm: None) -> None:
    """The kernel's part of it would be left out without a word."""
    inputs = tuple(t.requires_grad_() for t in make_inputs())
    y, _ = selective_scan_mamba_ssm(*inputs)
    torch.autograd.grad(y.square().sum(), inputs, retain_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)


def test_adapter_under_vmap(mamba_ssm: None) -> None:
    inputs = make_inputs()
    us = torch.stack([inputs[0], 2 * inputs[0]])
    ys = torch.func.vmap(lambda u: selective_scan_mamba_ssm(u, *inputs[1:])[0])(us)
    for u, y in zip(us, ys, strict=True):
        torch.testing.assert_close(y, selective_scan_mamba_ssm(u, *inputs[1:])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [False, True])
def test_the_operator_is_what_the_compiler_is_told(mamba_ssm: None, dtype: torch.dtype, keep: bool) -> None:
    u, delta, A, B, C, *vectors = make_inputs()
    scanned = (t.to(dtype).mT.contiguous() for t in (u, delta, B, C))
    u, delta, B, C = scanned
    call = torch.ops.mixers.selective_scan_mamba_ssm.default
    torch.library.opcheck(
        call, (u, delta, A, B, C, *vectors, None, False, keep), test_utils="test_faketensor"
    )


def test_auto_passes_over_a_kernel_for_more_states_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(backends, "run", lambda *call: chosen.append(call[2]) or (None, None))
    for d_state in (256, 257):
        selective_scan(*make_inputs(1, 2, 1, d_state))
    assert chosen == [set(), {"d_state above 256"}]
    assert chosen[1] <= backends.BACKENDS["mamba_ssm"].lacks
    assert not chosen[1] & backends.BACKENDS["triton"].lacks


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_kernel_can_be_probed_in_the_middle_of_inference(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    """The first scan of a process may run where nothing can be differentiated; its probe must not suffer."""
    with mode():
        probe = backends.probe("cpu", "cpu")
    assert probe.ran, probe.reason


# ---- Mamba-2's scan and the causal convolution -------------------------------------------------------------


def chunk_scan_stand_in(  # type: ignore[no-untyped-def]
    x, dt, A, B, C, chunk_size, D=None, initial_states=None, return_final_states=False
):
    """mamba-ssm's signature and layout, token by token."""
    assert all(t.is_contiguous() and t.dtype == x.dtype for t in (x, B, C))
    assert all(t.dtype == torch.float32 for t in (dt, A, D))
    assert chunk_size in (16, 32, 64, 128, 256)
    batch, _, heads, width = x.shape
    d_state = B.shape[3]
    h = torch.zeros(batch, heads, width, d_state) if initial_states is None else initial_states
    ys = []
    for t in range(x.shape[1]):
        written = torch.einsum("bh,bhp,bgn->bhpn", dt[:, t], x[:, t].float(), B[:, t].float())
        h = torch.exp(dt[:, t] * A)[..., None, None] * h + written
        ys.append(torch.einsum("bhpn,bgn->bhp", h, C[:, t].float()) + D[:, None] * x[:, t])
    y = torch.stack(ys, dim=1).to(x.dtype)
    return (y, h) if return_final_states else y


def causal_conv1d_stand_in(x, weight, bias=None, *, activation=None):  # type: ignore[no-untyped-def]
    """causal-conv1d's signature, layouts and limits."""
    assert 2 <= weight.shape[1] <= 4
    assert weight.dtype == bias.dtype
    channels_last = x.stride(1) == 1 and x.stride(2) > 1
    assert x.stride(2) == 1 or (channels_last and x.shape[1] % 8 == x.stride(2) % 8 == x.stride(0) % 8 == 0)
    past = F.pad(x, (weight.shape[1] - 1, 0)).to(weight)
    y = F.conv1d(past, weight[:, None], bias, groups=len(weight)).to(x.dtype)
    y = y.mT.contiguous().mT if channels_last else y
    return {None: y, "silu": F.silu(y)}[activation]


@pytest.fixture
def other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the packages, which only a GPU can run."""
    combined, conv = ModuleType("mamba_ssm.ops.triton.ssd_combined"), ModuleType("causal_conv1d")
    combined.mamba_chunk_scan_combined = chunk_scan_stand_in  # type: ignore[attr-defined]
    conv.causal_conv1d_fn = causal_conv1d_stand_in  # type: ignore[attr-defined]
    packages = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")
    for module in (combined, conv, *map(ModuleType, packages)):
        monkeypatch.setitem(sys.modules, module.__name__, module)


OTHERS = [("ssd", "mamba_ssm"), ("conv", "causal_conv1d")]


@pytest.mark.parametrize(("operation", "name"), OTHERS)
def test_the_adapters_of_the_other_operations(other_kernels: None, operation: str, name: str) -> None:
    """What a probe on a GPU compares: outputs, last states and all gradients."""
    backend = backends.OPERATIONS[operation].backends[name]
    assert backends._largest_error(operation, backend, "cpu") < 1e-5


def test_the_ssd_adapter_refuses_a_second_derivative(other_kernels: None) -> None:
    problem = backends.OPERATIONS["ssd"]
    leaves = [torch.randn(shape).requires_grad_() for shape in problem.shapes.values()]
    y, last_state = problem.call(problem.backends["mamba_ssm"].load(), *leaves)
    for result in (y, last_state):
        torch.autograd.grad(result.square().sum(), leaves[0], retain_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            torch.autograd.grad(result.square().sum(), leaves[0], create_graph=True)


def test_the_ssd_adapter_refuses_more_than_its_offsets_can_count(other_kernels: None) -> None:
    x = torch.empty(1).expand(2**15, 2**14, 2, 2)
    small = torch.empty(1)
    with pytest.raises(ValueError, match="count with 32 bits, and x has 2,147,483,648 numbers"):
        ssd_scan_mamba_ssm(x, small, small, small, small, small, None, 64, False)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("channels", [6, 8])
@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_causal_conv1d_in_either_layout(
    other_kernels: None, channels: int, taps: int, length: int, silu: bool
) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(2, length, 2 * channels)[..., ::2],
        torch.randn(channels, taps),
        torch.randn(channels),
    )
    inputs = x, weight, bias, silu
    expected = causal_conv_reference(*inputs)
    torch.testing.assert_close(causal_conv_cuda(*inputs), expected)
    y = causal_conv_cuda(*inputs, channels_first=True)
    torch.testing.assert_close(y, expected)
    assert y.mT.is_contiguous()


@pytest.mark.parametrize("conv", ["causal", "per-pass"])
@pytest.mark.parametrize("scan", ["mamba_ssm", "reference"])
def test_a_convolution_writes_what_the_scan_reads(
    other_kernels: None, monkeypatch: pytest.MonkeyPatch, conv: str, scan: str
) -> None:
    """Channels before length for mamba-ssm's scan, after it for any other."""
    read: list[Tensor] = []
    names = {"scan": scan, "conv": "causal_conv1d"}
    monkeypatch.setattr(backends, "_choice", lambda *call: (names[call[3]], ""))
    monkeypatch.setattr(SelectiveScan, "scan", lambda self, u, *others: read.append(u) or u)
    mixer = MIXERS.create(MIXERS.parse(f"ssm(conv={conv}, kernel_size=4)"), 8, 1)
    mixer(torch.randn(2, 5, 8))
    assert [u.mT.is_contiguous() for u in read] == [scan == "mamba_ssm"] * 2


@pytest.mark.parametrize("chunk_size", [1, 5, 64, 1000])
def test_ssd_on_mamba_ssm_takes_any_chunk_size_and_narrow_inputs(
    other_kernels: None, chunk_size: int
) -> None:
    torch.manual_seed(0)
    x, delta, B = torch.randn(1, 9, 2, 3).bfloat16(), torch.rand(1, 9, 2), torch.randn(1, 9, 4)
    rest = (-torch.ones(2), B, B, torch.ones(2), None, chunk_size)
    y, state = ssd_scan_mamba_ssm(x, delta, *rest, False)
    assert (y.dtype, state) == (torch.bfloat16, None)
    _, state = ssd_scan_mamba_ssm(x, delta, *rest, True)
    assert state is not None
    assert state.dtype == torch.float32


def test_the_other_adapters_refuse_what_their_kernels_lack(other_kernels: None) -> None:
    wide = torch.ones(1, 3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="no float64"):
        causal_conv_cuda(wide, wide[0].T, wide[0, 0], False)
    with pytest.raises(ValueError, match="2 to 4 taps, got 7"):
        causal_conv_cuda(wide.float(), torch.ones(2, 7), torch.ones(2), False)
    x, per_head = wide[..., None], wide[0, 0]
    with pytest.raises(ValueError, match="no float64"):
        ssd_scan_mamba_ssm(x, wide, -per_head, wide, wide, per_head, None, 4, False)


@pytest.mark.parametrize(("operation", "name"), OTHERS)
def test_the_other_kernels_without_their_packages(operation: str, name: str) -> None:
    with pytest.raises(backends.BackendUnavailable, match=rf"{operation} backend '{name}'.*Fix: .*auto"):
        backends.resolve(name, "cuda", operation=operation)
    with pytest.raises(backends.BackendUnavailable, match="does not run on cpu"):
        backends.resolve(name, "cpu", operation=operation)
    assert backends.resolve("auto", "cpu", operation=operation) == ("reference", "auto")


@pytest.mark.parametrize(("operation", "name"), [*OTHERS, ("scan", "mamba_ssm")])
def test_auto_takes_the_packages_kernels_on_cuda_for_what_they_can(
    operation: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "probe", lambda name, *_: backends.Probe(name, True, "1", True, "", ""))
    assert backends.resolve("auto", "cuda", operation=operation) == (name, "auto")
    for need in ("float64", "forward_ad", "torch.func"):
        chosen, reason = backends.resolve("auto", "cuda", {need}, operation)
        assert chosen == "reference"
        assert reason.startswith(f"auto; {name} has no {need}")


def test_a_model_is_told_its_backends() -> None:
    """What has no backend of the name asked for stays at auto; what has no choice is not recorded."""
    texts = ["ssm(scan=forward, conv=causal, kernel_size=4)", "ssd(scan=forward, conv=causal, kernel_size=7)"]
    model = torch.nn.ModuleList(MIXERS.create(MIXERS.parse(text), 4, 1) for text in texts)
    assert choose_backend(model, "cpu", torch.device("cpu")) == {"scan": "cpu"}
    ssm, ssd = model
    assert [each.backend for each in (ssm.scans[0], ssm.conv, ssd.scans[0])] == [
        "cpu",
        "reference",
        "reference",
    ]
    assert ssd.conv.operation is None  # 7 taps
    before = backends.calls.copy()
    for mixer in model:
        mixer(torch.randn(1, 5, 4))
    assert backends.calls - before == {"cpu": 1, "conv: reference": 1, "ssd: reference": 1}
    with pytest.raises(InputError, match=r"unknown backend 'numba'.*known: auto, reference, cpu"):
        choose_backend(model, "numba", torch.device("cpu"))
    with pytest.raises(InputError, match="conv backend 'causal_conv1d': does not run on cpu"):
        choose_backend(model, "causal_conv1d", torch.device("cpu"))


@pytest.mark.parametrize("name", list(MIXERS))
def test_a_mixer_runs_on_what_it_was_told(name: str) -> None:
    """Each of its parts that has a choice of kernels asks for the one by name."""
    mixer = MIXERS.create(MIXERS.resolve(MIXERS.parse(name), MIXERS.load(name).place_defaults(1, True)), 4, 1)
    parts = [each for each in mixer.modules() if isinstance(each, backends.HasBackend) and each.operation]
    for part in parts:
        part.backend = "abacus"
        with pytest.raises(ValueError, match=f"unknown {part.operation} backend 'abacus'"):
            mixer(torch.randn(1, 5, 4))
        part.backend = "auto"


def test_nvcc_for_one_kind_of_gpu(tmp_path: Path) -> None:
    """It drops every kind that a setup.py names and hands on the rest."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    nvcc.chmod(0o755)
    script = [str(Path(backends.__file__).parent / "nvcc_one_gpu.sh")]
    named = ["-c", "a b.cu", "-gencode", "arch=compute_75,code=sm_75", "-gencode=arch=compute_80,code=sm_80"]
    environment = {"PATH": os.environ["PATH"], "CUDA_HOME": str(tmp_path)}

    done = subprocess.run(
        [*script, *named, "-O3"], env=environment | {"SM": "90"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["-c", "a b.cu", "-O3", "-gencode", "arch=compute_90,code=sm_90"]

    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Say for instance SM=90" in done.stderr
