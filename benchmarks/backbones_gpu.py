"""Training steps of whole models on a GPU: MambaOut's sizes with three mixers, beside timm's models.

    python benchmarks/backbones_gpu.py             femto and tiny, bfloat16, compiled, 224 x 224; some minutes
    python benchmarks/backbones_gpu.py --sizes femto --batch 64 --no-compile
    python benchmarks/backbones_gpu.py --sizes femto --only "mambaout-femto, conv" "timm mambaout_femto"

A step is forward under autocast, cross-entropy, backward and AdamW, in channels-last memory. Images per
second come from the median step, memory is the allocator's peak over the steps. Every model has a process of
its own: those of a size compile side by side, and are measured one after the other when all have. `--device
cpu --tiny --no-compile` tries the script out without a GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import build
from experiments.interface import TaskSpec
from experiments.machine import is_out_of_memory, processor_name, release_memory
from experiments.recipe import autocast
from experiments.skeletons import SKELETONS, option_defaults
from mixers import MIXERS

CLASSES = 1000
MIXERS_SHOWN = ("conv", "ssm", "attention")
PEERS = {
    "femto": ("mambaout_femto", "convnext_femto", "convnext_pico", "vit_tiny_patch16_224"),
    "tiny": ("mambaout_tiny", "convnext_tiny", "vit_small_patch16_224"),
}
WARM_UP = 3


def ours(size: str, mixer: str, side: int) -> nn.Module:
    """MambaOut of that size with the mixer in every block, widths as released."""
    spec = TaskSpec("image", 3, (side, side), CLASSES)
    skeleton = SKELETONS.parse(f"mambaout-{size}")
    skeleton = SKELETONS.resolve(skeleton, option_defaults(skeleton))
    component = MIXERS.parse(mixer)
    component = MIXERS.resolve(component, MIXERS.load(mixer).place_defaults(2, False))
    return build.assemble((component,), skeleton, "benchmark", spec, seed=0)


def peer(name: str, size: str, side: int) -> nn.Module:
    """timm's model, with the stochastic depth of MambaOut's size: it costs a little in each block."""
    skeleton = SKELETONS.parse(f"mambaout-{size}")
    rate = option_defaults(skeleton)["drop_path"]
    sized = {"img_size": side} if name.startswith("vit") else {}
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, drop_path_rate=rate, **sized)
    return model


class Setting(NamedTuple):
    """What a step is of, and how many are timed."""

    device: str
    batch: int
    side: int
    steps: int
    compiled: bool


class Model(NamedTuple):
    """A row of the table."""

    name: str
    make: Callable[[], nn.Module]


def models(side: int, size: str) -> list[Model]:
    """What is measured of a size."""
    mambaout = [
        Model(f"mambaout-{size}, {mixer}", partial(ours, size, mixer, side)) for mixer in MIXERS_SHOWN
    ]
    return mambaout + [Model(f"timm {name}", partial(peer, name, size, side)) for name in PEERS[size]]


def training_step(model: nn.Module, setting: Setting) -> Callable[[], None]:
    """One step, on one batch of noise."""
    device = torch.device(setting.device)
    network = torch.compile(model) if setting.compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(setting.batch, 3, setting.side, setting.side, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (setting.batch,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, "bfloat16"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(step: Callable[[], None], setting: Setting) -> tuple[float, float | None]:
    """Images per second, and the peak of memory in GiB (None on the CPU, where nobody counts it)."""
    seconds = []
    for turn in range(WARM_UP + setting.steps):
        if turn == WARM_UP and setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if setting.device == "cuda" else None
    return setting.batch / statistics.median(seconds[WARM_UP:]), peak


class Ready(NamedTuple):
    """A model whose step has been taken once, and so is compiled."""

    model: nn.Module
    step: Callable[[], None]
    backend: str


def prepared(row: Model, setting: Setting) -> Ready | None:
    """The model, ready to be measured; None if there is not the memory for it."""
    device = torch.device(setting.device)
    try:
        model = row.make().to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        backend = ", ".join(build.choose_backend(model, "auto", device).values())
        step = training_step(model, setting)
        step()
        return Ready(model, step, backend)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def worker(row: Model, setting: Setting, parent: Connection) -> None:
    """A process: build and compile beside the others, say so; when told to, measure alone and answer."""
    ready = prepared(row, setting)
    free(ready)
    parent.send("compiled")
    parent.recv()
    ready = ready or prepared(row, setting)  # alone it may fit
    result = None if ready is None else measured(ready, setting)
    free(ready)
    parent.send(result or "out of memory at this batch")


def measured(ready: Ready, setting: Setting) -> str | None:
    """The row of the table behind the name; None if memory runs out."""
    params = sum(parameter.numel() for parameter in ready.model.parameters())
    try:
        speed, peak = measure(ready.step, setting)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    memory = "–" if peak is None else f"{peak:.2f}"
    return f"{params / 1e6:9.1f} M {speed:10.1f} {memory:>9s}  {ready.backend}"


def free(ready: Ready | None) -> None:
    """Leave the memory to the others."""
    if ready is not None:
        ready.model.zero_grad(set_to_none=True)
    release_memory()


def measure_all(rows: list[Model], setting: Setting, limit: float) -> bool:
    """Print a row for each; whether none failed or was not ready in `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    begin, running = time.perf_counter(), []
    for row in rows:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(row, setting, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        running.append((row, process, ours))
    ready = []
    for row, process, connection in running:
        said = heard(connection, limit - (time.perf_counter() - begin))
        if said is None:
            print(f"{row.name:32s} {'not ready in time' if process.is_alive() else 'failed'}", flush=True)
            process.terminate()
        else:
            ready.append((row, connection))
    print(f"{'ready':32s} {time.perf_counter() - begin:9.0f} s", flush=True)
    whole = len(ready) == len(rows)
    for row, connection in ready:
        connection.send("measure")
        result = heard(connection, limit)
        whole &= result is not None
        print(f"{row.name:32s} {result or 'failed'}", flush=True)
    return whole


def heard(connection: Connection, limit: float) -> str | None:
    """What a process says next; None if it is no more, or says nothing for so many seconds."""
    try:
        return str(connection.recv()) if connection.poll(max(0.0, limit)) else None
    except (EOFError, ConnectionResetError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=sorted(PEERS), default=sorted(PEERS))
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="rows of the table, by their names")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=300, help="seconds that a size may take to compile")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="femto alone, 32 x 32, to try the script out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --device cpu --tiny --no-compile tries the script out.")
    side, sizes = (32, ["femto"]) if options.tiny else (224, options.sizes)
    batch, steps = (2, 1) if options.tiny else (options.batch, options.steps)
    by_size = [models(side, size) for size in sizes]
    known = [row.name for rows in by_size for row in rows]
    unknown = sorted(set(options.only or ()) - set(known))
    if unknown:
        sys.exit(f"There is no {', '.join(unknown)} (known: {'; '.join(known)}).")
    if options.only:
        by_size = [[row for row in rows if row.name in options.only] for rows in by_size]
    setting = Setting(options.device, batch, side, steps, options.compile)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else processor_name()
    how = "compiled" if options.compile else "not compiled"
    print(f"{hardware}, torch {torch.__version__}, timm {timm.__version__}")
    print(f"bfloat16, {how}, batch {batch}, {side} x {side}, medians of {steps} steps")
    print(f"{'model':32s} {'parameters':>11s} {'images/s':>10s} {'peak GiB':>9s}  scan", flush=True)
    # the compiler's own processes, which would otherwise be one per processor for every model
    most = max(map(len, by_size))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(1 + (os.cpu_count() or 1) // most))
    whole = [measure_all(rows, setting, options.limit) for rows in by_size]
    if not all(whole):
        sys.exit("Some models failed.")


if __name__ == "__main__":
    main()
