"""One loop for every task: from a trial to its result, interruptible at any step."""

from __future__ import annotations

import math
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from experiments import checkpoint
from experiments.build import count_costs, create_task
from experiments.checkpoint import Progress
from experiments.divided_batches import check_share
from experiments.evaluate import Answers, EvaluationOutOfMemory, Evaluator
from experiments.learner import Learner
from experiments.machine import is_out_of_memory, provenance, torch_device
from experiments.metrics_log import MetricsLog, Window
from experiments.ranks import ALONE, Ranks
from experiments.runtime import Runtime
from experiments.sources import digests
from experiments.store import TrialFolder, write_bytes
from experiments.tasks.base import (
    Batch,
    Task,
    TaskData,
    chosen,
    share,
    to_device,
)
from experiments.tasks.reading import FilesRead, Reading
from experiments.trial import SCHEMA_VERSION, Trial, stream

PROGRESS_EVERY = 0.5  # seconds between two progress reports


class Interrupted(Exception):
    """The trial was asked to stop and has saved its checkpoint."""


def run_trial(
    trial: Trial,
    folder: TrialFolder,
    runtime: Runtime,
    stop_requested: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> None:
    """Train, evaluate and store one trial, continuing from its checkpoint if there is one.

    A loss that is not finite ends the trial with status "diverged", which is a result.

    Args:
        trial: what to run.
        folder: where, locked by the caller.
        runtime: how.
        stop_requested: asked after every step and every batch of a test; on True the trial saves and raises.
        ranks: this process among those that run the trial together; only the first writes to the folder.

    Raises:
        InputError: the batch cannot be divided among the ranks.
        Interrupted: after `stop_requested`; the checkpoint is saved.
    """
    torch.set_num_threads(runtime.threads)
    if ranks.rank == 0:
        folder.begin(trial)
        folder.report_progress(epoch=0, epochs=trial.train.all_epochs, fraction=0.0, seconds=0.0)
    run = _Run(trial, folder, runtime, ranks, stop_requested)
    try:
        run.restore()
        if ranks.rank == 0:
            run.metrics.start(run.steps_done)
        run.finish(run.train())
    finally:
        run.close()


@dataclass(frozen=True)
class _Tested:
    """What a trained model came to; without numbers where it diverged.

    Attributes:
        status: "ok" or "diverged".
        selected_epoch: whose weights were tested.
        metrics: by split.
        skipped: further test sets that were not answered, and why.
        answers: to the examples of the test split.
    """

    status: str
    selected_epoch: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)


class _Run:
    """The state of one trial while it runs."""

    def __init__(
        self,
        trial: Trial,
        folder: TrialFolder,
        runtime: Runtime,
        ranks: Ranks,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.trial, self.folder, self.runtime, self.ranks = trial, folder, runtime, ranks
        self.stop_requested = stop_requested
        self.recipe = trial.train
        check_share(self.recipe, ranks)
        self.device = torch_device(runtime.device)
        self.task: Task = create_task(trial.task)
        self.data: TaskData = self.task.load(trial.seed)
        if isinstance(self.data, FilesRead):
            pin = self.device.type == "cuda"
            self.data.read_with(Reading(runtime.loaders, ranks.rank, ranks.count, pin))
        # before anything is trained: a file may be edited while that goes on
        self.sources = digests((mixer.name for mixer in trial.mixer), trial.task.name)
        self.fingerprint = self.data.fingerprint if ranks.rank == 0 else ""  # which may take a while
        self.steps_per_epoch = self.data.sizes["train"] // self.recipe.batch_size
        self.learner = self._untrained()
        self.made_with = [provenance(self.device, runtime, self.learner.backend, ranks.count)]
        self.progress = Progress()
        self.metrics = MetricsLog(
            folder, runtime.log_every, self.recipe.batch_size, tensorboard=runtime.tensorboard
        )
        self.evaluator = Evaluator(
            self.task, self.data, self.device, self.recipe.precision, ranks, folder.note, self._watch
        )
        self.best_weights: dict[str, Tensor] | None = None
        self.cause = ""  # of divergence
        self.counted_from = self.saved = self.reported = time.monotonic()
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def _untrained(self) -> Learner:
        return Learner(self.trial, self.task, self.runtime, self.ranks, self.device, self.steps_per_epoch)

    # ---------------------------------------------------------------- training

    def train(self) -> str:
        """All remaining epochs; "ok" or "diverged"."""
        while self.progress.epoch < self.recipe.all_epochs:
            with self._watching_memory():
                finite = self._train_epoch()
            if not finite or not self._end_epoch():
                return "diverged"
        if self._seconds() > self.runtime.checkpoint_every:
            self.save()  # tests may take long, too
        return "ok"

    @contextmanager
    def _watching_memory(self) -> Iterator[None]:
        """Note the peak of training alone, not of tests, whose batches are larger, or of other trials."""
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        peak = torch.cuda.max_memory_allocated(self.device)
        self.progress.peak_memory = max(self.progress.peak_memory, peak)

    def _train_epoch(self) -> bool:
        """The rest of the current epoch; False once the loss is not finite."""
        self.learner.model.train()
        at = self.progress
        batches = self.data.train_batches(at.epoch, self.recipe.batch_size, start=at.step)
        since = time.monotonic()
        for batch in self.metrics.timed(batches):
            self._seed_noise()
            inputs, targets, count = self._on_device(batch)
            loss = self.learner.update(self.steps_done, inputs, targets, count)
            at.step += 1
            at.loss_sum += loss
            if not math.isfinite(loss):
                where = self.learner.first_non_finite(inputs, targets)
                self.cause = f"loss not finite, {where}, in epoch {at.epoch + 1}, step {at.step}"
                return False
            self._log(loss)
            at.training += time.monotonic() - since
            self._watch()
            if time.monotonic() - self.saved > self.runtime.checkpoint_every:
                self.save()
            since = time.monotonic()
        return True

    def _watch(self) -> None:
        """Say how far the run is, and end it here if that is asked for.

        Raises:
            Interrupted: it was; the checkpoint is saved.
        """
        self._report()
        if self.ranks.sum(self.stop_requested()):
            self.save()
            raise Interrupted

    def _seed_noise(self) -> None:
        """Seed the draws of a step: mixup is the same on all ranks, stochastic depth in the model is not."""
        at, seed = self.progress, self.trial.seed
        seed_global_generators(stream(seed, "noise", at.epoch, at.step), self.device)
        if self.ranks.rank > 0:
            torch.manual_seed(stream(seed, "noise", at.epoch, at.step, self.ranks.rank))

    def _on_device(self, batch: Batch) -> tuple[Any, Any, int]:
        """Inputs and targets of this rank's share of the batch, and how many examples that is."""
        inputs, targets, count = batch.inputs, batch.targets, len(batch.examples)
        if self.ranks.count > 1 and not isinstance(self.data, FilesRead):  # which has only read the share
            places = share(count, self.ranks.rank, self.ranks.count)
            inputs, targets, count = chosen(inputs, places), chosen(targets, places), len(places)
        inputs, targets = to_device((inputs, targets), self.device)
        if self.runtime.channels_last and self.task.spec.input == "image" and isinstance(inputs, Tensor):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets, count

    @property
    def steps_done(self) -> int:
        """Updates of the weights so far."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def _seconds(self) -> float:
        """How many the run has taken in all its sessions: up to the last save, and since then."""
        return self.progress.seconds + time.monotonic() - self.counted_from

    def _log(self, loss: float) -> None:
        if self.ranks.rank > 0:
            return
        self.metrics.add(
            step=self.steps_done,
            epoch=self.progress.epoch + 1,
            loss=loss,
            learning_rate=self.learner.learning_rate,
            grad_norm=self.learner.grad_norm,
        )

    def _end_epoch(self) -> bool:
        """Validate; False if that is not finite."""
        at = self.progress
        validation, _ = self.evaluate("validation")
        at.curve.append(
            {
                "epoch": at.epoch + 1,
                "learning_rate": self.learner.learning_rate,
                "train_loss": at.loss_sum / at.step,
                **{f"validation_{name}": value for name, value in validation.items()},
            }
        )
        self._write_curve(durable=False)
        if self.recipe.selection == "best" and self._is_best():
            at.best_epoch = at.epoch + 1
            weights = self.learner.tested.state_dict()
            self.best_weights = {name: value.clone() for name, value in weights.items()}
        at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
        return self._all_finite(validation, f"validation after epoch {at.epoch}")

    def _all_finite(self, metrics: Mapping[str, float], what: str) -> bool:
        """Whether a model came to something; if not, `cause` says where it did not."""
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            self.cause = f"{what}: {', '.join(wrong)} not finite"
        return not wrong

    def _is_best(self) -> bool:
        metric = self.task.metric
        values = [row[f"validation_{metric.name}"] for row in self.progress.curve]
        best = max(values) if metric.higher_is_better else min(values)
        return values.index(best) == len(values) - 1  # the first of equals stays

    def evaluate(self, split: str) -> tuple[dict[str, float], Answers]:
        """Metrics of a split, and what was answered to every example of it.

        Raises:
            EvaluationOutOfMemory: one example is too many; the checkpoint has what was trained until here.
        """
        try:
            return self.evaluator.answer(self.learner.tested, split)
        except EvaluationOutOfMemory as error:
            self.save()
            raise EvaluationOutOfMemory(
                f"{error}; what was trained is in the checkpoint, and the same command goes on from it"
            ) from error

    # ------------------------------------------------------ files of the trial

    def save(self) -> None:
        """Write the checkpoint."""
        if self.ranks.rank > 0:
            return
        self.progress.seconds = self._seconds()
        self.counted_from = self.saved = time.monotonic()
        self.progress.waiting += self.metrics.session_waited
        self.metrics.session_waited = 0.0
        checkpoint.write(self.folder, self._state())

    def _state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "trial_id": self.trial.id,
            "sources": self.sources,
            "fingerprint": self.fingerprint,
            "made_with": self.made_with,
            "progress": vars(self.progress),
            "window": vars(self.metrics.window),
            "best_weights": self.best_weights,
            **self.learner.state_dict(),
        }

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one that can be read and fits."""
        first = self.ranks.rank == 0
        saved = self.ranks.tell(
            checkpoint.read(self.folder, self.trial.id, like=self._state()) if first else None
        )
        if saved is None:
            return
        if not self._learner_takes(saved):
            del self.learner  # part of it may be restored already
            self.learner = self._untrained()
            return
        self.progress = Progress(**saved["progress"])
        self.best_weights = saved["best_weights"]
        self.metrics.window = Window(**saved["window"])
        self._add_to(saved["made_with"])

    def _add_to(self, earlier: list[dict[str, Any]]) -> None:
        """Keep what earlier sessions ran with, each once and this one last; note in what this one differs."""
        (own,) = self.made_with
        changed = [name for name, value in own.items() if value != earlier[-1].get(name)]
        if changed and self.ranks.rank == 0:
            self.folder.note(f"goes on after step {self.steps_done} with other {', '.join(changed)}")
        self.made_with = [each for each in earlier if each != own] + [own]

    def _learner_takes(self, saved: dict[str, Any]) -> bool:
        """Restore the learner; False if the checkpoint does not fit it, as after a change of this code."""
        try:
            self.learner.load_state_dict(saved)
        except Exception as error:  # torch raises many kinds for a state that does not fit
            if is_out_of_memory(error):
                raise
            if self.ranks.rank == 0:
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                self.folder.note(f"checkpoint does not fit, starting anew: {said}")
            return False
        return True

    def _write_curve(self, *, durable: bool) -> None:
        """Write `curve.csv`; that of every epoch but the last can be made again from the checkpoint."""
        if self.ranks.rank > 0:
            return
        rows = self.progress.curve
        lines = [",".join(rows[0]), *(",".join(f"{value:.8g}" for value in row.values()) for row in rows)]
        write_bytes(self.folder.curve, "".join(f"{line}\n" for line in lines).encode(), durable=durable)

    def _report(self) -> None:
        """Say how far the run is, in tests too: a machine that says nothing is taken for gone."""
        now = time.monotonic()
        if self.ranks.rank > 0 or now - self.reported < PROGRESS_EVERY:
            return
        self.reported = now
        done = self.progress.epoch + self.progress.step / self.steps_per_epoch
        self.folder.report_progress(
            epoch=min(self.progress.epoch + 1, self.recipe.all_epochs),
            epochs=self.recipe.all_epochs,
            fraction=done / self.recipe.all_epochs,
            seconds=self._seconds(),
        )

    def close(self) -> None:
        """Let go of files, processes and memory."""
        self.metrics.close()
        if isinstance(self.data, FilesRead):
            self.data.close()
        # breaks the reference cycle run <-> evaluator, which would keep the model until garbage collection
        del self.evaluator

    def finish(self, status: str) -> None:
        """Evaluate, if there is something to evaluate, and write the result."""
        seconds = self._seconds()  # before the tests, which are no training
        tested = self._test() if status == "ok" else _Tested(status, self.progress.epoch)
        unreadable = self._unreadable()
        if self.ranks.rank > 0:
            return
        self.folder.clear()
        if self.progress.curve:
            self._write_curve(durable=True)
        if tested.status == "ok":
            self.folder.answer(tested.answers)
            if self.runtime.keep_weights:
                self._store_weights()
        result, timing = self._result(tested), self._timing(seconds)
        if isinstance(self.data, FilesRead):
            timing["unreadable"] = unreadable
            waiting, training = timing["waiting_for_data"], self.progress.training
            self.folder.note(f"{waiting:.1%} of {training:.0f} s of training waiting for data")
            for name, problem in sorted(unreadable.items()):
                self.folder.note(f"passed over {name}: {problem}")
        self.folder.finish(result, timing)

    def _test(self) -> _Tested:
        """Evaluate the selected weights; "diverged" where a metric of the test split is not finite."""
        epoch = self.progress.epoch
        if self.best_weights is not None:
            self.learner.tested.load_state_dict(self.best_weights)
            epoch = self.progress.best_epoch
        validation, _ = self.evaluate("validation")
        test, answers = self.evaluate("test")
        if not self._all_finite(test, "test"):
            return _Tested("diverged", epoch)
        further, skipped = self.evaluator.answer_extra_tests(self.learner.tested)
        return _Tested("ok", epoch, {"validation": validation, "test": test | further}, skipped, answers)

    def _result(self, tested: _Tested) -> dict[str, Any]:
        """What is stored in `result.json`: what was asked for, what came out, and on which data and code."""
        *earlier, own = self.made_with
        return {
            "schema_version": SCHEMA_VERSION,
            "trial_id": self.trial.id,
            "trial": self.trial.to_dict(),
            "status": tested.status,
            "error": self.cause or None,
            "metrics": tested.metrics,
            "skipped": tested.skipped,
            "selected_epoch": tested.selected_epoch,
            "costs": count_costs(self.trial).to_dict(),
            "data": {"fingerprint": self.fingerprint, **self.data.sizes},
            "provenance": {
                **own,
                **({"earlier_sessions": earlier} if earlier else {}),
                "sources": self.sources,
            },
        }

    def _timing(self, seconds: float) -> dict[str, Any]:
        """What is stored in `timing.json`: all that differs from one run of the trial to the next.

        Args:
            seconds: how many training and its validations took.
        """
        training = self.progress.training
        waiting = self.progress.waiting + self.metrics.session_waited
        trained = self.steps_done * self.recipe.batch_size
        return {
            "started": self.started_at,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "train_seconds": seconds,
            "examples_per_second": trained / training if training else 0.0,
            "waiting_for_data": waiting / training if training else 0.0,
            "peak_memory_bytes": self._training_memory(),
            "host": socket.gethostname(),
        }

    def _unreadable(self) -> dict[str, str]:
        """Which files any rank passed over, and why."""
        own = self.data.unreadable if isinstance(self.data, FilesRead) else {}
        return {name: problem for each in self.ranks.gather(own) for name, problem in each.items()}

    def _store_weights(self) -> None:
        # tied weights are stored twice: the format knows no shared memory
        weights = {
            name: value.cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.learner.tested.state_dict().items()
        }
        # the id marks the file as ours; a single entry, since safetensors does not keep their order
        metadata = {"trial_id": self.trial.id}
        write_bytes(self.folder.weights, safetensors.torch.save(weights, metadata))

    def _training_memory(self) -> int:
        """Bytes of a training step: on CUDA the allocator's peak, on CPU what the step must hold."""
        if self.device.type == "cuda":
            return self.progress.peak_memory
        return self.learner.training_memory(next(self.data.train_batches(0, self.recipe.batch_size)))


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that library code draws from: stochastic depth (torch), mixup (NumPy).

    And Python's, which a user's own mixer may draw from: resumed, it draws what it would have drawn.
    """
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is far slower
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
