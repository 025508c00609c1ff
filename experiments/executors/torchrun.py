"""One trial after the other, each on all the processes that torchrun started.

    torchrun --nproc-per-node 8 run_ablation.py --study NAME

Rank 0 runs the command as usual; the others wait in `follow` for the trials that it comes to. A trial that
fails on every process is a row in the table. One that fails on some of them only, while the others wait for
them in a step, ends the command after `ranks.STEP_TIMEOUT`, as they cannot meet again; it goes on from its
checkpoint when the command is run again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from experiments import ranks
from experiments.launch import POLL, work
from experiments.ranks import Ranks, RanksLost
from experiments.runtime import Placement, Runtime
from experiments.store import DiskFull, Store, TrialFolder
from experiments.trial import Trial
from mixers.registry import InputError

_joined: list[Ranks] = []
"""The ranks that this process leads, between `leading` and its end."""


@dataclass(frozen=True)
class _Message:
    """What rank 0 comes to next."""

    trial: dict[str, Any]
    folder: Path
    runtime: Runtime


@contextmanager
def leading(device: str) -> Iterator[None]:
    """Rank 0: meet the others, and dismiss them at the end."""
    together = ranks.join(device)
    _joined.append(together)
    try:
        yield
    except (DiskFull, RanksLost):
        raise  # the others are in the middle of a step and cannot be told; torchrun ends them
    except BaseException:
        together.tell(None)
        raise
    else:
        together.tell(None)
    finally:
        _joined.clear()
    ranks.leave()


def follow(device: str) -> None:
    """Every other rank: run what rank 0 runs, until it is done."""
    from experiments import machine, train

    together = ranks.join(device)
    with _stop_asked() as asked:
        while (message := together.tell(None)) is not None:
            folder = TrialFolder(message.folder, message.folder.name)
            trial = Trial.from_dict(message.trial)
            try:
                _run_together(trial, folder, message.runtime, lambda: bool(asked()), together)
            except RanksLost:
                raise
            except train.Interrupted:
                continue
            except Exception:  # rank 0 has heard of it and takes note
                pass
            machine.release_memory()  # as rank 0 does before it tries again
    ranks.leave()


def check(runtime: Runtime, placement: Placement) -> None:
    """Refuse what torchrun decides.

    Raises:
        InputError: another executor or a number of trials at once was asked for.
    """
    if placement.executor != "local" or placement.workers or placement.gpus_per_trial:
        raise InputError(
            "torchrun runs one trial at a time on all its processes: --executor, --workers and "
            "--gpus-per-trial have no effect"
        )


def run(
    trials: Sequence[Trial],
    store: Store,
    runtime: Runtime,
    placement: Placement,
    watch: Callable[[], None],
) -> None:
    """Run the missing trials, one after the other, together with the processes that follow.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the trial has saved its checkpoint.
        DiskFull: a file could not be written.
    """
    together = _joined[0]
    looked = 0.0

    def run_trial(
        trial: Trial, folder: TrialFolder, runtime: Runtime, stop_requested: Callable[[], bool]
    ) -> None:
        together.tell(_Message(trial.to_dict(), folder.path, runtime))
        _run_together(trial, folder, runtime, stop_requested, together)

    with _stop_asked() as asked:

        def stop_requested() -> bool:
            nonlocal looked
            if time.monotonic() - looked > POLL:
                looked = time.monotonic()
                watch()
            return bool(asked())

        session = f"{os.getpid()}-{time.time_ns()}"
        work(trials, store, runtime, session, stop_requested, run_trial)
        watch()
        stopped_by = asked()
    if stopped_by:
        signal.raise_signal(stopped_by)  # for the program's own handler


def _run_together(
    trial: Trial,
    folder: TrialFolder,
    runtime: Runtime,
    stop_requested: Callable[[], bool],
    together: Ranks,
) -> None:
    """Run a trial; if it fails anywhere, it fails everywhere.

    Raises:
        Interrupted: on every process.
        DiskFull: on rank 0, at once.
        RanksLost: the processes cannot tell each other how it went.
        Exception: what it failed with here, or a RuntimeError that names another process.
    """
    from experiments import train

    failure: Exception | None = None
    try:
        train.run_trial(trial, folder, runtime, stop_requested, together)
    except (train.Interrupted, DiskFull):
        raise
    except Exception as error:
        failure = error
    here = f"{type(failure).__name__}: {failure}" if failure else None
    try:
        texts = together.gather(here)
    except RuntimeError as error:
        raise RanksLost(here or str(error)) from failure
    if failure is not None:
        raise failure
    for rank, text in enumerate(texts):
        if text is not None:
            raise RuntimeError(f"on rank {rank}: {text}")


@contextmanager
def _stop_asked() -> Iterator[Callable[[], int]]:
    """Which of Ctrl-C and SIGTERM came since, 0 for none; torchrun passes both on to every process."""
    asked = 0

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = signum

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
