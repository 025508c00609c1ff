"""One Ray task per trial, on whatever cluster Ray finds: RAY_ADDRESS, one that runs here, or a new one.

The runs folder lies on a file system that all nodes share: results and checkpoints go through it. So does
this project with its environment, or every node has the same one: tasks run by the Python that runs here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.launch import (
    POLL,
    RETRIES,
    finished,
    missing,
    processors,
    record_death,
    record_failure,
    settled,
    work,
)
from experiments.runtime import Placement, Runtime
from experiments.store import DiskFull, Store
from experiments.trial import Trial
from mixers.registry import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
STOP_GRACE = 20.0  # seconds that tasks get to save their checkpoints


def check(runtime: Runtime, placement: Placement) -> None:
    """Nothing is known before the cluster is reached."""


def run(
    trials: Sequence[Trial],
    store: Store,
    runtime: Runtime,
    placement: Placement,
    watch: Callable[[], None],
) -> None:
    """Run the missing trials as Ray tasks.

    A task whose worker or node dies is started elsewhere and goes on from its checkpoint, `RETRIES` times.

    Args:
        trials: all of them; the finished are skipped.
        store: where; on a file system that every node sees under the same path.
        runtime: how.
        placement: what one trial takes, and how many run at once.
        watch: called a few times a second.

    Raises:
        InputError: no cluster to be reached, or one whose nodes do not see the store.
        KeyboardInterrupt: after the tasks have saved their checkpoints.
        DiskFull: likewise, because one of them could not write.
    """
    to_do = missing(trials, store)
    if not to_do:
        return
    ray = _connect()
    session = f"{os.getpid()}-{time.time_ns()}"
    gpus = _gpus_per_trial(ray, runtime, placement)
    cpus = processors(to_do, runtime)
    _check_room(ray, cpus, gpus)
    task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
    waiting = list(reversed(to_do))
    running: dict[Any, Trial] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (placement.workers or len(to_do)):
                trial = waiting.pop()
                reference = task.remote(
                    trial.to_dict(), str(store.root.resolve()), str(Path.cwd()), runtime, session
                )
                running[reference] = trial
            done, _ = ray.wait(list(running), timeout=POLL, num_returns=len(running))
            for reference in done:
                _settle(ray, reference, running.pop(reference), store, session)
            watch()
    except (KeyboardInterrupt, DiskFull):
        for reference in running:
            ray.cancel(reference, recursive=False)  # arrives there as SIGINT
        ray.wait(list(running), timeout=STOP_GRACE, num_returns=len(running)) if running else None
        raise
    finally:
        ray.shutdown()


def _connect() -> Any:
    # under `uv run`, Ray would pack the working directory and build its environment anew on every node
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds for a cluster that it does not reach
        said = str(error).strip().splitlines()[0]
        wants_token = "auth" in str(error).lower()
        fix = "; where it wants a token, set RAY_AUTH_MODE=token" if wants_token else ""
        raise InputError(f"Ray reaches no cluster: {said}{fix}") from None
    finally:
        # Ray has put one of its own in place, which aborts the process instead of letting trials save
        signal.signal(signal.SIGTERM, on_sigterm)
    return ray


def _gpus_per_trial(ray: Any, runtime: Runtime, placement: Placement) -> float:
    if placement.gpus_per_trial is not None:
        return placement.gpus_per_trial
    there = ray.cluster_resources().get("GPU", 0)
    return 1 if runtime.device == "cuda" or (runtime.device == "auto" and there) else 0


def _check_room(ray: Any, cpus: int, gpus: float) -> None:
    """Say so if no node has room for a task: Ray waits for one that has, and says nothing itself."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        largest = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        print(
            f"note: no node of the Ray cluster has what a trial takes, {cpus} CPUs (--threads and, for "
            f"files, --loaders) and {gpus:g} of a GPU: there are {largest}. Ray waits until one comes"
        )


def _task(trial: dict[str, Any], root: str, folder: str, runtime: Runtime, session: str) -> str:
    """Body of a task, in the folder that relative paths are meant from; cancelling it lets the trial save.

    Returns:
        The machine's name.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        work([Trial.from_dict(trial)], Store(Path(root)), runtime, session, lambda: asked)
    finally:
        signal.signal(signal.SIGINT, before)
    return socket.gethostname()


def _settle(ray: Any, reference: Any, trial: Trial, store: Store, session: str) -> None:
    """Look at how a task ended."""
    folder = store.folder(trial.id)
    try:
        host = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DiskFull):
            raise DiskFull(str(error.cause)) from None
        record_failure(trial, folder, f"Ray task: {error.cause}", session)
        return
    except ray.exceptions.RayError as error:  # worker or node died, more often than it is retried
        record_death(trial, folder, f"({type(error).__name__})", RETRIES + 1, session)
        return
    if not finished(folder) and not settled(folder, session):
        raise InputError(
            f"trial {trial.id} is done on {host}, but its result is not in {store.root}: "
            "--runs must be a folder that all nodes share"
        )
