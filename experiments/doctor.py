"""Which kernels run on this machine: each is run, forward and backward, not only imported."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F

from experiments.machine import processor_name
from mixers import backends


def examine() -> str:
    """A table of kernels with what was found, what ran, and the line that fixes what did not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen, reason = backends.resolve("auto", device)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, GPU: {gpu}",
        f"CPU: {processor_name()}, {torch.get_num_threads()} threads",
        "",
        f"{'scan backend':<14} {'version':<14} {'runs':<5} what happened",
    ]
    for name in backends.BACKENDS:
        lines += _rows(backends.probe(name))
    lines += ["", f"auto takes {chosen!r} on {device} ({reason})"]
    lines += ["", f"{'beside them':<14} {'version':<14} {'runs':<5} what happened"]
    lines += _rows(probe_causal_conv1d())
    lines += [
        "",
        "No mixer needs causal-conv1d: mamba-ssm's own blocks do, and the tests compare ours with it.",
    ]
    return "\n".join(lines)


def _rows(probe: backends.Probe) -> list[str]:
    version, runs = probe.version or "missing", "yes" if probe.ran else "no"
    rows = [f"{probe.name:<14} {version:<14} {runs:<5} {probe.reason}"]
    return [*rows, f"{'':<35} fix: {probe.fix}"] if probe.fix else rows


def probe_causal_conv1d() -> backends.Probe:
    """Run causal-conv1d's kernel, and compare it with torch's convolution."""
    # the sources find no wheel for most versions of torch: they compile, for a quarter of an hour
    fix = "CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --no-build-isolation causal-conv1d (needs nvcc)"
    return backends.try_out("causal-conv1d", "causal-conv1d", "cuda", fix, _error_of_causal_conv1d)


def _error_of_causal_conv1d() -> float:
    from causal_conv1d import causal_conv1d_fn

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 8, 16), (8, 4), (8,))  # x (batch, dim, length), weight (dim, width), bias
    leaves = [torch.randn(shape, generator=generator).cuda().requires_grad_() for shape in shapes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, weight, bias = exact
    ours = F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=8)
    theirs = causal_conv1d_fn(*leaves)
    results = [theirs.detach(), *torch.autograd.grad(theirs.square().sum(), leaves)]
    expected = [ours.detach(), *torch.autograd.grad(ours.square().sum(), exact)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(results, expected, strict=True))
