"""Training steps of whole models on a GPU: MambaOut's sizes with three mixers, beside timm's models.

    python benchmarks/backbones_gpu.py             femto and tiny, bfloat16, compiled, 224 x 224; some minutes
    python benchmarks/backbones_gpu.py --batch 64 --no-compile

A step is forward under autocast, cross-entropy, backward and AdamW, in channels-last memory. Images per
second come from the median step, memory is the allocator's peak over the steps. `--device cpu --tiny
--no-compile` tries the script out without a GPU.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import build
from experiments.interface import TaskSpec
from experiments.machine import processor_name
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


def models(side: int, sizes: list[str]) -> dict[str, Callable[[], nn.Module]]:
    """What is measured, by name; built when its turn comes."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for size in sizes:
        for mixer in MIXERS_SHOWN:
            found[f"mambaout-{size}, {mixer}"] = partial(ours, size, mixer, side)
        for peer in PEERS[size]:
            sized = {"img_size": side} if peer.startswith("vit") else {}
            found[f"timm {peer}"] = partial(timm.create_model, peer, num_classes=CLASSES, **sized)
    return found


def measure(
    model: nn.Module, batch: int, side: int, steps: int, device: torch.device, compiled: bool
) -> tuple[float, float]:
    """Images per second, and the peak of memory in GiB (0 on the CPU)."""
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    backend = build.choose_backend(model, "auto", device)
    if backend:
        print(f"  {backend}", flush=True)
    network = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,), device=device)
    seconds = []
    for turn in range(WARM_UP + steps):
        if turn == WARM_UP and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, "bfloat16"):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return batch / statistics.median(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="femto alone, 32 x 32, to try the script out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --device cpu --tiny --no-compile tries the script out.")
    device = torch.device(options.device)
    side, sizes = (32, ["femto"]) if options.tiny else (224, ["femto", "tiny"])
    batch, steps = (2, 1) if options.tiny else (options.batch, options.steps)
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else processor_name()
    how = "compiled" if options.compile else "not compiled"
    print(f"{hardware}, torch {torch.__version__}, timm {timm.__version__}")
    print(f"bfloat16, {how}, batch {batch}, {side} x {side}, medians of {steps} steps")
    print(f"{'model':32s} {'parameters':>11s} {'images/s':>10s} {'peak GiB':>9s}")
    for name, make in models(side, sizes).items():
        model = make()
        params = sum(parameter.numel() for parameter in model.parameters())
        try:
            speed, peak = measure(model, batch, side, steps, device, options.compile)
            print(f"{name:32s} {params / 1e6:9.1f} M {speed:10.1f} {peak:9.2f}", flush=True)
        except torch.OutOfMemoryError:
            print(f"{name:32s} {params / 1e6:9.1f} M out of memory at this batch", flush=True)
        del model
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
