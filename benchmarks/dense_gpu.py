"""A training step of the paper's detector and segmenter, by mixer: time, memory, and what does not fit.

    python benchmarks/dense_gpu.py               Mask R-CNN at 800 x 1280, UPerNet from 512 x 512 on
    python benchmarks/dense_gpu.py --bfloat16    matrix products in bfloat16
    python benchmarks/dense_gpu.py --small       a small backbone on small images, also without a GPU

A step is forward, backward and AdamW's update of `mambaout-tiny` with the mixer in it. Times are medians;
memory is the peak of the allocator. In the last table UPerNet's images grow until a mixer runs out of memory
or a step takes longer than a minute.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import build
from experiments.machine import is_out_of_memory, processor_name
from experiments.recipe import make_optimizer
from experiments.skeletons import SKELETONS
from experiments.tasks import TASKS
from experiments.trial import Recipe, Trial
from mixers import MIXERS

ARMS = ("conv", "ssm", "attention")
RUNS, WARM_UP = 10, 3
OBJECTS = 7  # per image, as COCO has them on average
SIDES = (512, 768, 1024, 1536, 2048)
SMALL_SIDES = (64, 96)
LONGEST_STEP = 60.0  # seconds

Step = Callable[[], None]


def trial_of(mixer: str, skeleton: str, task: str) -> Trial:
    recipe = Recipe(lr=1e-4, label_smoothing=0.0)
    return build.resolve(
        MIXERS.parse_pattern(mixer), SKELETONS.parse(skeleton), TASKS.parse(task), recipe, seed=0
    )


def training_step(trial: Trial, batch: int, device: torch.device, dtype: torch.dtype) -> Step:
    """Everything allocated and ready; a call is one step."""
    task = build.create_task(trial.task)
    model = build.build_model(trial).to(device).train()
    build.choose_backend(model, "auto", device)
    optimizer = make_optimizer(model, trial.train)
    height, width = task.spec.grid
    if task.spec.output == "instances":
        inputs: object = [torch.randn(3, height, width, device=device) for _ in range(batch)]
        targets: object = [objects(height, width, task.spec.classes, device) for _ in range(batch)]
    else:
        inputs = torch.randn(batch, 3, height, width, device=device)
        targets = torch.randint(task.spec.classes, (batch, height, width), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = task.training_loss(model, inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def objects(height: int, width: int, classes: int, device: torch.device) -> dict[str, Tensor]:
    """Boxes of random places and sizes, masks that fill them."""
    random = torch.Generator().manual_seed(0)
    size = (0.1 + 0.4 * torch.rand(OBJECTS, 2, generator=random)) * torch.tensor([width, height])
    corner = torch.rand(OBJECTS, 2, generator=random) * (torch.tensor([width, height]) - size)
    boxes = torch.cat([corner, corner + size], dim=1)
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(1, classes + 1, (OBJECTS,), generator=random)
    return {"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)}


def measured(make_step: Callable[[], Step], device: torch.device, runs: int) -> str:
    """Milliseconds and GiB of a step, or why there are none."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = make_step()
        spent = [seconds(step, device)]
        if spent[0] <= LONGEST_STEP:
            spent = [seconds(step, device) for _ in range(WARM_UP + runs)][WARM_UP:]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "out of memory"
    if spent[0] > LONGEST_STEP:
        return f"over {LONGEST_STEP:.0f} s a step"
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if device.type == "cuda" else ""
    return f"{1e3 * statistics.median(spent):.1f} ms{peak}"


def seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(
    tasks: dict[str, tuple[str, str]], batch: int, device: torch.device, dtype: torch.dtype, runs: int
) -> None:
    """A row per task, a column per mixer. A mixer that did not fit is not tried on what follows."""
    print(f"\n| a step on {batch} images | {' | '.join(ARMS)} |\n|:---|{'---:|' * len(ARMS)}")
    given_up: dict[str, str] = {}
    for title, (skeleton, task) in tasks.items():
        cells = []
        for arm in ARMS:
            make = partial(training_step, trial_of(arm, skeleton, task), batch, device, dtype)
            cell = given_up.get(arm) or measured(make, device, runs)
            if cell.startswith(("out of", "over")):
                given_up[arm] = "–"
            cells.append(cell)
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bfloat16", action="store_true", help="matrix products")
    parser.add_argument("--batch", type=int, default=2, help="images in a step")
    parser.add_argument("--small", action="store_true", help="a small backbone on small images")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --small tries the script out on small images.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else processor_name()
    print(f"{hardware}, {dtype}, python {platform.python_version()}, torch {torch.__version__}")
    backbone, runs = ("mambaout-pico", 1) if options.small else ("mambaout-tiny", RUNS)
    short, long, crop, detector = (
        (64, 96, 64, "(head=mask-rcnn-slim)") if options.small else (800, 1280, 512, "")
    )
    detection = (backbone + detector, f"coco(short_side={short}, long_side={long})")
    segmentation = (backbone, f"ade20k(crop={crop})")
    table({f"Mask R-CNN, {short} x {long}": detection}, options.batch, device, dtype, runs)
    table({f"UPerNet, {crop} x {crop}": segmentation}, options.batch, device, dtype, runs)
    growing = {
        f"UPerNet, {side} x {side}, {side * side // 16:,} tokens in the first stage": (
            backbone,
            f"ade20k(crop={side})",
        )
        for side in (SMALL_SIDES if options.small else SIDES)
    }
    table(growing, options.batch, device, dtype, runs)


if __name__ == "__main__":
    main()
