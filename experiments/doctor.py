"""Which kernels run on this machine: each is run, forward and backward, not only imported."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch

from experiments.machine import processor_name
from mixers import backends

TITLES = {
    "scan": "selective scan (ssm, mingru)",
    "ssd": "Mamba-2's scan (ssd)",
    "conv": "causal convolution of 2 to 4 taps (causal-conv, and in front of the scans)",
}


def examine() -> Iterator[str]:
    """Lines of a table of kernels: what was found, what ran, and what fixes what did not.

    They come as they are known: some kernels are compiled and tuned on their first call.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    yield f"python {platform.python_version()}, torch {torch.__version__}, GPU: {gpu}"
    yield f"CPU: {processor_name()}, {torch.get_num_threads()} threads"
    for name, operation in backends.OPERATIONS.items():
        yield from ("", TITLES[name], f"  {'backend':<14} {'version':<14} {'runs':<5} what happened")
        for backend in operation.backends:
            yield from _rows(backends.probe(backend, operation=name))
        chosen, reason = backends.resolve("auto", device, operation=name)
        yield f"  auto takes {chosen!r} on {device} ({reason})"


def _rows(probe: backends.Probe) -> list[str]:
    version, runs = probe.version or "missing", "yes" if probe.ran else "no"
    rows = [f"  {probe.name:<14} {version:<14} {runs:<5} {probe.reason}"]
    return [*rows, f"  {'':<35} fix: {probe.fix}"] if probe.fix else rows
