"""Training throughput on real images: our loop with the `conv` arm against timm's model in timm's recipe.

    python benchmarks/train_images.py            some minutes on a CPU

Both train mambaout_femto on one folder of JPEGs (pieces of scikit-image's photographs, written first) with
the same batch, augmentation, mixup, optimizer and schedule, on one thread, read by as many processes. Each
run is a process of its own, the two take turns, and the ratio is that of the medians. What is timed is the
second half of an epoch: reading has started by then, validation is outside of it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments import build, study
from experiments.machine import processor_name
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS
from experiments.store import Store
from experiments.tasks import TASKS
from experiments.train import run_trial
from experiments.trial import Recipe
from mixers import MIXERS

PHOTOGRAPHS = ("grass", "gravel", "brick")
STUDY = "imagenet-ladder"
EPOCHS = 2


def write_folder(root: Path, side: int, train: int, validation: int) -> None:
    """Pieces of photographs as JPEGs, in ImageNet's layout."""
    random = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        with (files("skimage") / "data" / f"{name}.png").open("rb") as file, Image.open(file) as image:
            pixels = np.asarray(image.convert("L"))
        for split, count in (("train", train), ("val", validation)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                row, column = random.integers(0, np.array(pixels.shape) - side)
                piece = Image.fromarray(pixels[row : row + side, column : column + side]).convert("RGB")
                piece.save(folder / f"{number}.jpg", quality=90)


def recipe(batch: int) -> Recipe:
    """The paper's, for a short run."""
    paper = study.load(study.find(STUDY)).train
    changes = {"epochs": EPOCHS, "cooldown_epochs": 0, "warmup_epochs": 1, "batch_size": batch, "lr": 1e-3}
    return study.changed_recipe(paper, changes, "train.")


def ours(data: Path, batch: int, size: int, loaders: int) -> dict[str, float]:
    """Images per second, and the share of time that is spent waiting for them."""
    task = TASKS.parse(study.load(study.find(STUDY)).task)
    task = task.with_options({"data": str(data), "size": size})
    skeleton = SKELETONS.parse("mambaout-femto")
    trial = build.resolve(MIXERS.parse_pattern("conv"), skeleton, task, recipe(batch), seed=0)
    steps = build.create_task(trial.task).load(0).sizes["train"] // batch
    half = steps // 2
    with tempfile.TemporaryDirectory() as folder:
        place = Store(Path(folder)).folder(trial.id)
        run_trial(trial, place, Runtime(device="cpu", log_every=half, loaders=loaders, checkpoint_every=1e9))
        lines = [json.loads(line) for line in place.metrics.read_text().splitlines()]
    # windows that begin inside of an epoch and end in the same
    second = [line for line in lines if half // 2 < (line["step"] - half) % steps <= steps - half]
    speeds = [line["examples_per_second"] for line in second]
    waits = [line["waiting_seconds"] * line["examples_per_second"] / (half * batch) for line in second]
    return {"speed": statistics.median(speeds), "waiting": statistics.median(waits)}


def theirs(data: Path, batch: int, size: int, loaders: int) -> dict[str, float]:
    """Images per second of the loop of timm's train.py, its distributed and logging parts left out."""
    import timm
    from timm.data import FastCollateMixup, create_dataset, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    torch.set_num_threads(1)
    torch.manual_seed(0)
    paper = recipe(batch)
    device = torch.device("cpu")
    model = timm.create_model("mambaout_femto", num_classes=len(PHOTOGRAPHS), drop_path_rate=0.025)
    mixup = FastCollateMixup(
        mixup_alpha=paper.mixup,
        cutmix_alpha=paper.cutmix,
        prob=paper.mixup_prob,
        switch_prob=paper.mixup_switch_prob,
        label_smoothing=paper.label_smoothing,
        num_classes=len(PHOTOGRAPHS),
    )
    loader = create_loader(
        create_dataset("", root=str(data), split="train"),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        num_workers=loaders,
        collate_fn=mixup,
        pin_memory=False,
        device=device,
    )
    optimizer = create_optimizer_v2(
        model, opt=paper.opt, lr=paper.lr, weight_decay=paper.weight_decay, betas=paper.betas, eps=paper.eps
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=paper.sched,
        num_epochs=paper.epochs,
        warmup_epochs=int(paper.warmup_epochs),
        warmup_lr=paper.warmup_lr,
        min_lr=paper.min_lr,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    loss_function = SoftTargetCrossEntropy()
    half = len(loader) // 2
    speeds, updates = [], 0
    for epoch in range(paper.epochs):
        model.train()
        start = 0.0
        for step, (images, targets) in enumerate(loader):
            if step == half:
                start = time.perf_counter()
            loss = loss_function(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            loss.item()
            scheduler.step_update(num_updates=updates)
        speeds.append((len(loader) - half) * batch / (time.perf_counter() - start))
        scheduler.step(epoch + 1)
    return {"speed": statistics.median(speeds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="of the images in pixels, as stored and as seen")
    parser.add_argument("--loaders", type=int, default=1, help="processes that read images")
    parser.add_argument("--images", type=int, default=120, help="per class, to train on")
    parser.add_argument("--only", choices=("ours", "timm"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run = ours if options.only == "ours" else theirs
        print(json.dumps(run(options.data, options.batch, options.size, options.loaders)))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "timm": []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_folder(data, options.size, options.images, 20)
        for _ in range(options.rounds):
            for name, runs in found.items():
                command = [sys.executable, __file__, "--only", name, "--data", str(data)]
                sizes = [f"--{key}={getattr(options, key)}" for key in ("batch", "size", "loaders")]
                done = subprocess.run([*command, *sizes], stdout=subprocess.PIPE, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    speed = {name: statistics.median(run["speed"] for run in runs) for name, runs in found.items()}
    waiting = statistics.median(run["waiting"] for run in found["ours"])
    print(f"{processor_name()}, torch {torch.__version__}, 1 thread, {options.loaders} reading process(es)")
    size = f"{options.size} x {options.size}"
    print(f"mambaout_femto at {size}, batch {options.batch}, medians of {options.rounds}")
    print(
        f"ours {speed['ours']:.1f} images/s, timm {speed['timm']:.1f} images/s, "
        f"ratio {speed['ours'] / speed['timm']:.2f} (target >= 1.0)"
    )
    print(f"ours waits for data {waiting:.1%} of the time (target < 5 %)")


if __name__ == "__main__":
    main()
