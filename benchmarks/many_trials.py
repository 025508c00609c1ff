"""What a study of many trials costs beside its training: plan, statuses, report, and scheduling.

    python benchmarks/many_trials.py

No trial is trained: a stand-in for `run_trial` stores a result with made-up answers, through the same store.
Plan, statuses and report are whole commands, from the start of Python to its end; scheduling is what remains
of an executor's run when the stand-in's own time is taken off, per trial. Of worker processes and of Ray's
(uv sync --extra ray), whose start does not count, it is what they spend between two trials.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from experiments import executors, launch, plan, stored_plan
from experiments.runtime import Placement, Runtime
from experiments.store import Store, TrialFolder, write_bytes
from experiments.study import load
from experiments.trial import SCHEMA_VERSION, Trial

Executor = Literal["local", "ray"]
ROOT = Path(__file__).resolve().parent.parent
STUDY = """
question = "What does a study of many trials cost?"
varied = "mixer"
fixed = "all else"
cost = "nothing is trained"
answer = "seconds"
task = "digits(canvas=8)"
skeleton = "isotropic-nano"
baseline = "conv"
mixers = ["identity", "pooling", "conv", "ssm"]
margin = 1.0
seeds = {seeds}
"""


STAND_IN = """
import importlib.abc, importlib.util, sys


class StandIn(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, {file!r}) if name == "experiments.train" else None


sys.meta_path.insert(0, StandIn())
"""
"""In a `sitecustomize.py` that worker processes import first: this file in place of `experiments.train`."""


_ends: list[float] = []
"""Processor seconds of this process at the end of each of its trials."""


class Interrupted(Exception):
    """As in `experiments.train`."""


def run_trial(trial: Trial, folder: TrialFolder, *_: object) -> None:
    """In place of training: a result as a real trial stores it, drawn from the trial's seed and mixer."""
    started = time.perf_counter()
    between = time.process_time() - _ends[-1] if _ends else None
    folder.begin(trial)
    folder.report_progress(epoch=1, epochs=30, fraction=0.5, seconds=0.0)
    draw = np.random.default_rng([trial.seed, len(trial.mixer_text)])
    target = np.random.default_rng(trial.seed).integers(0, 10, 360)
    prediction = np.where(draw.random(360) < 0.95, target, (target + 1) % 10)
    example = np.random.default_rng(trial.seed).permutation(1797)[:360]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, example=example, target=target, prediction=prediction)
    write_bytes(folder.predictions, buffer.getvalue())
    rows = [f"{epoch},0.001,{1 / epoch:.4f},{90 + epoch / 30:.4f},{1 / epoch:.4f}" for epoch in range(1, 31)]
    head = "epoch,learning_rate,train_loss,validation_accuracy,validation_loss"
    write_bytes(folder.curve, "\n".join([head, *rows, ""]).encode())
    accuracy = 100 * float((prediction == target).mean())
    costs = {"params": 41_000, "params_mixer": 6_400, "params_rest": 34_600, "macs": 1_400_000}
    folder.finish(
        {
            "schema_version": SCHEMA_VERSION,
            "trial_id": trial.id,
            "trial": trial.to_dict(),
            "status": "ok",
            "error": None,
            "metrics": {split: {"accuracy": accuracy, "loss": 0.1} for split in ("validation", "test")},
            "selected_epoch": 30,
            "costs": {**costs, "macs_mixer": 300_000, "state_bytes": None},
            "data": {"fingerprint": f"data {trial.seed}", "train": 1077, "validation": 360, "test": 360},
            "provenance": {"backend": {}, "device": "cpu", "hardware": "none", "threads": 1, "versions": {}},
        },
        {
            "train_seconds": time.perf_counter() - started,
            "examples_per_second": 1_000.0,
            "peak_memory_bytes": 10**6,
            "host": f"pretended in process {os.getpid()}",
            "between_trials": between,
            "ended": time.time(),
        },
    )
    _ends.append(time.process_time())


def seconds_of(*arguments: str) -> tuple[float, float]:
    """Processor and wall seconds of one command."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, ROOT / "run_ablation.py", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1_000)
    options = parser.parse_args()
    from experiments.machine import processor_name  # with torch: not in the workers, until they ask for it

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / "many.toml"
        path.write_text(STUDY.format(seeds=options.trials // 4))
        runs = root / "runs"
        asked = ("--study", str(path), "--runs", str(runs))
        print(f"{processor_name()}, {options.trials} trials in 4 arms; processor seconds (wall seconds)")
        report("plan, for the first time", *seconds_of("plan", *asked))

        stored = runs / "studies" / "many" / "plan.json"
        planned = stored_plan.make("many", load(path), stored)
        stored_plan.write(planned, stored, plan.Origin("benchmark", str(path)))
        schedule(planned.trials(), Store(runs))
        schedule_elsewhere("local", planned.trials(), Store(root / "local"))
        schedule_elsewhere("ray", planned.trials(), Store(root / "ray"))
        report("plan", *seconds_of("plan", *asked))
        report("status", *seconds_of("status", *asked))
        report("report", *seconds_of("report", *asked))
        report("run, with nothing left to train", *seconds_of(*asked))


def report(what: str, used: float, wall: float) -> None:
    print(f"{what:<34} {used:6.2f} ({wall:.2f})", flush=True)


def schedule(trials: Sequence[Trial], store: Store) -> None:
    """One worker through the whole list, in this process, the stand-in's own processor time taken off."""
    inside = 0.0

    def timed(*arguments: object) -> None:
        nonlocal inside
        start = time.process_time()
        run_trial(*arguments)  # type: ignore[arg-type]
        inside += time.process_time() - start

    from experiments import machine, train  # noqa: F401 (which a worker imports once)

    start = time.process_time()
    launch.work(trials, store, Runtime(), "benchmark", run_trial=timed)
    used = time.process_time() - start - inside
    print(
        f"scheduling, one worker: {1000 * used / len(trials):.2f} ms of processor time per trial", flush=True
    )


def schedule_elsewhere(executor: Executor, trials: Sequence[Trial], store: Store) -> None:
    """Two worker processes, once they have started: processor and wall time from trial to trial."""
    start = time.time()
    with stand_in(store.root.with_name(f"{executor}-stand-in")):
        executors.find(executor).run(
            trials, store, Runtime(device="cpu"), Placement(executor, workers=2), lambda: None
        )
    assert launch.missing(trials, store) == []
    timings = [store.folder(trial.id).timing() for trial in trials]
    ends = [timing["ended"] for timing in timings]
    between = [timing["between_trials"] for timing in timings if timing["between_trials"] is not None]
    processor = sum(between) / len(between)
    wall = (max(ends) - min(ends)) / (len(ends) - 1)
    print(
        f"scheduling, {executor}, {len(timings) - len(between)} processes: {1000 * processor:.2f} ms of "
        f"processor time per trial in them, {1000 * wall:.1f} ms of wall time; "
        f"first result after {min(ends) - start:.0f} s",
        flush=True,
    )


@contextmanager
def stand_in(folder: Path) -> Iterator[None]:
    """Let Python processes that are started from here train nothing."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(STAND_IN.format(file=__file__))
    before = os.environ.copy()
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (folder, ROOT)))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
