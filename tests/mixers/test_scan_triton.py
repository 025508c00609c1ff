"""The Triton kernels against the float64 reference: here in Triton's interpreter, with `-m gpu` on a GPU.

The interpreter runs a kernel's Python with NumPy, some 20 ms a token, so the shapes are tiny. That the
kernels pass Triton's compiler is tested without a GPU too; that its code is right, only a GPU can tell.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mixers import backends, scan_triton
from mixers.scan import selective_scan
from mixers.scan_reference import selective_scan_reference
from mixers.scan_triton import choose_sizes, selective_scan_triton

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds until a kernel is taken to hang
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")
OPTIONAL = ("D", "delta_bias", "initial_state")


@dataclass(frozen=True)
class Case:
    """One problem, and how it is cut up: `fine` is chunks of 8 tokens, of segments of 4, of groups of 2."""

    length: int
    reverse: bool = False
    batch: int = 1
    dim: int = 5
    d_state: int = 3
    without: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    fine: bool = True


def make_inputs(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, length, dim, d_state = case.batch, case.length, case.dim, case.d_state

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "u": normal(batch, length, dim).to(case.dtype),
        "delta": (normal(batch, length, dim) - 1).to(case.dtype),
        "A": -torch.exp(normal(dim, d_state)),
        "B": normal(batch, length, d_state).to(case.dtype),
        "C": normal(batch, length, d_state).to(case.dtype),
        "D": normal(dim),
        "delta_bias": normal(dim),
        "initial_state": normal(batch, dim, d_state),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in case.without}


def run(
    scan: Callable[..., tuple[Tensor, Tensor]],
    inputs: dict[str, Tensor],
    reverse: bool,
    through_the_state: bool = True,
) -> dict[str, Tensor]:
    """y, last_state and the gradient of each input, for a loss of both outputs, or of y alone."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y, last_state = scan(*(leaves.get(name) for name in NAMES), reverse)
    generator = torch.Generator().manual_seed(1)
    # weights that bfloat16 can hold, so that every dtype has the same loss
    weights = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in (y, last_state)]
    loss = (y * weights[0]).sum().to(last_state.dtype)
    if through_the_state:
        loss = loss + (last_state * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y.detach(), "last_state": last_state.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_close(results: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Largest difference, relative to the largest value of each tensor."""
    assert results.keys() == expected.keys()
    for name, value in results.items():
        assert value.shape == expected[name].shape, name
        # clamp: after one token and no initial state, the gradient of A is zero
        error = (value.double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-3)
        assert error <= tolerance, f"{name}: {error:.1e}"


def expect(inputs: dict[str, Tensor], reverse: bool, through_the_state: bool = True) -> dict[str, Tensor]:
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    return run(selective_scan_reference, exact, reverse, through_the_state)


# ---- how a scan is cut up ----------------------------------------------------------------------------------


@given(
    batch=st.integers(0, 10_000),
    length=st.integers(1, 10**6),
    dim=st.integers(1, 10_000),
    d_state=st.integers(1, 1000),
)
def test_sizes_cover_everything(batch: int, length: int, dim: int, d_state: int) -> None:
    sizes = choose_sizes(batch, length, dim, d_state)
    for power in (sizes.block_d, sizes.block_n, sizes.num_warps):
        assert power & (power - 1) == 0
    assert d_state <= sizes.block_n < 2 * d_state
    assert (sizes.blocks - 1) * sizes.block_d < dim <= sizes.blocks * sizes.block_d
    assert (sizes.chunks - 1) * sizes.chunk_tokens < length <= sizes.chunks * sizes.chunk_tokens
    assert sizes.chunk_tokens % scan_triton.SEGMENT == 0
    assert scan_triton.SEGMENT % scan_triton.GROUP == 0
    assert sizes.block_d * sizes.block_n <= 4096  # in the registers of at most 8 warps
    programs = batch * sizes.blocks * sizes.chunks
    assert programs <= max(batch * sizes.blocks, 2 * scan_triton.PROGRAMS)


def test_sizes_of_known_problems() -> None:
    # one warp holds 32 channels with 16 states each; a wide batch needs no chunks, a single sequence many
    assert choose_sizes(128, 196, 1536, 16) == (32, 16, 48, 224, 1, 1)
    assert choose_sizes(1, 65536, 1536, 16) == (32, 16, 48, 768, 86, 1)
    assert choose_sizes(1, 1, 1, 1) == (1, 1, 1, 64, 1, 1)
    assert choose_sizes(2, 100, 40, 64) == (32, 64, 2, 64, 2, 4)
    assert choose_sizes(2, 100, 40, 256) == (16, 256, 3, 64, 2, 8)


# ---- without Triton, without a GPU -------------------------------------------------------------------------


def test_nothing_needs_triton_to_be_there() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, mixers.scan, mixers.scan_triton as s\n"
        "x = torch.ones(1, 3, 2)\n"
        "inputs = x, x, -torch.ones(2, 1), x[..., :1], x[..., :1]\n"
        "assert mixers.scan.selective_scan(*inputs).shape == (1, 3, 2)\n"
        "try: s.selective_scan_triton(*inputs)\n"
        "except ImportError: sys.exit(0)\n"
        "sys.exit('no ImportError')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_probe_without_a_gpu() -> None:
    result = backends.probe("triton")
    assert (result.ran, result.reason) == (False, "no GPU here")
    assert "NVIDIA GPU" in result.fix


@pytest.mark.parametrize(
    ("mamba_ssm_runs", "needs", "name", "reason"),
    [
        (True, set(), "mamba_ssm", "auto"),
        (True, {"state_gradient"}, "triton", "auto; mamba_ssm has no state_gradient"),
        (False, set(), "triton", "auto; mamba_ssm: not built"),
        (False, {"float64"}, "reference", "auto; mamba_ssm has no float64; triton has no float64"),
    ],
)
def test_auto_on_cuda(
    mamba_ssm_runs: bool, needs: set[str], name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(name: str, device: str, operation: str) -> backends.Probe:
        return backends.Probe(name, True, "1", mamba_ssm_runs or name != "mamba_ssm", "not built", "")

    monkeypatch.setattr(backends, "probe", probe)
    monkeypatch.setattr(backends, "_choices", {})
    assert backends.resolve("auto", "cuda", needs) == (name, reason)


def test_float64_is_refused() -> None:
    inputs = make_inputs(Case(3))
    with pytest.raises(ValueError, match="computes in float32"):
        selective_scan_triton(**{**inputs, "A": inputs["A"].double()})


def test_flops_on_the_meta_device() -> None:
    leaves = [
        t.to("meta").requires_grad_() for t in make_inputs(Case(50, batch=2, dim=12, d_state=4)).values()
    ]
    elements = 2 * 50 * 12 * 4
    with FlopCounterMode(display=False) as forward:
        y, _, _ = torch.ops.mixers.selective_scan_triton(*leaves, False, True)
    assert forward.get_total_flops() == 6 * elements
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 12 * elements
    assert all(t.grad is not None and t.grad.shape == t.shape for t in leaves)


# ---- in Triton's interpreter -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: Triton reads TRITON_INTERPRET when it is imported, and for good."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("OMP_NUM_THREADS", "1")
            pool.submit(os.getpid).result()  # starts the process
        yield pool


@contextmanager
def cut(case: Case) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if case.fine:
            for name, tokens in (("MIN_CHUNK", 8), ("SEGMENT", 4), ("GROUP", 2)):
                patch.setattr(scan_triton, name, tokens)
        yield


def check_parity(case: Case, tolerance: float, through_the_state: bool = True) -> None:
    inputs = make_inputs(case)
    copies = {name: t.clone() for name, t in inputs.items()}
    with cut(case):
        results = run(selective_scan_triton, inputs, case.reverse, through_the_state)
    assert all(torch.equal(inputs[name], copies[name]) for name in inputs)  # nothing was written in place
    assert results["last_state"].dtype == torch.float32
    assert all(results[name].dtype == t.dtype for name, t in inputs.items())
    assert_close(results, expect(inputs, case.reverse, through_the_state), tolerance)


CASES = {
    **{f"length-{n}": Case(n) for n in (1, 2, 17, 63)},
    **{f"reverse-{n}": Case(n, reverse=True) for n in (1, 2, 17, 63)},
    "default-cut-196": Case(196, fine=False),
    "batch-and-blocks": Case(9, batch=2, dim=33, reverse=True),
    "one-channel-one-state": Case(11, dim=1, d_state=1),
    "many-states": Case(5, d_state=33),
    **{f"without-{name}": Case(10, without=(name,)) for name in OPTIONAL},
    "without-all": Case(10, without=OPTIONAL),
}


@pytest.mark.parametrize("name", CASES)
def test_parity(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check_parity, CASES[name], 2e-6).result(timeout=PATIENCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(interpreter: ProcessPoolExecutor, dtype: torch.dtype) -> None:
    """States and sums in float32: only the last rounding is coarse; the interpreter truncates bfloat16."""
    interpreter.submit(check_parity, Case(17, dtype=dtype), 2**-7).result(timeout=PATIENCE)


def test_gradient_through_y_alone(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_parity, Case(10), 2e-6, through_the_state=False).result(timeout=PATIENCE)


def check_step_size() -> None:
    """After one token from zero, with u = B = C = 1, y is Delta, and its gradient the slope of softplus."""
    delta = torch.linspace(-30, 30, 300).view(1, 1, 300).requires_grad_()
    one = torch.ones(1, 1, 1)
    y, _ = selective_scan_triton(one.expand(1, 1, 300), delta, -torch.ones(300, 1), one, one)
    (slope,) = torch.autograd.grad(y.sum(), delta)
    exact = delta.detach().double()
    torch.testing.assert_close(y.detach().double(), F.softplus(exact, threshold=100), rtol=3e-7, atol=0)
    torch.testing.assert_close(slope.double(), exact.sigmoid(), rtol=3e-7, atol=0)


def test_step_size_is_precise_where_it_is_small(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_step_size).result(timeout=PATIENCE)


def check_operator() -> None:
    """What autograd, fake tensors and torch.compile need to hold, with inputs that are not contiguous."""
    case = Case(9, batch=2)
    inputs = {name: t.repeat_interleave(2, dim=-1)[..., ::2] for name, t in make_inputs(case).items()}
    leaves = [t.requires_grad_() for t in inputs.values()]
    with cut(case):
        torch.library.opcheck(torch.ops.mixers.selective_scan_triton.default, (*leaves, True, True))
        y, _, checkpoints = torch.ops.mixers.selective_scan_triton(*leaves, False, False)
        assert checkpoints.numel() == 0
        with pytest.raises(RuntimeError, match="keep=False"):
            y.sum().backward()
        y, last_state = selective_scan_triton(*leaves)
        torch.autograd.grad(last_state.sum(), leaves[0], retain_graph=True)  # y has no gradient at all
        (first,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivative"):
            first.sum().backward()


def test_operator(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_operator).result(timeout=PATIENCE)


def check_memory_and_nan() -> None:
    case = Case(20)
    inputs = make_inputs(case)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        with cut(case):
            first, second = (run(selective_scan_triton, inputs, False) for _ in range(2))
            inputs["u"][0, 11, 3] = float("nan")
            y, _ = selective_scan_triton(*inputs.values())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert y[0, 11:, 3].isnan().all()
    assert y.isnan().sum() == 9


def test_reads_only_what_was_written_and_shows_nan(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_memory_and_nan).result(timeout=PATIENCE)


def check_empty_batch() -> None:
    inputs = make_inputs(Case(4, batch=0))
    results = run(selective_scan_triton, inputs, False)
    assert results["y"].shape == (0, 4, 5)
    assert all(results[name].shape == t.shape for name, t in inputs.items())
    assert not results["A"].any()


def test_an_empty_batch(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_empty_batch).result(timeout=PATIENCE)


# ---- through Triton's compiler -----------------------------------------------------------------------------

INTEGERS = {"rows", "length", "chunks", "chunk_tokens"}
INPUTS = {"u", "delta", "B", "C", "y", "grad_y", "du", "ddelta"}


@pytest.mark.parametrize("name", ["local_states", "local_adjoints", "carry", "forward", "backward"])
@pytest.mark.parametrize("shape", [(1536, 16), (7, 3)], ids=str)
def test_compiles_for_nvidia_gpus(
    name: str, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To machine code, for which Triton needs no GPU; it refuses much that the interpreter takes."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from mixers import scan_triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(scan_triton_kernel, name)
    if not isinstance(kernel, triton.JITFunction):
        pytest.skip("TRITON_INTERPRET is set")
    dim, d_state = shape
    sizes = choose_sizes(2, 1000, dim, d_state)
    values = {
        "DIM": dim,
        "D_STATE": d_state,
        "BLOCK_D": sizes.block_d,
        "BLOCK_N": sizes.block_n,
        "SEGMENT": scan_triton.SEGMENT,
        "GROUP": scan_triton.GROUP,
        "REVERSE": True,
        "KEEP": True,
        "ADJOINT": True,
    }
    values = {key: value for key, value in values.items() if key in kernel.arg_names}
    signature = {
        key: "constexpr"
        if key in values
        else "i32"
        if key in INTEGERS
        else "*bf16"
        if key in INPUTS
        else "*fp32"
        for key in kernel.arg_names
    }
    source = triton.compiler.ASTSource(kernel, signature, constexprs=values)
    compiled = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": sizes.num_warps})
    assert compiled.asm["cubin"]


# ---- on a GPU ----------------------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def backend_on_gpu(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Skips where the package is not installed; one that is there and does not run is a failure."""
    probe = backends.probe(name, "cuda")
    if not probe.found:
        pytest.skip(f"{name}: {probe.reason}. Fix: {probe.fix}")
    assert probe.ran, f"{name}: {probe.reason}. Fix: {probe.fix}"
    return backends.BACKENDS[name].load()


def check_on_gpu(name: str, case: Case, tolerance: float) -> None:
    scan = backend_on_gpu(name)
    inputs = {key: tensor.cuda() for key, tensor in make_inputs(case).items()}
    through_the_state = "state_gradient" not in backends.BACKENDS[name].lacks
    results = run(scan, inputs, case.reverse, through_the_state)
    assert_close(results, expect(inputs, case.reverse, through_the_state), tolerance)


# mamba-ssm uses fast exponentials, and its own tests allow errors of this size
TOLERANCES = {
    ("triton", torch.float32): 5e-5,
    ("triton", torch.bfloat16): 2**-8,
    ("mamba_ssm", torch.float32): 1e-3,
    ("mamba_ssm", torch.bfloat16): 2**-5,
}


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 196, 300, 1000, 3136])  # mamba-ssm's chunks have 2048 tokens
@pytest.mark.parametrize(("name", "dtype"), TOLERANCES, ids=str)
def test_lengths_on_gpu(name: str, dtype: torch.dtype, length: int, reverse: bool) -> None:
    without = ("initial_state",) if "initial_state" in backends.BACKENDS[name].lacks else ()
    case = Case(length, reverse, batch=2, dim=40, d_state=16, without=without, dtype=dtype)
    check_on_gpu(name, case, TOLERANCES[name, dtype])


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("d_state", [1, 5, 64, 256])  # 256 takes 8 warps, which exchange their sums
@pytest.mark.parametrize("dim", [1, 7, 300])
def test_widths_on_gpu(dim: int, d_state: int) -> None:
    check_on_gpu("triton", Case(63, batch=2, dim=dim, d_state=d_state), 5e-5)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("programs", [1, 16])  # one chunk of 1000 tokens, and eight of 128
def test_long_chunks_on_gpu(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_triton, "PROGRAMS", programs)
    check_on_gpu("triton", Case(1000, batch=1, dim=40, d_state=16), 5e-5)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("without", [*((name,) for name in OPTIONAL), OPTIONAL], ids=str)
def test_optional_inputs_on_gpu(without: tuple[str, ...]) -> None:
    check_on_gpu("triton", Case(196, batch=2, dim=40, d_state=16, without=without), 5e-5)


@pytest.mark.gpu
@on_gpu
def test_same_bits_in_every_run_on_gpu() -> None:
    scan = backend_on_gpu("triton")
    case = Case(1000, batch=4, dim=300, d_state=16)
    inputs = {name: tensor.cuda() for name, tensor in make_inputs(case).items()}
    torch.use_deterministic_algorithms(
        True
    )  # raises where torch itself would not be, and fills memory with NaN
    try:
        first, *others = (run(scan, inputs, case.reverse) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", ["triton", "mamba_ssm"])
def test_selective_scan_on_gpu_runs_what_was_asked_for(name: str) -> None:
    backend_on_gpu(name)
    inputs = make_inputs(Case(20, without=OPTIONAL))
    before = backends.calls.copy()
    y = selective_scan(**{key: tensor.cuda() for key, tensor in inputs.items()}, backend=name)
    assert backends.calls - before == {name: 1}
    assert y.device.type == "cuda"
