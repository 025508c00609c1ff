"""Speed of our mambaout-femto with the conv mixer against timm's, same weights, same run.

    python benchmarks/femto.py

Both models take turns, so that whatever else the machine does falls on both; the ratio is that of the
medians. A train step is forward, cross-entropy, backward and AdamW.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS
from experiments.skeletons.weights import from_timm
from mixers.conv import DepthwiseConv


def build_pair(size: int) -> dict[str, nn.Module]:
    """Two models with the same weights, drop path off."""
    theirs = timm.create_model("mambaout_femto")
    task = TaskSpec(input="image", channels=3, grid=(size, size), classes=1000)
    ours = SKELETONS.load("mambaout-femto")(make_conv, task, drop_path=0.0)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    return {"ours": ours, "timm": theirs}


def make_conv(dim: int, *, grid_rank: int, stage: int, layer: int) -> nn.Module:
    """The mixer of MambaOut."""
    return DepthwiseConv(dim, grid_rank)


@torch.inference_mode()
def infer(model: nn.Module, images: Tensor) -> None:
    """One forward pass in evaluation mode."""
    model.eval()
    model(images)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step of training."""
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def median_seconds(work: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median time of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(-2, rounds):  # two rounds of warm-up
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print sizes, agreement and ratios."""
    parser = argparse.ArgumentParser(description="mambaout-femto: ours against timm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    arguments = parser.parse_args()

    torch.manual_seed(0)
    models = build_pair(arguments.size)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(1000, (arguments.batch,))
    for name, model in models.items():
        print(f"{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    with torch.inference_mode():
        ours, theirs = (model.eval()(images) for model in models.values())
    largest, difference = theirs.abs().max(), (ours - theirs).abs().max()
    print(f"logits: largest {largest:.1e}, max abs difference {difference:.1e}")

    print(f"torch {torch.__version__}, timm {timm.__version__}, {tuple(images.shape)} float32")
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        inference = {name: partial(infer, model, images) for name, model in models.items()}
        training = {
            name: partial(train_step, model, optimizers[name], images, labels)
            for name, model in models.items()
        }
        for what, work in (("inference", inference), ("train step", training)):
            seconds = median_seconds(work, arguments.rounds)
            ratio = seconds["ours"] / seconds["timm"]
            times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items())
            print(f"{threads} threads, {what}: {times}, ours/timm {ratio:.2f}")


if __name__ == "__main__":
    main()
