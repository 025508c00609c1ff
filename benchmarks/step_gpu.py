"""What the mixers add to mamba-ssm's kernels on a GPU: a step of theirs beside the kernels called directly.

    python benchmarks/step_gpu.py            float32, a minute
    python benchmarks/step_gpu.py --bfloat16

A step is forward + backward of conv -> SiLU -> scan in its causal form, from (B, L, C) to (B, L, C), with the
same weights; the direct form is that of mamba-ssm's own blocks without gate and projections around them: the
activation inside the convolution's kernel, channels before length in Mamba's and after it in Mamba-2's. Times
are medians of calls that take turns. `--device cpu` tries the script out without a GPU: the direct form then
calls the CPU's kernels.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.machine import processor_name
from mixers import MIXERS, backends
from mixers.directions import ScanMixer
from mixers.scan import selective_scan
from mixers.ssd_scan import ssd_scan

RUNS, TINY_RUNS = 30, 3
SHAPES = [(32, 256, 384), (8, 1024, 768), (1, 16384, 768), (64, 1024, 768)]  # B, L, C
TINY = [(2, 64, 64)]
TARGET = 1.05


def direct_ssm(mixer: ScanMixer, x: Tensor) -> Tensor:
    """`ssm` by mamba-ssm's CUDA scan."""
    core = mixer.scans[0]
    u = convolved(mixer, x.mT.contiguous())  # (B, C, L)
    rank, d_state = core.dt_proj.in_features, core.A_log.shape[1]
    dt, B, C = F.linear(u.mT, core.x_proj.weight).split((rank, d_state, d_state), dim=-1)
    delta, A = F.linear(dt, core.dt_proj.weight), -core.A_log.float().exp()
    bias = core.dt_proj.bias.float()
    if x.device.type == "cpu":
        return selective_scan(u.mT, delta, A, B, C, core.D, bias)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    delta, B, C = (each.mT.contiguous() for each in (delta, B, C))
    y: Tensor = selective_scan_fn(u, delta, A, B, C, core.D.float(), None, bias, delta_softplus=True)
    return y.mT


def direct_ssd(mixer: ScanMixer, x: Tensor) -> Tensor:
    """`ssd` by mamba-ssm's Triton kernels."""
    core = mixer.scans[0]
    u = convolved(mixer, x.mT).mT  # (B, L, C)
    B, C, dt = F.linear(u, core.x_proj.weight).split(core.widths, dim=-1)
    heads = u.unflatten(2, (core.num_heads, core.head_dim))
    A = -core.A_log.float().exp()
    if x.device.type == "cpu":
        delta = F.softplus(dt + core.dt_bias)
        return ssd_scan(heads, delta, A, B, C, core.D, chunk_size=core.chunk_size)[0].flatten(2)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y: Tensor = mamba_chunk_scan_combined(
        heads,
        dt,
        A,
        B[:, :, None],
        C[:, :, None],
        core.chunk_size,
        D=core.D,
        dt_bias=core.dt_bias,
        dt_softplus=True,
    )
    return y.flatten(2)


def convolved(mixer: ScanMixer, x: Tensor) -> Tensor:
    """SiLU of the causal convolution, (B, C, L) -> (B, C, L), in the memory layout that it gets."""
    weight, bias = mixer.conv.weight, mixer.conv.bias
    if x.device.type == "cuda" and backends.resolve("auto", "cuda", operation="conv")[0] == "causal_conv1d":
        from causal_conv1d import causal_conv1d_fn

        y: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu")
        return y
    taps = weight.shape[1]
    y = F.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=len(weight))
    return F.silu(y[..., : x.shape[2]])


MIXER_AND_KERNELS: dict[str, tuple[str, str, Callable[[ScanMixer, Tensor], Tensor]]] = {
    "ssm": ("ssm(scan=forward, conv=causal, kernel_size=4)", "scan", direct_ssm),
    "ssd": ("ssd(scan=forward, conv=causal, kernel_size=4)", "ssd", direct_ssd),
}


def milliseconds(calls: list[Callable[[], object]], device: str, runs: int) -> list[float]:
    """Medians; the calls take turns, so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(runs + 3):  # the first ones compile, tune and warm up
        for call, spent in zip(calls, times, strict=True):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 3:
                spent.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(spent) for spent in times]


def compare(name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str, runs: int) -> float:
    """Print a row; return the ratio of mixer to kernels."""
    text, _, direct = MIXER_AND_KERNELS[name]
    torch.manual_seed(0)
    mixer: ScanMixer = MIXERS.create(MIXERS.parse(text), shape[2], 1).to(device, dtype)
    x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x)
    inputs = [x, *mixer.parameters()]

    def step(function: nn.Module | Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(function(x), inputs, gradient)

    calls = [step(mixer), step(lambda tokens: direct(mixer, tokens))]
    with torch.no_grad():
        y = mixer(x)
        difference = (y - direct(mixer, x)).abs().max() / y.abs().max()
    ours, theirs = milliseconds(calls, device, runs)
    print(
        f"{name:5s} {shape!s:18s} {ours:10.3f} {theirs:10.3f} {ours / theirs:7.3f} {float(difference):12.1e}"
    )
    return ours / theirs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bfloat16", action="store_true", help="weights and inputs")
    parser.add_argument("--mixer", nargs="+", choices=sorted(MIXER_AND_KERNELS), default=[*MIXER_AND_KERNELS])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one small shape, to try the script out")
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --device cpu --tiny tries the script out.")
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else processor_name()
    print(f"{hardware}, {dtype}, python {platform.python_version()}, torch {torch.__version__}")
    worst: dict[str, float] = {}
    print(f"{'':5s} {'(B, L, C)':18s} {'mixer ms':>10s} {'direct ms':>10s} {'ratio':>7s} {'difference':>12s}")
    for name in options.mixer:
        _, operation, _ = MIXER_AND_KERNELS[name]
        chosen, reason = backends.resolve("auto", options.device, operation=operation)
        if options.device == "cuda" and chosen != "mamba_ssm":
            print(f"{name:5s} not measured: {operation} runs on {chosen} ({reason})")
            continue
        for shape in TINY if options.tiny else SHAPES:
            runs = TINY_RUNS if options.tiny else RUNS
            worst[name] = max(worst.get(name, 0.0), compare(name, shape, dtype, options.device, runs))
    for name, ratio in worst.items():
        verdict = "met" if ratio <= TARGET else "missed"
        print(f"{name}: at most {ratio:.3f} times the kernels called directly; target {TARGET} {verdict}")


if __name__ == "__main__":
    main()
