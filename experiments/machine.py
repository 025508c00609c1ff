"""The machine that a trial runs on, and what is recorded of it."""

from __future__ import annotations

import gc
import platform
import re
from typing import Any

import numpy as np
import timm
import torch

from experiments.code_version import code_version
from experiments.runtime import Runtime
from mixers.registry import InputError


def torch_device(name: str) -> torch.device:
    """The device asked for; "auto" is a CUDA GPU if there is one.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA GPU here; --device cpu runs anywhere")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def provenance(device: torch.device, runtime: Runtime, backend: dict[str, str], ranks: int) -> dict[str, Any]:
    """What a number was made with."""
    on_gpu = device.type == "cuda"
    return {
        "backend": backend,
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "threads": runtime.threads,
        "ranks": ranks,
        "micro_batch": runtime.micro_batch,
        "compile": runtime.compile,
        "channels_last": runtime.channels_last,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # a class of its own, which a checkpoint may not hold
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "code": code_version(),
    }


OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator.*memory|CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
    r"|Triton Error \[CUDA\]: out of memory",
    re.DOTALL,
)
"""What errors say that have no type of their own: torch's on a CPU, and those of libraries on a GPU."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might help."""
    said = OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        said and isinstance(error, RuntimeError)
    )


def release_memory() -> None:
    """Give back what an attempt left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def processor_name() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
