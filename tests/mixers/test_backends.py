"""Backend choice: by running, once, out loud; and the adapter to mamba-ssm, on a stand-in for its scan."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixers import backends
from mixers.scan import selective_scan
from mixers.scan_cuda import selective_scan_mamba_ssm
from mixers.scan_reference import selective_scan_reference


@pytest.fixture(autouse=True)
def forget_probes() -> Iterator[None]:
    """Each test probes anew and leaves nothing behind."""
    backends.forget()
    yield
    backends.forget()


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

    monkeypatch.setattr(sys.modules["mixers.scan_cpu"], "selective_scan_cpu", broken)
    assert backends.resolve("auto", "cpu") == ("reference", "auto; cpu: OSError: no compiler")
    with pytest.raises(backends.BackendUnavailable, match=r"no compiler.*Fix: pip install numba"):
        backends.resolve("cpu", "cpu")


def test_a_wrong_result_is_not_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object) -> tuple[Tensor, Tensor]:
        y, last_state = selective_scan_reference(*arguments)  # type: ignore[arg-type]
        return y * 1.01, last_state

    monkeypatch.setattr(sys.modules["mixers.scan_cpu"], "selective_scan_cpu", wrong)
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


# ---- the adapter to mamba-ssm ------------------------------------------------------------------------------


def stand_in(  # type: ignore[no-untyped-def]
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """mamba-ssm's signature and layout, channels before length, by the closed form of the recurrence."""
    assert all(t.is_contiguous() and t.dtype == u.dtype for t in (u, delta, B, C))
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert (delta_softplus, return_last_state, z) == (True, True, None)
    dt = F.softplus(delta.float() + delta_bias[:, None])  # (batch, dim, length)
    elapsed = dt.cumsum(-1)
    # h[t] = sum over s <= t of exp(A (elapsed[t] - elapsed[s])) dt[s] u[s] B[s]
    gap = (elapsed[..., :, None] - elapsed[..., None, :]).tril()
    decay = torch.exp(torch.einsum("bdts,dn->bdtsn", gap, A)) * torch.ones_like(gap).tril()[..., None]
    h = torch.einsum("bdtsn,bds,bns->bdtn", decay, dt * u.float(), B.float())
    y = torch.einsum("bdtn,bnt->bdt", h, C.float()) + D[:, None] * u.float()
    return y.to(u.dtype), h[:, :, -1]


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = stand_in  # type: ignore[attr-defined]
    for name, module in (
        ("mamba_ssm", ModuleType("mamba_ssm")),
        ("mamba_ssm.ops", ModuleType("mamba_ssm.ops")),
        ("mamba_ssm.ops.selective_scan_interface", interface),
    ):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("reverse", [False, True])
def test_adapter_layout(mamba_ssm: None, reverse: bool) -> None:
    inputs = tuple(t.requires_grad_() for t in make_inputs())
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


def test_adapter_gives_the_kernel_one_dtype(mamba_ssm: None) -> None:
    u, delta, A, B, C, D, bias = make_inputs()
    y, last_state = selective_scan_mamba_ssm(u.bfloat16(), delta, A, B, C.bfloat16(), D.bfloat16(), bias)
    assert y.dtype == torch.bfloat16
    assert last_state.dtype == torch.float32


def test_adapter_refuses_what_the_kernel_lacks(mamba_ssm: None) -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match="no initial_state"):
        selective_scan_mamba_ssm(*inputs, initial_state=torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="no float64"):
        selective_scan_mamba_ssm(*(t.double() for t in inputs))
    with pytest.raises(ValueError, match="d_state up to 256, got 300"):
        selective_scan_mamba_ssm(*make_inputs(1, 2, 1, 300))


def test_a_kernel_can_be_tried_out_in_the_middle_of_inference() -> None:
    """The first scan of a process may run where nothing can be differentiated; its probe must not suffer."""

    def needs_gradients() -> float:
        x = torch.ones(3, requires_grad=True)
        (gradient,) = torch.autograd.grad(x.square().sum(), x)
        return float((gradient - 2).abs().max())

    with torch.inference_mode():
        probe = backends.try_out("test", "torch", "cpu", "no fix", needs_gradients)
    assert probe.ran, probe.reason
    with torch.no_grad():
        assert backends.try_out("test", "torch", "cpu", "no fix", needs_gradients).ran
