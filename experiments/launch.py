"""Which trials are missing, and who runs them.

There is one rule: a worker walks the list of trials and does whichever is neither finished nor being
done. Folder locks make that safe, so the same function serves two cores, two terminals and two machines
on one file system, and starting it again is how anything is resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from experiments.runtime import Runtime
from experiments.store import Store, TrialFolder
from experiments.trial import SCHEMA_VERSION, Trial
from mixers.registry import InputError

POLL = 0.2  # seconds between two looks at trials that somebody else holds
STOP_GRACE = 20.0  # seconds that a worker gets to save its checkpoint


def finished(folder: TrialFolder) -> bool:
    """Whether the trial has a result; a failed one has none, it is tried again."""
    result = folder.result()
    return result is not None and result["status"] != "failed"


def missing(trials: Sequence[Trial], store: Store) -> list[Trial]:
    """The trials without a result, in order."""
    return [trial for trial in trials if not finished(store.folder(trial.id))]


def set_unusable_aside(trials: Sequence[Trial], store: Store) -> list[str]:
    """Move results that cannot be used out of the way; one sentence for each."""
    notes = []
    for trial in trials:
        folder = store.folder(trial.id)
        reason = folder.unusable_result()
        if reason:
            target = folder.set_aside()
            notes.append(
                f"{folder.path / 'result.json'} is {reason}: kept as {target.name}, trial runs again"
            )
    return notes


def work(
    trials: Sequence[Trial],
    store: Store,
    runtime: Runtime,
    session: str,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Do whatever is to be done until every trial is settled, waiting for those that others hold.

    Args:
        trials: in order of preference.
        store: where.
        runtime: how.
        session: names this attempt; a trial that failed in it is not tried again in it.
        stop_requested: asked often; on True the current trial saves its checkpoint and this returns.
    """
    open_trials = list(trials)
    while open_trials and not stop_requested():
        open_trials = [trial for trial in open_trials if not _settled(store.folder(trial.id), session)]
        if not any(_attempt(trial, store, runtime, session, stop_requested) for trial in open_trials):
            time.sleep(POLL)


def _settled(folder: TrialFolder, session: str) -> bool:
    result = folder.result()
    if result is None:
        return False
    return result["status"] != "failed" or session in result["provenance"]["failed_in"]


def _attempt(
    trial: Trial, store: Store, runtime: Runtime, session: str, stop_requested: Callable[[], bool]
) -> bool:
    """Run the trial if nobody else does; whether it was run."""
    from experiments.train import Interrupted, run_trial

    folder = store.folder(trial.id)
    with folder.lock() as held:
        if not held or _settled(folder, session):
            return False
        try:
            run_trial(trial, folder, runtime, stop_requested)
        except Interrupted:
            return True
        except Exception as error:  # a trial that breaks is a row in the table, not the end of the study
            folder.note(traceback.format_exc())
            record_failure(trial, folder, f"{type(error).__name__}: {error}", session)
    return True


def record_failure(trial: Trial, folder: TrialFolder, error: str, session: str) -> None:
    """Write a result that says what went wrong and in which sessions; the checkpoint stays."""
    earlier = folder.result()
    failed_in = earlier["provenance"].get("failed_in", []) if earlier else []
    folder.fail(
        {
            "schema_version": SCHEMA_VERSION,
            "trial_id": trial.id,
            "trial": trial.to_dict(),
            "status": "failed",
            "error": error,
            "metrics": {},
            "costs": {},
            "data": {},
            "provenance": {"failed_in": [*failed_in, session]},
        }
    )


def check_backend(runtime: Runtime) -> None:
    """Fail before anything is trained if the scan backend that was asked for by name cannot run.

    Raises:
        InputError: with the fix.
    """
    if runtime.backend == "auto" and runtime.device != "cuda":
        return
    from experiments.machine import torch_device
    from mixers import backends

    try:
        backends.resolve(runtime.backend, torch_device(runtime.device))
    except (ValueError, backends.BackendUnavailable) as error:
        raise InputError(str(error)) from None


def processes(workers: int | None, threads: int, trials: int) -> int:
    """Worker processes such that processes x threads do not exceed the cores; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(workers or cores // threads, trials))


def run_local(
    trials: Sequence[Trial],
    store: Store,
    runtime: Runtime,
    workers: int | None,
    watch: Callable[[], None],
) -> None:
    """Run the missing trials in worker processes on this machine.

    Workers are spawned, not forked: numba's threads do not survive a fork. A worker that dies (killed,
    out of memory) leaves its trial marked as failed and is replaced.

    Args:
        trials: all of them; the finished are skipped.
        store: where.
        runtime: how.
        workers: how many processes; None for as many as the cores carry.
        watch: called a few times a second.

    Raises:
        KeyboardInterrupt: after the workers have saved their checkpoints.
    """
    to_do = missing(trials, store)
    if not to_do:
        return
    session = f"{os.getpid()}-{time.time_ns()}"
    context = multiprocessing.get_context("spawn")

    def start() -> SpawnProcess:
        arguments = ([trial.to_dict() for trial in to_do], store.root, runtime, session)
        process = context.Process(target=_worker, args=arguments, daemon=True)
        process.start()
        return process

    running = [start() for _ in range(processes(workers, runtime.threads, len(to_do)))]
    try:
        while running:
            watch()
            time.sleep(POLL)
            for process in [process for process in running if not process.is_alive()]:
                running.remove(process)
                if process.exitcode != 0 and _blame(process, to_do, store, session):
                    running.append(start())
    except KeyboardInterrupt:
        _stop(running)
        raise
    watch()


def _blame(process: SpawnProcess, trials: Sequence[Trial], store: Store, session: str) -> bool:
    """Mark the trial that a dead worker was running as failed; whether there was one."""
    for trial in trials:
        folder = store.folder(trial.id)
        progress = folder.progress()
        if progress is not None and progress["pid"] == process.pid and not _settled(folder, session):
            code = process.exitcode or 0
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            record_failure(trial, folder, f"worker process ended {how}", session)
            return True
    return False


def _stop(running: Sequence[SpawnProcess]) -> None:
    """Ask the workers to save and end; kill those that do not."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_GRACE
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


def _worker(trials: list[dict[str, Any]], root: Any, runtime: Runtime, session: str) -> None:
    """Body of a worker process: stops at SIGTERM, at Ctrl-C of its parent, and when that is gone."""
    parent = os.getppid()
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which asks us to stop
    work(
        [Trial.from_dict(trial) for trial in trials],
        Store(root),
        runtime,
        session,
        lambda: asked or os.getppid() != parent,
    )
