"""A SLURM job array, submitted by submitit, each job with a share of the trials.

The runs folder lies on a file system that all nodes share. A job that is pre-empted or reaches its time
limit saves its trial and is queued again; one whose node fails is queued again by SLURM.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.executors import local
from experiments.launch import missing, processors
from experiments.runtime import Placement, Runtime
from experiments.store import Store
from experiments.trial import Trial
from mixers.registry import InputError

POLL = 1.0  # seconds between two looks at the jobs
MOST_JOBS = 100
"""Of an array, unless `--workers` says otherwise; with more trials than that, a job has several in turn."""
TIME = 60
"""Minutes that a job gets unless `--slurm time=...` says otherwise."""
MOST_TIME_LIMITS = 1_000
"""How often a job that reaches its time limit is queued again."""
GOVERNED = {
    "array": "--workers",
    "cpus-per-task": "--threads and --loaders",
    "gpus-per-node": "--gpus-per-trial",
    "nodes": "a job being one process",
    "ntasks-per-node": "a job being one process",
    "signal": "how jobs are told to save",
    "output": "--runs",
    "error": "--runs",
}
"""Options of sbatch that follow from something else, and from what."""


class ShareOfTrials:
    """What a job does; submitit pickles it, and calls `checkpoint` shortly before SLURM ends the job."""

    def __init__(self, trials: Sequence[Trial], root: Path, runtime: Runtime, gpus: float | None) -> None:
        self._trials = [trial.to_dict() for trial in trials]
        self._root, self._runtime, self._placement = root, runtime, Placement(workers=1, gpus_per_trial=gpus)

    def __call__(self) -> None:
        """Do the trials one after the other, in a process that can be asked to save."""
        trials = [Trial.from_dict(trial) for trial in self._trials]
        before = signal.signal(signal.SIGTERM, _end)  # submitit only logs it
        try:
            local.run(trials, Store(self._root), self._runtime, self._placement, watch=lambda: None)
        finally:
            signal.signal(signal.SIGTERM, before)

    def checkpoint(self) -> Any:
        """Let the current trial save; the job to be queued again. submitit ends this process right after."""
        from submitit.helpers import DelayedSubmission

        # SIGTERM often follows, and would keep the job from the queue
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        local.stop(multiprocessing.active_children())
        return DelayedSubmission(self)


def _end(signum: int, frame: FrameType | None) -> None:
    """Handle SIGTERM, as of scancel: end the job, on the way out of which the current trial saves."""
    signal.signal(signum, signal.SIG_IGN)  # more of them would cut that short
    sys.exit(local.BY_SIGNAL + signum)


def check(runtime: Runtime, placement: Placement) -> None:
    """Fail before anything is planned if no job can be made of what is asked for.

    Raises:
        InputError: no SLURM here, or an option that follows from another flag.
    """
    make_executor(Path("slurm"), runtime, placement, runtime.threads)


def run(
    trials: Sequence[Trial],
    store: Store,
    runtime: Runtime,
    placement: Placement,
    watch: Callable[[], None],
) -> None:
    """Submit the missing trials as one job array and wait for it.

    Args:
        trials: all of them; the finished are skipped.
        store: where; on a file system that every node sees under the same path.
        runtime: how.
        placement: jobs at once, GPUs of each, options of sbatch.
        watch: called about once a second.

    Raises:
        InputError: no SLURM here, or an option that follows from another flag.
        KeyboardInterrupt: after the jobs were cancelled, which lets them save.
    """
    to_do = missing(trials, store)
    if not to_do:
        return
    root = store.root.resolve()
    executor = make_executor(root / "slurm", runtime, placement, processors(to_do, runtime))
    count = min(len(to_do), placement.workers or MOST_JOBS)
    gpus = placement.gpus_per_trial
    shares = [ShareOfTrials(to_do[start::count], root, runtime, gpus) for start in range(count)]
    with executor.batch():
        jobs = [executor.submit(share) for share in shares]
    print(f"SLURM job {jobs[0].job_id.partition('_')[0]}, {count} in its array; logs in {executor.folder}")
    open_jobs = list(jobs)
    try:
        while open_jobs := [job for job in open_jobs if not job.done()]:
            watch()
            time.sleep(POLL)
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel(check=False)
        raise
    watch()
    for job in jobs:
        if job.exception() is not None:
            print(f"note: SLURM job {job.job_id} ended badly, see {job.paths.stderr}", file=sys.stderr)


def make_executor(folder: Path, runtime: Runtime, placement: Placement, processors: int) -> Any:
    """submitit's SLURM executor with the options that were asked for and so many processors for each job.

    Raises:
        InputError: no SLURM here, or an option that follows from another flag.
    """
    import submitit

    options = dict(placement.slurm)
    for name in options.keys() & GOVERNED.keys():
        raise InputError(f"--slurm {name}=... cannot be given: it follows from {GOVERNED[name]}")
    minutes = options.pop("time", str(TIME))
    if not minutes.isdigit() or int(minutes) < 1:
        raise InputError(f"--slurm time must be whole minutes, got {minutes!r}")
    gpus = placement.gpus_per_trial or (1 if runtime.device == "cuda" else 0)
    if gpus not in (0, 1):
        raise InputError(f"--gpus-per-trial must be 1 with SLURM, got {gpus:g}")
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MOST_TIME_LIMITS)
    except RuntimeError:
        raise InputError("this machine has no SLURM (srun is not on the path)") from None
    executor.update_parameters(
        job_name=options.pop("job-name", "ablation"),
        time=int(minutes),
        cpus_per_task=processors,
        **({"gpus_per_node": int(gpus)} if gpus else {}),
        additional_parameters={"requeue": True, **options},
    )
    return executor
