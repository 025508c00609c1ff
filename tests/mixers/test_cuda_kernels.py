"""mamba-ssm's kernels of Mamba-2's scan and causal-conv1d, against the references in float64.

They need a GPU: `pytest -m gpu`. Their adapters are tested on stand-ins in `test_backends.py`, the kernels of
the selective scan in `test_scan_triton.py`.
"""

import copy

import pytest
import torch
from torch import Tensor

from mixers import MIXERS, backends
from mixers.scan import selective_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("default"),  # what the packages warn of is no failure of theirs
]
LENGTHS = [1, 2, 63, 64, 196, 300, 1000, 3136]


def kernel_or_skip(operation: str, name: str) -> backends.Kernel:
    """Skips where the package is not installed; one that is there and does not run is a failure."""
    probe = backends.probe(name, "cuda", operation)
    if not probe.found:
        pytest.skip(f"{name}: {probe.reason}. Fix: {probe.fix}")
    assert probe.ran, f"{name}: {probe.reason}. Fix: {probe.fix}"
    return backends.OPERATIONS[operation].backends[name].load()


def check(
    operation: str, name: str, leaves: dict[str, Tensor], rest: tuple[object, ...], tolerance: float
) -> None:
    """All outputs, and the gradients of a loss of all of them, relative to the largest value of each."""
    kernel = kernel_or_skip(operation, name)
    reference = backends.OPERATIONS[operation].backends["reference"].load()
    results = []
    for call, dtype in ((kernel, None), (reference, torch.float64)):
        inputs = [each.detach().to(dtype or each.dtype).requires_grad_() for each in leaves.values()]
        outputs = call(*inputs, *rest)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        # weights that bfloat16 can hold, so that every dtype has the same loss
        weights = [torch.randn(each.shape, generator=generator).bfloat16().to(each) for each in outputs]
        loss = sum((each * weight).sum() for each, weight in zip(outputs, weights, strict=True))
        results.append([*(each.detach() for each in outputs), *torch.autograd.grad(loss, inputs)])
    labels = [*(f"output {i}" for i in range(len(outputs))), *leaves]
    for label, ours, exact in zip(labels, *results, strict=True):
        error = float((ours.double() - exact).abs().max() / exact.abs().max())
        assert error < tolerance, f"{label} differs by {error:.1e}"


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)], ids=str)
@pytest.mark.parametrize(("heads", "width", "d_state"), [(2, 64, 64), (3, 20, 16)])
def test_ssd(length: int, dtype: torch.dtype, tolerance: float, heads: int, width: int, d_state: int) -> None:
    """float32 products are TF32 on a GPU, so the tolerance is that of 11 bits."""
    torch.manual_seed(0)
    leaves = {
        "x": normal(2, length, heads, width).to(dtype),
        "delta": torch.nn.functional.softplus(normal(2, length, heads) - 2),
        "A": -normal(heads).exp(),
        "B": normal(2, length, d_state).to(dtype),
        "C": normal(2, length, d_state).to(dtype),
        "D": normal(heads),
        "initial_state": normal(2, heads, width, d_state),
    }
    check("ssd", "mamba_ssm", leaves, (64, True), tolerance)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-6)], ids=str)
@pytest.mark.parametrize(("channels", "taps", "silu"), [(24, 4, True), (24, 2, False), (7, 3, True)])
def test_causal_conv(
    length: int, dtype: torch.dtype, tolerance: float, channels: int, taps: int, silu: bool
) -> None:
    torch.manual_seed(0)
    leaves = {"x": normal(2, length, channels), "weight": normal(channels, taps), "bias": normal(channels)}
    leaves = {name: each.to(dtype) for name, each in leaves.items()}
    check("conv", "causal_conv1d", leaves, (silu,), tolerance)


LM = "scan=forward, conv=causal, kernel_size=4"
RUNS = {
    "causal-conv(kernel_size=4)": {"conv: causal_conv1d": 1},
    f"ssm({LM})": {"conv: causal_conv1d": 1, "mamba_ssm": 1},
    "ssm(scan=bidirectional, conv=none)": {"mamba_ssm": 2},
    "ssm(scan=bidirectional, conv=per-pass, kernel_size=4)": {"conv: causal_conv1d": 2, "mamba_ssm": 2},
    "mamba": {"conv: causal_conv1d": 1, "mamba_ssm": 1},
    "mamba(scan=bidirectional)": {"conv: causal_conv1d": 2, "mamba_ssm": 2},
    f"ssd({LM})": {"conv: causal_conv1d": 1, "ssd: mamba_ssm": 1},
    "mamba2": {"conv: causal_conv1d": 1, "ssd: mamba_ssm": 1},
    f"mingru({LM})": {"conv: causal_conv1d": 1, "mamba_ssm": 1},
}
"""Mixers, and how often each kernel is called in a pass."""


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("text", RUNS)
def test_mixers_run_on_what_is_there(text: str, autocast: bool) -> None:
    """And give every parameter the gradient that the references give in float64."""
    for call in RUNS[text]:
        operation, _, name = call.rpartition(": ")
        kernel_or_skip(operation or "scan", name)
    torch.manual_seed(0)
    mixer = MIXERS.create(MIXERS.resolve(MIXERS.parse(text)), 32, 1).cuda()
    exact = copy.deepcopy(mixer).double()
    x, weight = normal(2, 70, 32), normal(2, 70, 32)
    before = backends.calls.copy()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        y = mixer(x)
    assert backends.calls - before == RUNS[text]
    (y.float() * weight).sum().backward()
    expected = exact(x.double())
    (expected * weight.double()).sum().backward()
    tolerance = 5e-2 if autocast else 1e-2  # 8 bits; 11 bits of TF32
    assert_near(y, expected, tolerance)
    for (name, mine), theirs in zip(mixer.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None, name
        assert_near(mine.grad, theirs.grad, tolerance)


@pytest.mark.parametrize("name", ["ssm", "ssd"])
def test_a_second_derivative_is_refused(name: str) -> None:
    kernel_or_skip({"ssm": "scan"}.get(name, name), "mamba_ssm")
    mixer = MIXERS.create(MIXERS.parse(f"{name}({LM})"), 64, 1).cuda()
    x = normal(2, 64, 64).requires_grad_()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(mixer(x).sum(), x, create_graph=True)


def test_vmap_over_mamba_ssms_scan() -> None:
    kernel_or_skip("scan", "mamba_ssm")
    u, delta, A = normal(3, 2, 70, 8), normal(3, 2, 70, 8), -normal(8, 4).abs()
    B, C = normal(3, 2, 70, 4), normal(3, 2, 70, 4)

    def scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, backend="mamba_ssm")

    one_by_one = torch.stack([scan(*each) for each in zip(u, delta, B, C, strict=True)])
    torch.testing.assert_close(torch.func.vmap(scan)(u, delta, B, C), one_by_one)


def assert_near(ours: Tensor, exact: Tensor | None, tolerance: float) -> None:
    """Relative to the largest value."""
    assert exact is not None
    assert float(((ours.double() - exact).abs().max() / exact.abs().max()).detach()) < tolerance
