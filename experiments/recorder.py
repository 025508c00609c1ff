"""The files of a trial while it runs: its checkpoint, its curve, its progress, and its result at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from experiments import checkpoint
from experiments.checkpoint import TrainState
from experiments.metrics_log import MetricsLog, Window
from experiments.ranks import Ranks
from experiments.result import Origin, Outcome, result_fields, timing_fields, weights_file
from experiments.runtime import Runtime
from experiments.store import TrialFolder, write_bytes
from experiments.tasks.base import Batch, TaskData
from experiments.tasks.reading import FilesRead
from experiments.trial import Trial

PROGRESS_EVERY = 0.5  # seconds between two progress reports


class Recorder:
    """Writes down how a trial goes and what comes of it; every rank calls, only the first writes.

    Args:
        trial: that runs.
        folder: of the trial, locked by the caller.
        runtime: how often to write, and what to keep.
        ranks: this process among those that run the trial together.
        state: of the training; what is saved, and set by `resume`.
        origin: of the numbers.
    """

    def __init__(
        self,
        trial: Trial,
        folder: TrialFolder,
        runtime: Runtime,
        ranks: Ranks,
        state: TrainState,
        origin: Origin,
    ) -> None:
        self._trial, self._folder, self._runtime, self._ranks = trial, folder, runtime, ranks
        self._state, self._origin = state, origin
        self._metrics = MetricsLog(
            folder, runtime.log_every, trial.train.batch_size, tensorboard=runtime.tensorboard
        )
        self._counted_from = self._saved = self._reported = time.monotonic()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def _writes(self) -> bool:
        return self._ranks.rank == 0

    @property
    def seconds(self) -> float:
        """How many the trial has taken in all its sessions: up to the last save, and since then."""
        return self._state.progress.seconds + time.monotonic() - self._counted_from

    # -------------------------------------------------------------- checkpoint

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one that can be read and fits."""
        found = checkpoint.read(self._folder, self._trial.id, like=self._saveable()) if self._writes else None
        saved = self._ranks.tell(found)
        if saved is not None:
            self._restore(saved)
        if self._writes:
            self._metrics.start(self._state.steps_done)

    def _restore(self, saved: dict[str, Any]) -> None:
        misfit = self._state.restore(saved)
        if misfit:
            self.note(f"checkpoint does not fit, starting anew: {misfit}")
            return
        self._metrics.window = Window(**saved["window"])
        changed = self._origin.continue_from(saved["made_with"])
        if changed:
            self.note(f"goes on after step {self._state.steps_done} with other {', '.join(changed)}")

    def save(self) -> None:
        """Write the checkpoint."""
        if not self._writes:
            return
        progress = self._state.progress
        progress.seconds = self.seconds
        self._counted_from = self._saved = time.monotonic()
        progress.waiting += self._metrics.session_waited
        self._metrics.session_waited = 0.0
        checkpoint.write(self._folder, self._saveable())

    def save_when_due(self) -> None:
        """Write the checkpoint if the last one is old."""
        if time.monotonic() - self._saved > self._runtime.checkpoint_every:
            self.save()

    def save_before_tests(self) -> None:
        """Write the checkpoint of what is trained, since tests may take long, too; not of a short run."""
        if self.seconds > self._runtime.checkpoint_every:
            self.save()

    def _saveable(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "trial_id": self._trial.id,
            **vars(self._origin),
            "progress": vars(self._state.progress),
            "window": vars(self._metrics.window),
            "best_weights": self._state.best_weights,
            **self._state.learner.state_dict(),
        }

    # ---------------------------------------------------------- while it runs

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same, measuring how long each is waited for."""
        return self._metrics.timed(batches)

    def add_step(self, loss: float) -> None:
        """Take note of the step that was just done."""
        if not self._writes:
            return
        self._metrics.add(
            step=self._state.steps_done,
            epoch=self._state.progress.epoch + 1,
            loss=loss,
            learning_rate=self._state.learner.learning_rate,
            grad_norm=self._state.learner.grad_norm,
        )

    def report(self) -> None:
        """Say how far the run is, in tests too: a machine that says nothing is taken for gone."""
        now = time.monotonic()
        if not self._writes or now - self._reported < PROGRESS_EVERY:
            return
        self._reported = now
        at, epochs = self._state.progress, self._trial.train.all_epochs
        self._folder.report_progress(
            epoch=min(at.epoch + 1, epochs),
            epochs=epochs,
            fraction=(at.epoch + at.step / self._state.steps_per_epoch) / epochs,
            seconds=self.seconds,
        )

    def note(self, text: str) -> None:
        """Append to the trial's log."""
        if self._writes:
            self._folder.note(text)

    def write_curve(self, *, durable: bool = False) -> None:
        """Write `curve.csv`; that of every epoch but the last can be made again from the checkpoint."""
        if not self._writes:
            return
        rows = self._state.progress.curve
        lines = [",".join(rows[0]), *(",".join(f"{value:.8g}" for value in row.values()) for row in rows)]
        content = "".join(f"{line}\n" for line in lines).encode()
        write_bytes(self._folder.curve, content, durable=durable)

    # -------------------------------------------------------------- at the end

    def finish(self, outcome: Outcome, data: TaskData, seconds: float) -> None:
        """Write what the trial came to, `result.json` last.

        Args:
            outcome: of the tests, or of training that diverged.
            data: of the trial.
            seconds: how many training and its validations took.
        """
        unreadable = self._unreadable(data)
        if not self._writes:
            return
        self._folder.clear()
        if self._state.progress.curve:
            self.write_curve(durable=True)
        if outcome.status == "ok":
            self._folder.answer(outcome.answers)
            if self._runtime.keep_weights:
                write_bytes(self._folder.weights, weights_file(self._state, self._trial.id))
        result = result_fields(self._trial, data.sizes, self._origin, outcome)
        # after the weights are stored: on a CPU a training step more is made, to count its memory
        timing = timing_fields(
            self._state,
            data,
            self._trial.train.batch_size,
            started=self._started,
            seconds=seconds,
            waiting=self._state.progress.waiting + self._metrics.session_waited,
        )
        if isinstance(data, FilesRead):
            timing["unreadable"] = unreadable
            self._note_reading(timing["waiting_for_data"], unreadable)
        self._folder.finish(result, timing)

    def _unreadable(self, data: TaskData) -> dict[str, str]:
        """Which files any rank passed over, and why."""
        own = data.unreadable if isinstance(data, FilesRead) else {}
        return {name: problem for each in self._ranks.gather(own) for name, problem in each.items()}

    def _note_reading(self, waiting: float, unreadable: dict[str, str]) -> None:
        """Note in the log how well data were read.

        Args:
            waiting: the share of training in which the next batch was not there yet.
            unreadable: files that were passed over, and why.
        """
        training = self._state.progress.training
        self.note(f"{waiting:.1%} of {training:.0f} s of training waiting for data")
        for name, problem in sorted(unreadable.items()):
            self.note(f"passed over {name}: {problem}")

    def close(self) -> None:
        """Write out what is held back."""
        self._metrics.close()
