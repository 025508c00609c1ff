"""What the scans of the SSM family cost on CPU, next to the single forward scan. Anyone can run it:

    python benchmarks/mixers_cpu.py      a few minutes

A number is CPU time of forward + backward, float32, one thread, without the convolution: the median of
several calls, taken in turn with those that it is compared with.

    ms       of one call
    ratio    to `ssm(scan=forward)` times the number of passes that visit each token: 1 means that
             directions and orders cost nothing by themselves
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.machine import processor_name
from mixers import MIXERS, backends
from mixers.directions import ScanMixer
from mixers.long_conv import DIRECT_LENGTH, fft_conv, toeplitz_conv

RUNS = 15
GRIDS = [(64, 8, 8, 96), (32, 14, 14, 192), (8, 32, 32, 192)]  # B, H, W, C
DIRECTIONS = [
    "ssm(scan=bidirectional, conv=none)",
    "ssm(scan=cross, conv=none)",
    "ssm(scan=local, window=2, conv=none)",
    "ssm(scan=local, window=7, conv=none)",
    "ssm(scan=continuous, conv=none)",
    "ssm(scan=atrous, atrous_step=2, conv=none)",
]
TARGET = 1.3


def forward_backward(mixer: nn.Module, grid: tuple[int, ...]) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(grid, generator=generator, requires_grad=True)
    weights = torch.randn(grid, generator=generator)
    inputs = [x, *mixer.parameters()]
    return lambda: torch.autograd.grad(mixer(x), inputs, weights)


def milliseconds(calls: list[Callable[[], object]]) -> list[float]:
    """Medians; the calls take turns, so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()  # compiles kernels, fills caches
    for _ in range(RUNS):
        for call, spent in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            spent.append(1e3 * (time.process_time() - start))
    return [statistics.median(spent) for spent in times]


def make(text: str, dim: int) -> ScanMixer:
    torch.manual_seed(0)
    mixer: ScanMixer = MIXERS.create(MIXERS.parse(text), dim, 2)
    return mixer


def compare(baseline: str, texts: list[str], grid: tuple[int, ...]) -> list[float]:
    """Print a table; return the ratios."""
    mixers = [make(text, grid[-1]) for text in (baseline, *texts)]
    base, *others = milliseconds([forward_backward(mixer, grid) for mixer in mixers])
    print(f"  {baseline:45s} {base:8.1f} ms", flush=True)
    ratios = []
    for text, mixer, spent in zip(texts, mixers[1:], others, strict=True):
        visits = mixer.pattern.visits
        ratios.append(spent / (visits * base))
        print(f"  {text:45s} {spent:8.1f} ms   ratio to {visits} x forward {ratios[-1]:5.2f}", flush=True)
    return ratios


def convolutions(batch: int, length: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, length, dim, generator=generator, requires_grad=True)
    kernel = torch.randn(dim, length, generator=generator, requires_grad=True)

    def call(convolve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(convolve(u, kernel).sum(), (u, kernel))

    matrix, fourier = milliseconds([call(toeplitz_conv), call(fft_conv)])
    print(f"  {(batch, length, dim)!s:20s} matrix {matrix:7.2f} ms   Fourier {fourier:7.2f} ms", flush=True)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    backend, reason = backends.resolve("auto", "cpu")
    print(f"{processor_name()}, 1 thread; scan backend {backend} ({reason})")
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    worst = 0.0
    for grid in GRIDS:
        print(f"\n(B, H, W, C) = {grid}")
        worst = max(worst, *compare("ssm(scan=forward, conv=none)", DIRECTIONS, grid))
        print("  Mamba-2's scan, next to Mamba's with as many states")
        for d_state in (16, 64):
            ssd = [f"ssd(d_state={d_state}, scan=forward, conv=none)"]
            ratios = compare(f"ssm(d_state={d_state}, scan=forward, conv=none)", ssd, grid)
            worst = max(worst, *ratios) if d_state == 64 else worst  # 64 is the default of ssd
        print("  The others, for scale")
        others = [f"{name}(scan=forward, conv=none)" for name in ("s4d", "mingru", "gru")]
        compare("ssm(scan=forward, conv=none)", others, grid)
    print(f"\nThe two forms of a long convolution (the matrix is used up to {DIRECT_LENGTH} tokens)")
    for batch in (8, 64):
        for length in (16, 32, 64, 128, 256):
            convolutions(batch, length, 128)
    verdict = "met" if worst <= TARGET else "missed"
    print(f"\nLargest ratio of a direction or of the default ssd: {worst:.2f}; target {TARGET} {verdict}")


if __name__ == "__main__":
    main()
