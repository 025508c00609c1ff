"""Which trials are missing, and the one rule by which they are done.

A worker walks the list of trials and does whichever is neither finished nor being done. Folder locks make
that safe, so the same function serves two cores, two terminals and many machines on one file system, and
starting it again is how anything is resumed. `experiments.executors` starts the workers.

What holds across machines: Ray gives each trial to one task, SLURM and `--shard` divide the list, so within
one command no two machines share a trial; the lock is a second belt. Two commands on two machines over the
same trials rely on the lock, and where the file system does not carry it from machine to machine on the
heartbeat in `progress.json`. Should both fail, a trial is trained twice and stored once: each file is
renamed into place whole.
"""

from __future__ import annotations

import dataclasses
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.ranks import RanksLost, count_launched
from experiments.runtime import Runtime
from experiments.store import DiskFull, Store, TrialFolder, naming_unusable_folders
from experiments.tasks import FROM_FILES
from experiments.trial import SCHEMA_VERSION, Trial
from mixers.registry import InputError

RunTrial = Callable[[Trial, TrialFolder, Runtime, Callable[[], bool]], None]

POLL = 0.2  # seconds between two looks at trials that somebody else holds
RETRIES = 2
"""How often a trial whose worker died under it goes on from its checkpoint before it counts as failed."""


@dataclass(frozen=True)
class Shard:
    """A share of every list of trials: those whose id falls into it, whatever else is on the list.

    Attributes:
        number: from 1.
        count: of shards in all.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/8`.

        Raises:
            InputError: it is not such a text.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def of(self, trial_id: str) -> Shard:
        """The shard that a trial falls into."""
        return Shard(int(trial_id, 16) % self.count + 1, self.count)

    def select(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of the trials that fall into this shard."""
        return [trial for trial in trials if self.of(trial.id) == self]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def finished(folder: TrialFolder) -> bool:
    """Whether the trial came to a result; a failed one has not, it is tried again."""
    return folder.finished_result() is not None


def missing(trials: Sequence[Trial], store: Store) -> list[Trial]:
    """The trials without a result, in order."""
    return [trial for trial in trials if not finished(store.folder(trial.id))]


def processors(trials: Sequence[Trial], runtime: Runtime) -> int:
    """How many a trial keeps busy: its threads and, if it reads files, the processes that read them."""
    return runtime.threads + (runtime.loaders if any(t.task.name in FROM_FILES for t in trials) else 0)


def set_unusable_aside(trials: Sequence[Trial], store: Store) -> list[str]:
    """Move results that cannot be used out of the way; one sentence for each."""
    notes = []
    for trial in trials:
        folder = store.folder(trial.id)
        reason = folder.unusable_result()
        target = folder.set_aside() if reason else None
        if target is not None:
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
    run_trial: RunTrial | None = None,
) -> None:
    """Do whatever is to be done until every trial is settled, waiting for those that others hold.

    Args:
        trials: in order of preference.
        store: where.
        runtime: how.
        session: names this attempt; a trial that failed in it is not tried again in it.
        stop_requested: asked often; on True the current trial saves its checkpoint and this returns.
        run_trial: what runs one; None for `train.run_trial`.

    Raises:
        DiskFull: a file could not be written; what was kept is in the message.
        RanksLost: under torchrun, one of the processes failed where the others waited for it.
    """
    open_trials = list(trials)
    while open_trials:
        ran = False
        for trial in open_trials:
            if stop_requested():
                return
            folder = store.folder(trial.id)
            if settled(folder, session):
                continue
            with folder.lock() as held:
                if held and not settled(folder, session) and not folder.runs_elsewhere():
                    _run(trial, folder, runtime, session, stop_requested, run_trial)
                    ran = True
        open_trials = [trial for trial in open_trials if not settled(store.folder(trial.id), session)]
        if open_trials and not ran:
            time.sleep(POLL)


def settled(folder: TrialFolder, session: str) -> bool:
    """Whether nothing is left to do for a trial in this session: it is finished, or failed in it."""
    result = folder.result()
    if result is None:
        return False
    return result["status"] != "failed" or session in result["provenance"]["failed_in"]


def _run(
    trial: Trial,
    folder: TrialFolder,
    runtime: Runtime,
    session: str,
    stop_requested: Callable[[], bool],
    run_trial: RunTrial | None,
) -> None:
    """Run a trial whose folder is held; what goes wrong is a row in the table, not the end of the study."""
    from experiments import machine, train

    while True:
        try:
            (run_trial or train.run_trial)(trial, folder, runtime, stop_requested)
            return
        except train.Interrupted:
            folder.rest()
            return
        except DiskFull:
            raise DiskFull(_disk_full(folder)) from None
        except RanksLost:
            folder.rest()
            raise
        except Exception as error:
            with naming_unusable_folders(folder.path):
                folder.note(traceback.format_exc())
            if stop_requested():  # the signal ends helpers of the trial, too: no fault of its own
                folder.rest()
                return
            if not machine.is_out_of_memory(error):
                record_failure(trial, folder, f"{type(error).__name__}: {error}", session)
                return
        machine.release_memory()  # which the frames of the exception held until here
        share = trial.train.batch_size // count_launched()
        size = min(runtime.micro_batch or share, share)
        if size == 1:
            reason = "out of memory even with one example at a time: it takes more memory or a smaller model"
            record_failure(trial, folder, reason, session)
            return
        runtime = dataclasses.replace(runtime, micro_batch=size // 2)
        folder.note(f"out of memory with {size} examples at a time: goes on with {size // 2}, accumulated")


def _disk_full(folder: TrialFolder) -> str:
    kept = "its last checkpoint is kept" if folder.checkpoint.exists() else "it has no checkpoint yet"
    return f"no space left for the files of trial {folder.trial_id}: {kept}; all that is finished is kept"


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


def record_death(trial: Trial, folder: TrialFolder, how: str, deaths: int, session: str) -> None:
    """Note that a worker died under a trial for the `deaths`-th time; too often, and the trial has failed."""
    if deaths > RETRIES:
        record_failure(trial, folder, f"worker process ended {how}, {deaths} times", session)
    else:
        folder.note(f"worker process ended {how}; goes on from its checkpoint, try {deaths + 1}")
