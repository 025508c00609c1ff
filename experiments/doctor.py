"""Which kernels run on this machine: each is run, forward and backward, not only imported."""

from __future__ import annotations

import platform

import torch

from experiments.machine import processor_name
from mixers import backends

TITLES = {
    "scan": "selective scan (ssm, mingru)",
    "ssd": "Mamba-2's scan (ssd)",
    "conv": "causal convolution of 2 to 4 taps (causal-conv, and in front of the scans)",
}


def examine() -> str:
    """A table of kernels with what was found, what ran, and the line that fixes what did not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, GPU: {gpu}",
        f"CPU: {processor_name()}, {torch.get_num_threads()} threads",
    ]
    for name, operation in backends.OPERATIONS.items():
        lines += ["", TITLES[name], f"  {'backend':<14} {'version':<14} {'runs':<5} what happened"]
        for backend in operation.backends:
            lines += _rows(backends.probe(backend, operation=name))
        chosen, reason = backends.resolve("auto", device, operation=name)
        lines.append(f"  auto takes {chosen!r} on {device} ({reason})")
    return "\n".join(lines)


def _rows(probe: backends.Probe) -> list[str]:
    version, runs = probe.version or "missing", "yes" if probe.ran else "no"
    rows = [f"  {probe.name:<14} {version:<14} {runs:<5} {probe.reason}"]
    return [*rows, f"  {'':<35} fix: {probe.fix}"] if probe.fix else rows
