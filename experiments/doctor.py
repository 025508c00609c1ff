"""Which kernels run on this machine: each is run, forward and backward, not only imported."""

from __future__ import annotations

import platform

import torch

from experiments.train import processor_name
from mixers import backends


def examine() -> str:
    """A table of scan backends with what was found, what ran, and the line that fixes what did not."""
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
        found = backends.probe(name)
        lines.append(
            f"{name:<14} {found.version or 'missing':<14} {'yes' if found.ran else 'no':<5} {found.reason}"
        )
        if found.fix:
            lines.append(f"{'':<35} fix: {found.fix}")
    lines += ["", f"auto takes {chosen!r} on {device} ({reason})"]
    return "\n".join(lines)
