"""What the selective scan costs on a GPU, by backend. Anyone who has one can run it:

    python benchmarks/scan_gpu.py            float32, a minute or two
    python benchmarks/scan_gpu.py --bfloat16

A row has the median of several calls in milliseconds, what a forward and backward call needs at its peak on
top of the inputs in MiB, and both times as multiples of Triton's in the same run. The reference is a Python
loop over tokens that keeps every state: it is left out above 1024 tokens.
"""

import argparse
import platform
import statistics
from collections.abc import Callable

import torch
from scan import make_inputs  # benchmarks/scan.py, which also puts the project on the path
from torch import Tensor

from experiments.machine import is_out_of_memory
from mixers import backends
from mixers.scan import selective_scan

SHAPES = (  # batch, length, dim, d_state
    (32, 256, 384, 16),
    (128, 196, 768, 16),
    (8, 1024, 1536, 16),
    (8, 4096, 1536, 16),
    (1, 4096, 1536, 16),
    (1, 16384, 1536, 16),
    (1, 65536, 1536, 16),
    (8, 1024, 1536, 64),
)
LONGEST_REFERENCE = 1024


def milliseconds(call: Callable[[], object], runs: int) -> float:
    """Median time on the GPU, after two calls that compile and warm up."""
    times = []
    for _ in range(runs + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def cost(
    backend: str, shape: tuple[int, int, int, int], dtype: torch.dtype, runs: int
) -> tuple[float, float, float]:
    """Forward ms, forward + backward ms, and MiB on top of the inputs."""
    u, delta, A, B, C = (tensor.detach().cuda() for tensor in make_inputs(*shape))
    inputs = [u.to(dtype), delta.to(dtype), A, B.to(dtype), C.to(dtype)]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    grad_y = torch.ones_like(leaves[0])

    def forward() -> None:
        with torch.no_grad():
            selective_scan(*leaves, backend=backend)

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(selective_scan(*leaves, backend=backend), leaves, grad_y)

    times = milliseconds(forward, runs), milliseconds(forward_backward, runs)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward_backward()
    return *times, (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bfloat16", action="store_true", help="u, delta, B and C in bfloat16")
    dtype = torch.bfloat16 if parser.parse_args().bfloat16 else torch.float32
    if not torch.cuda.is_available():
        print("There is no GPU here, so there is nothing to measure.")
        return
    probes = [backends.probe(name, "cuda") for name in ("mamba_ssm", "triton", "reference")]
    print(f"{torch.cuda.get_device_name()}, {dtype}, python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    for probe in probes:
        print(f"{probe.name} {probe.version or 'missing'}: {probe.reason}")
    print(f"\n{'(B, L, D, N)':22s} {'':10s} {'forward':>9s} {'fwd + bwd':>10s} {'MiB':>8s}  times triton's")
    names = [probe.name for probe in probes if probe.ran]
    for shape in SHAPES:
        costs: dict[str, tuple[float, float, float]] = {}
        for name in names:
            if name == "reference" and shape[1] > LONGEST_REFERENCE:
                continue
            try:
                costs[name] = cost(name, shape, dtype, runs=3 if name == "reference" else 20)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                print(f"{shape!s:22s} {name:10s} does not fit in memory")
        for name, (forward, both, mib) in costs.items():
            print(f"{shape!s:22s} {name:10s} {forward:9.2f} {both:10.2f} {mib:8.0f}", end="")
            if "triton" in costs:
                print(f"  {forward / costs['triton'][0]:.2f} {both / costs['triton'][1]:.2f}", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
