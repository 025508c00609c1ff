"""Which implementation runs an operation: chosen once, by running it, and always on record.

Three operations have more than one: the selective scan ("scan"), Mamba-2's scan ("ssd") and the causal
convolution along a sequence ("conv"). `probe` runs a backend on a tiny problem, forward and backward, and
compares it with the operation's reference. Importing a package proves nothing: mamba-ssm without its CUDA
scan imports well and fails when called. `resolve` turns a request into a backend; only "auto" may fall back.
`run` calls it, and `calls` counts what really ran.
"""

import importlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Collection, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

Kernel = Callable[..., Any]
"""Takes and returns what the operation's reference does."""

MAMBA_SSM_STATES = 256
"""The most that mamba-ssm's scan has per channel."""
MORE_STATES = f"d_state above {MAMBA_SSM_STATES}"
"""What a call with more needs of a backend."""
NOTHING: frozenset[str] = frozenset()
FLOAT64 = frozenset({"float64"})

calls: Counter[str] = Counter()
"""How often each backend ran in this process, except inside torch.compile; those of "ssd" and "conv" with
the operation's name in front: "ssd: mamba_ssm"."""


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run here; the message says how to get it."""


class HasBackend:
    """What a module that runs an operation has, beside being a module.

    Attributes:
        operation: a name in `OPERATIONS`; None where the work of the module has one implementation only.
        backend: which implementation runs.
    """

    operation: str | None = None
    backend: str = "auto"


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        devices: device types, the usual one first; "any" for the rest.
        package: the distribution whose version identifies it.
        fix: one line: how to get it.
        lacks: what it cannot do: "float64", "initial_state", "state_gradient"; and "forward_ad" and
            "torch.func" (its grad and jvp), which no kernel with a backward of its own can.
        tolerance: how far it may be from the reference, relative to the largest value of a result.
    """

    name: str
    module: str
    function: str
    devices: tuple[str, ...]
    package: str
    fix: str
    lacks: Set[str] = frozenset()
    tolerance: float = 1e-3

    def load(self) -> Kernel:
        kernel: Kernel = getattr(importlib.import_module(self.module), self.function)
        return kernel

    @cached_property
    def kernel(self) -> Kernel:
        """What was loaded: torch.compile, which cannot import, finds it here."""
        return self.load()


@dataclass(frozen=True)
class Operation:
    """What has several implementations.

    Attributes:
        backends: by name; "reference" is plain PyTorch and runs everywhere.
        auto: what "auto" tries on a type of device, in this order; any other device gets the reference.
        shapes: of the inputs of a tiny problem, by name, in the order in which a kernel takes them.
        call: run a kernel on such inputs; all that it returns.
    """

    backends: dict[str, Backend]
    auto: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    call: Callable[..., tuple[Tensor, ...]]

    def has_choice(self, device: str) -> bool:
        """Whether more than the reference may run on that type of device."""
        return len(self.auto.get(device, ())) > 1


@dataclass(frozen=True)
class Probe:
    """What `probe` found: `found` the package, `ran` forward and backward with the reference's results."""

    name: str
    found: bool
    version: str | None
    ran: bool
    reason: str
    fix: str


_TRANSFORMS = frozenset({"forward_ad", "torch.func"})


def _reference(module: str, function: str) -> Backend:
    return Backend("reference", module, function, ("cpu", "any"), package="torch", fix="pip install torch")


# after 2.3.2.post1 a plain install builds no CUDA scan; that release's sources need torch < 2.14, and nothing
# of it can be imported without the scan
_MAMBA_SSM = (
    "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm (2.3.2.post1 needs torch < 2.14;"
    " mixers/nvcc_one_gpu.sh compiles for one kind of GPU)"
)

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        _reference("mixers.scan_reference", "selective_scan_reference"),
        Backend(
            "cpu",
            "mixers.scan_cpu",
            "selective_scan_cpu",
            devices=("cpu", "meta"),
            package="numba",
            fix="pip install numba",
            lacks=_TRANSFORMS | {"float64"},
        ),
        Backend(
            "mamba_ssm",
            "mixers.scan_cuda",
            "selective_scan_mamba_ssm",
            devices=("cuda",),
            package="mamba-ssm",
            fix=_MAMBA_SSM,
            lacks=_TRANSFORMS | {"float64", "initial_state", "state_gradient", MORE_STATES},
        ),
        Backend(
            "triton",
            "mixers.scan_triton",
            "selective_scan_triton",
            devices=("cuda",),
            package="triton",
            # the launcher that Triton compiles on first use is C, and includes Python.h
            fix="pip install triton, and a C compiler with Python's headers: apt-get install gcc python3-dev",
            lacks=_TRANSFORMS | {"float64"},
        ),
    )
}
"""Of the selective scan."""

SSD_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        _reference("mixers.ssd_reference", "ssd_scan_reference"),
        Backend(
            "mamba_ssm",
            "mixers.ssd_cuda",
            "ssd_scan_mamba_ssm",
            devices=("cuda",),
            package="mamba-ssm",
            fix=_MAMBA_SSM,
            lacks=_TRANSFORMS | {"float64"},
            tolerance=1e-2,  # its matrix products of float32 are TF32, with 11 bits
        ),
    )
}

CONV_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        _reference("mixers.conv", "causal_conv_reference"),
        Backend(
            "causal_conv1d",
            "mixers.conv_cuda",
            "causal_conv_cuda",
            devices=("cuda",),
            package="causal-conv1d",
            # it finds no wheel for most versions of torch: it compiles, for a quarter of an hour
            fix="CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --no-build-isolation causal-conv1d (needs nvcc)",
            lacks=_TRANSFORMS | {"float64"},
        ),
    )
}

OPERATIONS: dict[str, Operation] = {
    # two chunks of every kernel that is ours or Mamba-2's, and not whole ones; heads and states of the usual
    # size, for which Mamba-2's kernels have to be tuned anyway
    "scan": Operation(
        BACKENDS,
        {
            "cpu": ("cpu", "reference"),
            "cuda": ("mamba_ssm", "triton", "reference"),
            "meta": ("cpu", "reference"),
        },
        {"u": (1, 100, 4), "delta": (1, 100, 4), "A": (4, 4), "B": (1, 100, 4), "C": (1, 100, 4)}
        | {"D": (4,), "delta_bias": (4,)},
        lambda scan, u, delta, A, *others: scan(u, delta, -A.exp(), *others, None, False, True),
    ),
    "ssd": Operation(
        SSD_BACKENDS,
        {"cuda": ("mamba_ssm", "reference")},
        {"x": (1, 100, 2, 64), "delta": (1, 100, 2), "A": (2,), "B": (1, 100, 64), "C": (1, 100, 64)}
        | {"D": (2,), "initial_state": (1, 2, 64, 64)},
        lambda scan, x, delta, A, *others: scan(x, delta.exp(), -A.exp(), *others, 64, True),
    ),
    "conv": Operation(
        CONV_BACKENDS,
        {"cuda": ("causal_conv1d", "reference")},
        {"x": (1, 100, 8), "weight": (8, 4), "bias": (8,)},
        lambda conv, *inputs: (conv(*inputs, True),),
    ),
}


_choices: dict[tuple[str, str, frozenset[str], str], tuple[str, str]] = {}
_probes: dict[tuple[str, str, str], Probe] = {}


def forget() -> None:
    """Probe, choose and load anew on the next call; for tests, which change what can run."""
    _choices.clear()
    _probes.clear()
    for operation in OPERATIONS.values():
        for backend in operation.backends.values():
            vars(backend).pop("kernel", None)


def resolve(
    requested: str, device: torch.device | str, needs: Collection[str] = (), operation: str = "scan"
) -> tuple[str, str]:
    """Return `(name, reason)` of the backend that will run.

    Args:
        requested: "auto" or a name among the operation's backends.
        device: where the tensors are.
        needs: what the call needs of what a backend may lack.
        operation: a name in `OPERATIONS`.

    Raises:
        ValueError: unknown name, or a named backend that lacks something in `needs`.
        BackendUnavailable: a named backend that does not run on this device or machine; holds the fix.
    """
    return _choice(requested, torch.device(device).type, frozenset(needs), operation)


def _choice(requested: str, device: str, needs: frozenset[str], operation: str) -> tuple[str, str]:
    """`resolve`, for a type of device."""
    key = requested, device, needs, operation
    if key in _choices:
        return _choices[key]
    choice = _resolve_auto(*key[1:]) if requested == "auto" else _resolve_named(*key)
    if not torch.compiler.is_exporting():  # as in `probe`
        _choices[key] = choice
    return choice


def run(operation: str, requested: str, needs: frozenset[str], first: Tensor, *others: Any) -> Any:
    """Resolve the backend from the first tensor's device and the active autograd transforms, count the call,
    and run it.
    """
    name = _loaded(requested, first.device.type, needs, operation)
    if not torch.compiler.is_compiling():  # a counter inside a compiled graph would recompile it on each call
        calls[name if operation == "scan" else f"{operation}: {name}"] += 1
    return OPERATIONS[operation].backends[name].kernel(first, *others)


Function = TypeVar("Function", bound=Callable[..., Any])


def _known_to_the_compiler(function: Function) -> Function:
    """torch.compile calls the function and takes the answer for a constant: it need not trace a probe.

    What the functions below read of torch's state is among its guards. torch.compiler.assume_constant_result
    does the same, but imports torch._dynamo first: 3 s.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_known_to_the_compiler
def in_forward_mode() -> bool:
    """Whether tensors may have tangents: inside `forward_ad.dual_level`, and so inside torch.func.jvp."""
    return forward_ad._current_level >= 0


@_known_to_the_compiler
def chosen(operation: str, requested: str, device: str) -> str:
    """The name of the backend that runs a call which needs nothing special; errors as in `resolve`."""
    return _choice(requested, device, NOTHING, operation)[0]


@_known_to_the_compiler
def _loaded(requested: str, device: str, needs: frozenset[str], operation: str) -> str:
    """The name of the backend that will run, whose kernel is loaded.

    A kernel drops tangents without a word, so a call that may have some needs "forward_ad".
    """
    if in_forward_mode():
        needs |= {"forward_ad"}
    transforms = _functorch.get_interpreter_stack()  # None outside of torch.func; vmap alone is no obstacle
    if transforms and any(each.key() == _functorch.TransformType.Grad for each in transforms):
        needs |= {"torch.func"}
    name, _ = _choice(requested, device, needs, operation)
    _ = OPERATIONS[operation].backends[name].kernel
    return name


def _resolve_named(name: str, device: str, needs: frozenset[str], operation: str) -> tuple[str, str]:
    backends = OPERATIONS[operation].backends
    if name not in backends:
        raise ValueError(f"unknown {operation} backend {name!r}; known: auto, {', '.join(backends)}")
    lacking = sorted(backends[name].lacks & needs)
    if lacking:
        raise ValueError(f"{operation} backend {name!r} has no {', '.join(lacking)}; use backend='reference'")
    result = probe(name, device, operation)
    if not result.ran:
        raise BackendUnavailable(
            f"{operation} backend {name!r}: {result.reason}. Fix: {result.fix}, or use backend='auto'"
        )
    return name, "requested"


def _resolve_auto(device: str, needs: frozenset[str], operation: str) -> tuple[str, str]:
    backends, passed_over = OPERATIONS[operation].backends, []
    for name in OPERATIONS[operation].auto.get(device, ("reference",)):
        lacking = sorted(backends[name].lacks & needs)
        if lacking:
            passed_over.append(f"{name} has no {', '.join(lacking)}")
            continue
        result = probe(name, device, operation)
        if result.ran:
            return name, "; ".join(["auto", *passed_over])
        passed_over.append(f"{name}: {result.reason}")
    raise BackendUnavailable(f"no {operation} backend runs on {device}: {'; '.join(passed_over)}")


def probe(name: str, device: str | None = None, operation: str = "scan") -> Probe:
    """Run backend `name` on a tiny problem; once per process and device.

    `device` is a device type; by default the first one that the backend is for. Two failures are not cached:
    the reference's, since nothing could run afterwards, and any inside torch.export, which replaces Python's
    own max and min while it looks, so that no kernel can be compiled then.
    """
    backend = OPERATIONS[operation].backends[name]
    key = name, device or backend.devices[0], operation
    if key in _probes:
        return _probes[key]
    found = _probe(backend, key[1], operation)
    if found.ran or not (name == "reference" or torch.compiler.is_exporting()):
        _probes[key] = found
    return found


def _probe(backend: Backend, device: str, operation: str) -> Probe:
    version = _installed(backend.package)

    def outcome(ran: bool, reason: str, fix: str = backend.fix) -> Probe:
        return Probe(backend.name, version is not None, version, ran, reason, "" if ran else fix)

    if not {device, "any"} & set(backend.devices):
        return outcome(False, f"does not run on {device}", f"move the tensors to {backend.devices[0]}")
    if device == "cuda" and not torch.cuda.is_available():
        return outcome(False, "no GPU here", "run on a machine with an NVIDIA GPU")
    if version is None:
        return outcome(False, f"{backend.package} is not installed")
    if device == "meta":
        return outcome(True, "shapes only")
    try:
        error = _largest_error(operation, backend, device)
    except Exception as e:  # whatever a broken build raises is the reason
        return outcome(False, f"{type(e).__name__}: {e}".splitlines()[0])
    if not error < backend.tolerance:  # NaN fails too
        return outcome(False, f"differs from the reference by {error:.1e}")
    return outcome(True, "forward and backward agree with the reference")


def _installed(package: str) -> str | None:
    """The version of a distribution, None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _largest_error(operation: str, backend: Backend, device: str) -> float:
    """`_compare` in a thread of its own.

    The first call of a process may come from anywhere: inference, autocast, a checkpointed block whose
    tensors are packed by hooks, a function that torch.func transforms, fake tensors, a trace. All of these
    belong to a thread, and a new one has none of them.
    """
    # which GPU is meant belongs to the thread as well
    start = (torch.cuda.set_device, (torch.cuda.current_device(),)) if device == "cuda" else (None, ())
    with ThreadPoolExecutor(1, "probe", *start) as thread:
        return thread.submit(_compare, operation, backend, device).result()


def _compare(operation: str, backend: Backend, device: str) -> float:
    """Difference from the reference, relative to the largest value of each output and gradient.

    The reference gets float64: in float32 a GPU may round its products to 11 bits.
    """
    problem = OPERATIONS[operation]
    found = _tiny_problem(problem, backend.load(), device, torch.float32)
    exact = _tiny_problem(problem, problem.backends["reference"].load(), device, torch.float64)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


def _tiny_problem(operation: Operation, kernel: Kernel, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)  # the global one is left alone

    def leaf(shape: tuple[int, ...]) -> Tensor:
        # dtype and device are named: the default dtype is everyone's
        values = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return values.to(device, dtype).requires_grad_()

    leaves = [leaf(shape) for shape in operation.shapes.values()]
    outputs = operation.call(kernel, *leaves)
    gradients = torch.autograd.grad(outputs[0].square().sum(), leaves)
    return [*(each.detach() for each in outputs), *gradients]
