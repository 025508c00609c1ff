"""Which implementation runs the selective scan: chosen once, by running it, and always on record.

`probe` runs a backend on a tiny problem, forward and backward, and compares it with the reference. Importing
a package proves nothing: mamba-ssm without its CUDA scan imports well and fails when called. `resolve` turns
a request into a backend; only "auto" may fall back. `calls` counts what really ran.
"""

import importlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Scan = Callable[..., tuple[Tensor, Tensor]]
"""scan(u, delta, A, B, C, D, delta_bias, initial_state, reverse) -> (y, last_state)"""

calls: Counter[str] = Counter()
"""How often `selective_scan` ran each backend in this process, except inside torch.compile."""


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run here; the message says how to get it."""


@dataclass(frozen=True)
class Backend:
    """One implementation; `lacks` names what it cannot do: "float64", "initial_state", "state_gradient"."""

    name: str
    module: str
    function: str
    devices: tuple[str, ...]  # device types, the usual one first; "any" for the rest
    package: str  # the distribution whose version identifies it
    fix: str  # one line: how to get it
    lacks: frozenset[str] = frozenset()

    def load(self) -> Scan:
        scan: Scan = getattr(importlib.import_module(self.module), self.function)
        return scan


@dataclass(frozen=True)
class Probe:
    """What `probe` found: `found` the package, `ran` forward and backward with the reference's results."""

    name: str
    found: bool
    version: str | None
    ran: bool
    reason: str
    fix: str


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "reference",
            "mixers.scan_reference",
            "selective_scan_reference",
            devices=("cpu", "any"),
            package="torch",
            fix="pip install torch",
        ),
        Backend(
            "cpu",
            "mixers.scan_cpu",
            "selective_scan_cpu",
            devices=("cpu", "meta"),
            package="numba",
            fix="pip install numba",
            lacks=frozenset({"float64"}),
        ),
        Backend(
            "mamba_ssm",
            "mixers.scan_cuda",
            "selective_scan_mamba_ssm",
            devices=("cuda",),
            package="mamba-ssm",
            # after 2.3.2.post1 a plain install builds no CUDA scan; that release's sources need torch < 2.14
            fix="MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm "
            "(2.3.2.post1 needs torch < 2.14)",
            lacks=frozenset({"float64", "initial_state", "state_gradient"}),
        ),
        Backend(
            "triton",
            "mixers.scan_triton",
            "selective_scan_triton",
            devices=("cuda",),
            package="triton",
            # the launcher that Triton compiles on first use is C, and includes Python.h
            fix="pip install triton, and a C compiler with Python's headers: apt-get install gcc python3-dev",
            lacks=frozenset({"float64"}),
        ),
    )
}

# what "auto" tries, in this order; any other device gets the reference
AUTO: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "reference"),
    "cuda": ("mamba_ssm", "triton", "reference"),
    "meta": ("cpu", "reference"),
}


class Choice(NamedTuple):
    """The backend that will run, why, and its function."""

    name: str
    reason: str
    scan: Scan


# Plain dicts, filled once: torch.compile can trace a lookup, while functools.cache makes it warn.
_choices: dict[tuple[str, str, frozenset[str]], Choice] = {}
_probes: dict[tuple[str, str], Probe] = {}


def forget() -> None:
    """Probe and choose anew on the next call."""
    _choices.clear()
    _probes.clear()


def resolve(requested: str, device: torch.device | str, needs: Collection[str] = ()) -> tuple[str, str]:
    """Return `(name, reason)` of the backend that will run.

    Args:
        requested: "auto" or a name in `BACKENDS`.
        device: where the tensors are.
        needs: what the call needs out of "float64", "initial_state" and "state_gradient".

    Raises:
        ValueError: unknown name, or a named backend that lacks something in `needs`.
        BackendUnavailable: a named backend that does not run on this device or machine; holds the fix.
    """
    name, reason, _ = choose(requested, device, needs)
    return name, reason


def choose(requested: str, device: torch.device | str, needs: Collection[str] = ()) -> Choice:
    """`resolve`, together with the function to call."""
    key = requested, torch.device(device).type, frozenset(needs)
    if key not in _choices:
        name, reason = _resolve_auto(*key[1:]) if requested == "auto" else _resolve_named(*key)
        _choices[key] = Choice(name, reason, BACKENDS[name].load())
    return _choices[key]


def _resolve_named(name: str, device: str, needs: frozenset[str]) -> tuple[str, str]:
    if name not in BACKENDS:
        raise ValueError(f"unknown scan backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    lacking = sorted(BACKENDS[name].lacks & needs)
    if lacking:
        raise ValueError(f"scan backend {name!r} has no {', '.join(lacking)}; use backend='reference'")
    result = probe(name, device)
    if not result.ran:
        raise BackendUnavailable(
            f"scan backend {name!r}: {result.reason}. Fix: {result.fix}, or use backend='auto'"
        )
    return name, "requested"


def _resolve_auto(device: str, needs: frozenset[str]) -> tuple[str, str]:
    passed_over = []
    for name in AUTO.get(device, ("reference",)):
        lacking = sorted(BACKENDS[name].lacks & needs)
        if lacking:
            passed_over.append(f"{name} has no {', '.join(lacking)}")
            continue
        result = probe(name, device)
        if result.ran:
            return name, "; ".join(["auto", *passed_over])
        passed_over.append(f"{name}: {result.reason}")
    raise BackendUnavailable(f"no scan backend runs on {device}: {'; '.join(passed_over)}")


def probe(name: str, device: str | None = None) -> Probe:
    """Run backend `name` on a tiny problem; once per process and device.

    `device` is a device type; by default the first one that the backend is for.
    """
    devices = BACKENDS[name].devices
    key = name, device or devices[0]
    if key not in _probes:
        _probes[key] = _probe(*key)
    return _probes[key]


def _probe(name: str, device: str) -> Probe:
    backend = BACKENDS[name]
    if {device, "any"} & set(backend.devices):
        return try_out(
            name, backend.package, device, backend.fix, lambda: _largest_error(backend.load(), device)
        )
    version = installed(backend.package)
    fix = f"move the tensors to {backend.devices[0]}"
    return Probe(name, version is not None, version, False, f"does not run on {device}", fix)


def installed(package: str) -> str | None:
    """The version of a distribution, None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def try_out(name: str, package: str, device: str, fix: str, largest_error: Callable[[], float]) -> Probe:
    """Run a kernel of `package`; `largest_error` compares what it computes with the reference."""
    version = installed(package)

    def outcome(ran: bool, reason: str, fix: str = fix) -> Probe:
        return Probe(name, version is not None, version, ran, reason, "" if ran else fix)

    if device == "cuda" and not torch.cuda.is_available():
        return outcome(False, "no GPU here", "run on a machine with an NVIDIA GPU")
    if version is None:
        return outcome(False, f"{package} is not installed")
    if device == "meta":
        return outcome(True, "shapes only")
    try:
        with torch.inference_mode(False), torch.enable_grad():  # wherever the first scan happens to be
            error = largest_error()
    except Exception as e:  # whatever a broken build raises is the reason
        return outcome(False, f"{type(e).__name__}: {e}".splitlines()[0])
    if not error < 1e-3:  # NaN fails too
        return outcome(False, f"differs from the reference by {error:.1e}")
    return outcome(True, "forward and backward agree with the reference")


def _largest_error(scan: Scan, device: str) -> float:
    """Difference from the reference, relative to the largest value of each output and gradient."""
    results = [_tiny_problem(scan, device), _tiny_problem(BACKENDS["reference"].load(), device)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def _tiny_problem(scan: Scan, device: str) -> list[Tensor]:
    batch, length, dim, d_state = 1, 100, 4, 4  # two chunks of every kernel, and not whole ones
    generator = torch.Generator().manual_seed(0)  # the global one is left alone

    def leaf(*shape: int) -> Tensor:
        # dtype and device are named: a probe may run while a model is being built on the meta device
        values = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return values.to(device).requires_grad_()

    # a probe may happen inside a no_grad block or an autocast region
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        u, delta, B, C = (leaf(batch, length, size) for size in (dim, dim, d_state, d_state))
        A, D, bias = leaf(dim, d_state), leaf(dim), leaf(dim)
        y, last_state = scan(u, delta, -A.exp(), B, C, D, bias, None, False)
        gradients = torch.autograd.grad(y.square().sum(), (u, delta, A, B, C, D, bias))
    return [y.detach(), last_state.detach(), *gradients]
