"""What the CPU selective scan costs, next to the loops that it replaces. Anyone can run it:

    python benchmarks/scan.py            a minute or two
    python benchmarks/scan.py --full     runs the indexed loop at length 1024 as well: minutes, and gigabytes

The unit is nanoseconds of CPU time per (batch, length, dim, d_state) element, float32, one thread. A number
is the median of several calls (of one call with --full); the ratios compare numbers of the same run.

    cpu        ours, `selective_scan(..., backend="cpu")`
    unbind     a Python loop over tensors split by `unbind`
    indexed    the pattern of mamba-ssm's reference implementation, which reads `deltaA[:, :, i]`: the
               backward of each read fills a tensor of deltaA's size: the cost per element grows with length
"""

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.machine import processor_name
from mixers import backends
from mixers.scan import selective_scan

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def cpu(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(u, delta, A, B, C, backend="cpu")


def unbind(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    dt = F.softplus(delta)
    decay = torch.exp(dt[..., None] * A)  # (batch, length, dim, d_state)
    drive = (dt * u)[..., None] * B[:, :, None]
    h = torch.zeros_like(decay[:, 0])
    ys = []
    for decay_t, drive_t, C_t in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
        h = decay_t * h + drive_t
        ys.append(torch.einsum("bdn,bn->bd", h, C_t))
    return torch.stack(ys, dim=1)


def indexed(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    u, dt = u.transpose(1, 2), F.softplus(delta).transpose(1, 2)  # (batch, dim, length)
    deltaA = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    deltaB_u = torch.einsum("bdl,bln,bdl->bdln", dt, B, u)
    h = torch.zeros_like(deltaA[:, :, 0])
    ys = []
    for i in range(u.shape[2]):
        h = deltaA[:, :, i] * h + deltaB_u[:, :, i]
        ys.append(torch.einsum("bdn,bn->bd", h, C[:, i]))
    return torch.stack(ys, dim=1)


def make_inputs(batch: int, length: int, dim: int, d_state: int) -> list[Tensor]:
    """u, delta, A, B, C as Mamba's initialisation has them: Delta about 1e-3 to 1e-1, A = -1 .. -d_state."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    A = -torch.arange(1.0, d_state + 1).repeat(dim, 1)
    inputs = [normal(batch, length, dim), normal(batch, length, dim) - 4, A]
    inputs += [normal(batch, length, d_state), normal(batch, length, d_state)]
    return [tensor.requires_grad_() for tensor in inputs]


def cost(scan: Scan, shape: tuple[int, int, int, int], runs: int) -> tuple[float, float]:
    """(forward, forward + backward) in ns per element."""
    inputs = make_inputs(*shape)
    grad_y = torch.ones(shape[:3])

    def forward() -> None:
        with torch.no_grad():
            scan(*inputs)

    def forward_backward() -> None:
        torch.autograd.grad(scan(*inputs), inputs, grad_y)

    elements = torch.Size(shape).numel()
    medians = []
    for call in (forward, forward_backward):
        if runs > 1:
            call()  # compiles the kernel, or loads it
        times = []
        for _ in range(runs):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        medians.append(statistics.median(times) / elements * 1e9)
    return medians[0], medians[1]


def row(name: str, shape: tuple[int, int, int, int], costs: tuple[float, float]) -> None:
    print(f"{name:10s} {shape!s:22s} {costs[0]:9.3f} {costs[1]:12.3f}", flush=True)


def peak_mib() -> float:
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="also run the indexed loop at length 1024")
    full = parser.parse_args().full
    torch.set_num_threads(1)
    probe = backends.probe("cpu")
    if not probe.ran:
        sys.exit(f"the cpu kernel does not run here: {probe.reason}. Fix: {probe.fix}")
    from mixers.scan_cpu_kernel import LANES

    print(f"{processor_name()}, {LANES} float32 lanes, 1 thread")
    print(f"python {platform.python_version()}, torch {torch.__version__}, numba {probe.version}")

    print("\nCost against length, ours: a straight line has the same number in every row")
    print(f"{'':10s} {'(B, L, D, N)':22s} {'forward':>9s} {'fwd + bwd':>12s}   ns per element")
    for length in (64, 196, 1024, 4096, 16384):
        shape = (max(1, 4096 // length), length, 96, 16)
        row("cpu", shape, cost(cpu, shape, runs=15))

    shape = (1, 16384, 768, 16)
    before = peak_mib()
    cost(cpu, shape, runs=1)
    state_axis = 4 * torch.Size(shape).numel() / 2**20
    print(f"\nPeak memory at {shape}: {peak_mib() - before:.0f} MiB, inputs and gradients included,")
    print(f"where one tensor with a state axis would be {state_axis:.0f} MiB")

    print("\nOther shapes, ours")
    for shape in (
        (64, 64, 48, 16),
        (8, 196, 384, 16),
        (8, 1024, 192, 1),
        (8, 1024, 192, 4),
        (2, 512, 192, 64),
    ):
        row("cpu", shape, cost(cpu, shape, runs=15))

    print("\nAgainst Python loops")
    ours = {length: cost(cpu, (1, length, 192, 16), runs=15) for length in (196, 1024)}
    loops = {length: cost(unbind, (1, length, 192, 16), runs=5) for length in (196, 1024)}
    for length in (196, 1024):
        row("cpu", (1, length, 192, 16), ours[length])
        row("unbind", (1, length, 192, 16), loops[length])
        ratios = [loop / our for loop, our in zip(loops[length], ours[length], strict=True)]
        print(f"{'':10s} {'unbind / cpu':22s} {ratios[0]:8.0f}x {ratios[1]:11.0f}x")

    slow = {length: cost(indexed, (1, length, 192, 16), runs=3) for length in (64, 196)}
    for length, costs in slow.items():
        row("indexed", (1, length, 192, 16), costs)
    # the part of the cost that grows with length does so in proportion to it
    slope = (slow[196][1] - slow[64][1]) / (196 - 64)
    expected = slow[196][1] + slope * (1024 - 196)
    print(
        f"{'':10s} fwd + bwd grows by {slope:.3f} ns per element and token: {expected:.0f} expected at 1024,"
    )
    print(
        f"{'':10s} indexed / cpu: {slow[196][1] / ours[196][1]:.0f}x at 196, "
        f"{expected / ours[1024][1]:.0f}x expected at 1024"
    )
    if full:
        measured = cost(indexed, (1, 1024, 192, 16), runs=1)
        row("indexed", (1, 1024, 192, 16), measured)
        print(f"{'':10s} indexed / cpu: {measured[1] / ours[1024][1]:.0f}x at 1024, measured")


if __name__ == "__main__":
    main()
