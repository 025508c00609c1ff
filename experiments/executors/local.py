"""Worker processes on this machine, one per GPU where there are any.

Workers are spawned, not forked: numba's threads do not survive a fork.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.launch import POLL, RETRIES, missing, record_death, settled, work
from experiments.runtime import Placement, Runtime
from experiments.store import DiskFull, Store, TrialFolder
from experiments.trial import Trial
from mixers.registry import InputError

STOP_GRACE = 20.0  # seconds that a worker gets to save its checkpoint
DISK_FULL = 74  # exit code of a worker that could not write; sysexits.h calls it EX_IOERR
NO_FOLDER = 73  # of one that could not use a trial's folder; EX_CANTCREAT
BY_SIGNAL = 128  # plus a signal: of one that was asked to stop by it, as shells count
NO_TRIAL = -1
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap")
"""What one of is there if torch finds a GPU: NVIDIA's driver, that of WSL2, AMD's, and that of Jetson."""


def processes(workers: int | None, threads: int, trials: int) -> int:
    """Worker processes such that processes x threads do not exceed the cores; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(workers or cores // threads, trials))


def visible_gpus(device: str) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs that trials may use; none where they run on the CPU."""
    if device == "cpu" or not (device == "cuda" or any(Path(driver).exists() for driver in DRIVERS)):
        return []  # without a driver there is no reason to import torch
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name for name in listed.split(",") if name] if listed is not None else None
    count = torch.cuda.device_count()
    return names[:count] if names is not None else [str(index) for index in range(count)]


def divide_gpus(gpus: Sequence[str], per_trial: float) -> list[str]:
    """`CUDA_VISIBLE_DEVICES` of each worker.

    Args:
        gpus: their names.
        per_trial: 1, or the share of one that a trial gets.
    """
    return [gpu for _ in range(int(1 / per_trial)) for gpu in gpus]


def check(runtime: Runtime, placement: Placement) -> None:
    """Fail before anything is trained if this machine has not what is asked for.

    Raises:
        InputError: GPUs or a scan backend.
    """
    share = placement.gpus_per_trial
    if share:  # without it there is nothing to refuse, and torch takes seconds to import
        _slots(runtime, placement, trials=1)
        if share < 1 and int(1 / share) == 1:
            print(
                f"note: --gpus-per-trial {share:g} leaves no room for a second trial on a GPU of this "
                "machine: one runs on each, as with 1"
            )
    _check_backend(runtime)


def _check_backend(runtime: Runtime) -> None:
    """Fail before anything is trained if the backend that was asked for by name cannot run.

    Raises:
        InputError: with the fix.
    """
    if runtime.backend == "auto" and runtime.device != "cuda":
        return
    from experiments.build import backend_of
    from experiments.machine import torch_device
    from mixers.backends import OPERATIONS

    has_it = [name for name, operation in OPERATIONS.items() if runtime.backend in operation.backends]
    for operation in has_it or ["scan"]:
        backend_of(operation, runtime.backend, torch_device(runtime.device))


def run(
    trials: Sequence[Trial],
    store: Store,
    runtime: Runtime,
    placement: Placement,
    watch: Callable[[], None],
) -> None:
    """Run the missing trials in worker processes on this machine.

    A worker that dies (killed, out of memory) or is ended by anybody else is replaced, and its trial goes on
    from its checkpoint; a trial that takes down more than `RETRIES` workers has failed.

    Args:
        trials: all of them; the finished are skipped.
        store: where.
        runtime: how.
        placement: how many processes, on which GPUs; by default one per GPU, or as many as the cores carry.
        watch: called a few times a second.

    Raises:
        KeyboardInterrupt: after the workers have saved their checkpoints.
        DiskFull: likewise, because one of them could not write.
        InputError: likewise, because one of them could not use the folder of a trial.
    """
    to_do = missing(trials, store)
    if not to_do:
        return
    session = f"{os.getpid()}-{time.time_ns()}"
    arguments = ([trial.to_dict() for trial in to_do], store.root, runtime, session)
    running: list[_Worker] = []
    deaths: Counter[str] = Counter()
    try:
        for gpus in _slots(runtime, placement, len(to_do)):
            running.append(_Worker.start(gpus, arguments))  # noqa: PERF401  # one by one, to be stopped below
        while running:
            watch()
            time.sleep(POLL)
            for worker in [worker for worker in running if not worker.process.is_alive()]:
                running.remove(worker)
                if worker.process.exitcode == DISK_FULL:
                    raise DiskFull(f"no space left under {store.root}")
                if worker.process.exitcode == NO_FOLDER:
                    raise InputError(f"a folder under {store.root} cannot be used")
                if worker.process.exitcode and may_go_on(worker, to_do, store, session, deaths):
                    running.append(_Worker.start(worker.gpus, arguments))
    except BaseException:
        stop([worker.process for worker in running])
        raise
    watch()


def _slots(runtime: Runtime, placement: Placement, trials: int) -> list[str | None]:
    """The GPUs of each worker; None where it takes what it finds."""
    gpus = visible_gpus(runtime.device)
    if gpus:
        slots = divide_gpus(gpus, placement.gpus_per_trial or 1)
        return list(slots[: min(placement.workers or len(slots), trials)])
    if placement.gpus_per_trial:
        raise InputError("--gpus-per-trial is given, but trials run on the CPU here")
    return [None] * processes(placement.workers, runtime.threads, trials)


@dataclass(frozen=True)
class _Worker:
    """A process, its GPUs and, in memory that both share, the place of its trial on the list of trials."""

    process: BaseProcess
    gpus: str | None
    at: ctypes.c_int

    @classmethod
    def start(cls, gpus: str | None, arguments: tuple[Any, ...]) -> _Worker:
        context = multiprocessing.get_context("spawn")
        at = context.RawValue(ctypes.c_int, NO_TRIAL)
        process = context.Process(target=_work, args=(gpus, at, *arguments))  # a daemon could have no loaders
        resource_tracker.ensure_running()  # whose start would let Ctrl-C through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # a new process has it from here
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return cls(process, gpus, at)


def may_go_on(
    worker: _Worker, trials: Sequence[Trial], store: Store, session: str, deaths: Counter[str]
) -> bool:
    """Settle the trial that a dead worker was running, if any; whether the worker is to be replaced."""
    how = _how_it_ended(worker.process.exitcode or 0)
    if worker.at.value == NO_TRIAL:
        deaths["between trials"] += 1
        replaced = deaths["between trials"] <= RETRIES
        if not replaced:
            print(f"note: a worker process without a trial ended {how} and is not replaced", file=sys.stderr)
        return replaced
    trial = trials[worker.at.value]
    folder = store.folder(trial.id)
    if not settled(folder, session):
        deaths[trial.id] += 1
        record_death(trial, folder, how, deaths[trial.id], session)
    return True


def _how_it_ended(code: int) -> str:
    signum = -code if code < 0 else code - BY_SIGNAL
    known = signum in signal.valid_signals()
    return f"by signal {signal.Signals(signum).name}" if known else f"with exit code {code}"


def stop(running: Sequence[BaseProcess]) -> None:
    """Ask workers to save and end; kill those that do not."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_GRACE
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


def _work(
    gpus: str | None,
    at: ctypes.c_int,
    trials: list[dict[str, Any]],
    root: Path,
    runtime: Runtime,
    session: str,
) -> None:
    """Body of a worker process: stops when it is asked to, at Ctrl-C of its parent, and when that is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    driver = parent.pid  # not os.getppid(): the driver may be gone by now
    asked = 0
    ready = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = signum
        if not ready:  # not by an exception: inside of an import it may end up where none can be raised
            os._exit(BY_SIGNAL + asked)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGUSR2, ask)  # of SLURM, to every process of a job that is about to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which asks us to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which `_Worker.start` has blocked
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch looks
    from experiments import train  # seconds, in which there is nothing to save

    own = [Trial.from_dict(trial) for trial in trials]
    places = {trial.id: place for place, trial in enumerate(own)}

    def run_trial(
        trial: Trial, folder: TrialFolder, runtime: Runtime, stop_requested: Callable[[], bool]
    ) -> None:
        at.value = places[trial.id]
        train.run_trial(trial, folder, runtime, stop_requested)
        at.value = NO_TRIAL  # not after an exception: a trial that was interrupted is what the signal met

    ready = True
    try:
        work(own, Store(root), runtime, session, lambda: bool(asked) or os.getppid() != driver, run_trial)
    except DiskFull as error:
        print(f"run_ablation.py: {error}", file=sys.stderr)
        sys.exit(DISK_FULL)
    except InputError as error:
        print(f"run_ablation.py: {error}", file=sys.stderr)
        sys.exit(NO_FOLDER)
    if asked:
        sys.exit(BY_SIGNAL + asked)
