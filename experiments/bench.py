"""Latency, throughput and memory of single token mixers against length and width.

A point is one mixer at one length and width, forward, or forward and backward. Beside each stands a limit:
the time that moving input, output and weights takes at the bandwidth of a large copy, or computing at the
speed of a large matrix product, both measured in the same run. Only a mixer that returns its input, or one
whose tokens stay in a cache, takes less.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.build import choose_backend
from experiments.machine import is_out_of_memory, processor_name, torch_device
from mixers import MIXERS
from mixers.base import TokenMixer
from mixers.registry import InputError

FORWARD, BOTH = "forward", "forward + backward"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PATIENCE = 20.0
"""A point that would take so many times the seconds of a point, going by the one before, is skipped."""

FAILED = "failed: "
"""What is said of a point without times begins with this where the reason was an error."""


@dataclass(frozen=True)
class Machine:
    """Where a bench ran, and what it can do at most.

    Attributes:
        device: "cpu" or "cuda".
        hardware: its name.
        threads: of torch on the CPU.
        dtype: of inputs and weights.
        torch: its version.
        bytes_per_second: of a large copy, reading and writing counted.
        macs_per_second: of a large matrix product.
    """

    device: str
    hardware: str
    threads: int
    dtype: str
    torch: str
    bytes_per_second: float
    macs_per_second: float


@dataclass(frozen=True)
class Point:
    """One measurement; times are None where `skipped` says why there are none.

    Attributes:
        mixer: as given, e.g. ``ssm(d_state=8)``.
        what: "forward" or "forward + backward".
        dim: channels.
        length: tokens.
        batch: sequences.
        backend: kernels of a scan, or "torch".
        macs: multiply-accumulates of the pass, the backward one counted twice.
        limit_ms: time that moving or computing takes at this machine's best.
        median_ms: of one pass.
        p20_ms: 20th percentile.
        p80_ms: 80th percentile.
        peak_bytes: most memory in tensors at any moment of a pass over the whole batch, weights and input
            included. What is held from pass to pass, such as the work space of cuBLAS, is not.
        skipped: what the table says in place of times, and why.
    """

    mixer: str
    what: str
    dim: int
    length: int
    batch: int
    backend: str
    macs: int
    limit_ms: float
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    peak_bytes: int | None = None
    skipped: str | None = None


def measure_machine(device: str, dtype: str, threads: int) -> Machine:
    """Find out what the machine can do at most.

    Raises:
        InputError: no such device.
    """
    place = torch_device(device)
    torch.set_num_threads(threads)
    on_gpu = place.type == "cuda"
    numbers = torch.zeros(2**28 if on_gpu else 2**25, device=place)
    target = torch.empty_like(numbers)
    side = 8192 if on_gpu else 1024
    matrix = torch.ones(side, side, device=place, dtype=DTYPES[dtype])
    copying = statistics.median(_times(lambda: target.copy_(numbers), place, 0.5))
    multiplying = statistics.median(_times(lambda: matrix @ matrix, place, 0.5))
    return Machine(
        place.type,
        torch.cuda.get_device_name(place) if on_gpu else processor_name(),
        threads,
        dtype,
        torch.__version__,
        2 * numbers.nbytes / copying,
        side**3 / multiplying,
    )


def bench(
    texts: Sequence[str],
    dims: Sequence[int],
    batches: Mapping[int, int],
    seconds: float,
    machine: Machine,
) -> Iterator[Point]:
    """Measure every mixer at every width and length, shortest first.

    Args:
        texts: of mixers.
        dims: channels.
        batches: sequences, by their length in tokens.
        seconds: to measure each point for; at least 3 passes are made.
        machine: where.

    Raises:
        InputError: an unknown mixer or option, or one that does not fit the width.
    """
    for text in texts:
        for dim in dims:
            mixer, backend = _build(text, dim, machine)
            slowest: dict[str, Point] = {}
            for length in sorted(batches):
                for what in (FORWARD, BOTH):
                    empty = _point(text, what, dim, length, batches[length], mixer, backend, machine)
                    point = _too_slow(empty, slowest.get(what), seconds) or _measure(
                        empty, mixer, seconds, machine
                    )
                    slowest[what] = point if point.skipped is None else slowest.get(what, point)
                    yield point


def _build(text: str, dim: int, machine: Machine) -> tuple[TokenMixer, str]:
    """The mixer in its causal form on a sequence, if it has one."""
    component = MIXERS.parse(text)
    mixer_class = MIXERS.load(component.name)
    if 1 not in mixer_class.grid_ranks:
        raise InputError(f"mixer {text} does not take sequences")
    torch.manual_seed(0)
    try:
        mixer = MIXERS.create(MIXERS.resolve(component, mixer_class.place_defaults(1, True)), dim, 1)
    except ValueError as error:
        raise InputError(f"mixer {text} at {dim} channels: {error}") from None
    place = torch.device(machine.device)
    mixer = mixer.to(place, DTYPES[machine.dtype])
    chosen = choose_backend(mixer, "auto", place)
    return mixer, ", ".join(f"{part}: {name}" for part, name in sorted(chosen.items())) or "torch"


def _point(
    text: str, what: str, dim: int, length: int, batch: int, mixer: nn.Module, backend: str, machine: Machine
) -> Point:
    """A point without its measurement."""
    size = torch.empty(0, dtype=DTYPES[machine.dtype]).element_size()
    weights = sum(parameter.numel() for parameter in mixer.parameters())
    tokens = batch * length * dim
    # forward: x read, y written; backward: x and dy read, dx written, weights read, their gradients written
    moved = (2 * tokens + weights if what == FORWARD else 5 * tokens + 3 * weights) * size
    macs = int(batch * mixer.macs((length,)) * (1 if what == FORWARD else 3))  # type: ignore[operator]
    limit = max(moved / machine.bytes_per_second, macs / machine.macs_per_second)
    return Point(text, what, dim, length, batch, backend, macs, 1e3 * limit)


def _too_slow(point: Point, before: Point | None, seconds: float) -> Point | None:
    """The point as skipped, if going by the length before it would take far too long."""
    if before is None or before.median_ms is None:
        return None
    tokens, tokens_before = point.batch * point.length, before.batch * before.length
    growth = point.macs / before.macs if before.macs else tokens / tokens_before
    expected = before.median_ms / 1e3 * growth
    if 3 * expected <= PATIENCE * seconds:
        return None
    return replace(point, skipped=f"skipped: a pass would take about {expected:.1f} s")


def _measure(point: Point, mixer: TokenMixer, seconds: float, machine: Machine) -> Point:
    place, dtype = torch.device(machine.device), DTYPES[machine.dtype]
    try:
        x = torch.randn(point.batch, point.length, point.dim, device=place, dtype=dtype)
        x.requires_grad_(point.what == BOTH)
        call = _pass(mixer, x, point.what)
        peak = _peak_bytes(call, mixer, x)
        times = sorted(1e3 * spent for spent in _times(call, place, seconds))
    except Exception as error:  # whatever a kernel raises, the others are measured
        said = f"{FAILED}{type(error).__name__}: {error}".splitlines()[0]
        return replace(point, skipped="out of memory" if is_out_of_memory(error) else said)
    return replace(
        point,
        median_ms=statistics.median(times),
        p20_ms=times[int(0.2 * (len(times) - 1))],
        p80_ms=times[round(0.8 * (len(times) - 1))],
        peak_bytes=peak,
    )


def _pass(mixer: TokenMixer, x: Tensor, what: str) -> Callable[[], object]:
    if what == FORWARD:

        def forward() -> Tensor:
            with torch.inference_mode():
                return mixer(x)

        return forward
    inputs = [x, *(parameter for parameter in mixer.parameters() if parameter.requires_grad)]
    gradient = torch.ones_like(x)
    return lambda: torch.autograd.grad(mixer(x), inputs, gradient, allow_unused=True)


def _times(call: Callable[[], object], place: torch.device, seconds: float) -> list[float]:
    """Seconds of each call, as many as fit into `seconds`, at least 3; a first one is not counted."""

    def finished() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter()

    call()
    times: list[float] = []
    begin = finished()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = finished()
        call()
        times.append(finished() - start)
    return times


def _peak_bytes(call: Callable[[], object], mixer: nn.Module, x: Tensor) -> int:
    held = sum(tensor.nbytes for tensor in (x, *mixer.parameters(), *mixer.buffers()))
    if x.device.type == "cuda":
        call()  # on the first one Triton tries its configurations, and cuBLAS takes its work space of 32 MiB
        before = torch.cuda.memory_allocated(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        call()
        return held + torch.cuda.max_memory_allocated(x.device) - before
    with LiveBytes() as live:
        call()
    return held + live.peak


class LiveBytes(TorchDispatchMode):
    """Bytes in tensors that operations made and that are still alive, and the most there ever were.

    What a compiled kernel uses inside of itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive = 0
        self._known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in given | self._known:  # neither a view nor in place
                    self._keep(storage)
        self.peak = max(self.peak, self._alive)
        return result

    def _keep(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it goes: its Python object lives exactly as long as its memory."""
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._alive += size

        def release() -> None:
            self._known.discard(key)
            self._alive -= size

        weakref.finalize(storage, release).atexit = False
