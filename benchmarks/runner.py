"""What the study machinery adds to a bare training loop: checkpoints, records, seeding, progress.

    python benchmarks/runner.py

The same model, data, optimizer, schedule and evaluations, once in twenty lines of plain PyTorch and once
through `run_trial`, alternating; medians, one thread. Also the answer time of `--help`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments import stored_plan, study
from experiments.build import build_model, create_task
from experiments.machine import processor_name
from experiments.recipe import make_optimizer, make_scheduler
from experiments.runtime import Runtime
from experiments.store import Store
from experiments.tasks.base import Split
from experiments.train import run_trial
from experiments.trial import Trial

ROOT = Path(__file__).resolve().parent.parent


def bare_loop(trial: Trial) -> float:
    """Final test accuracy of the trial without any machinery."""
    torch.manual_seed(0)
    task = create_task(trial.task)
    data = task.load(trial.seed)
    model = build_model(trial)
    recipe = trial.train
    steps = data.sizes["train"] // recipe.batch_size
    optimizer = make_optimizer(model, recipe)
    scheduler = make_scheduler(optimizer, recipe, steps)

    def accuracy(split: Split) -> float:
        model.eval()
        with torch.inference_mode():
            batches = list(data.batches(split, 256))
            right = sum((model(batch.inputs).argmax(1) == batch.targets).sum().item() for batch in batches)
        return 100 * right / data.sizes[split]

    for epoch in range(recipe.epochs):
        model.train()
        for step, batch in enumerate(data.train_batches(epoch, recipe.batch_size)):
            scheduler.step_update(epoch * steps + step)
            loss = task.loss(model(batch.inputs), batch.targets, recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss.item()
        accuracy("validation")
    return accuracy("test")


def through_the_runner(trial: Trial) -> float:
    """The same through `run_trial`, files and all."""
    with tempfile.TemporaryDirectory() as folder:
        place = Store(Path(folder)).folder(trial.id)
        run_trial(trial, place, Runtime())
        result = place.result()
    assert result is not None
    return result["metrics"]["test"]["accuracy"]


def seconds(function: Callable[[Trial], float], trial: Trial) -> tuple[float, float]:
    start = time.process_time()
    value = function(trial)
    return time.process_time() - start, value


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "run_ablation.py", "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--mixer", default="conv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    default = study.load(study.find(study.DEFAULT))
    chosen = dataclasses.replace(
        default,
        train=study.changed_recipe(default.train, {"epochs": options.epochs}, "--"),
        mixers=(options.mixer,),
        arms=(),
        baseline=options.mixer,
    )
    trial = stored_plan.make("benchmark", chosen, Path("nowhere")).arms[0].template

    seconds(bare_loop, trial)  # warm-up
    bare, run = [], []
    for _ in range(options.rounds):
        bare.append(seconds(bare_loop, trial))
        run.append(seconds(through_the_runner, trial))
    print(f"{processor_name()}, torch {torch.__version__}, 1 thread")
    print(f"{options.mixer}, {options.epochs} epochs, processor time, medians of {options.rounds}")
    print(f"test accuracy: bare loop {bare[0][1]:.2f}, run_trial {run[0][1]:.2f}")
    plain, whole = (statistics.median(value for value, _ in each) for each in (bare, run))
    print(f"bare loop {plain:.2f} s, run_trial {whole:.2f} s, ratio {whole / plain:.3f} (target <= 1.05)")
    print(f"--help {statistics.median(help_seconds() for _ in range(5)):.2f} s of wall time (target < 0.6)")


if __name__ == "__main__":
    main()
