"""One loop for every task: from a trial to its result, interruptible at any step.

What one step does is in `learner`, how a model is tested in `evaluate`, and the files in `recorder`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from experiments.build import create_task
from experiments.checkpoint import Progress, TrainState
from experiments.divided_batches import check_share, own_share
from experiments.evaluate import Answers, EvaluationOutOfMemory, Evaluator
from experiments.learner import Learner
from experiments.machine import provenance, torch_device
from experiments.ranks import ALONE, Ranks
from experiments.recorder import Recorder
from experiments.result import Origin, Outcome
from experiments.runtime import Runtime
from experiments.sources import digests
from experiments.store import TrialFolder
from experiments.tasks.base import Task, TaskData
from experiments.tasks.reading import FilesRead, Reading
from experiments.trial import Trial, stream


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
    check_share(trial.train, ranks)
    device = torch_device(runtime.device)
    task = create_task(trial.task)
    data = _load(task, trial.seed, runtime, ranks, device)
    # before anything is trained: a file may be edited while that goes on
    sources = digests((mixer.name for mixer in trial.mixer), trial.task.name)
    fingerprint = data.fingerprint if ranks.rank == 0 else ""  # which may take a while
    steps_per_epoch = data.sizes["train"] // trial.train.batch_size
    state = TrainState(
        partial(Learner, trial, task, runtime, ranks, device, steps_per_epoch), steps_per_epoch
    )
    made_with = provenance(device, runtime, state.learner.backend, ranks.count)
    recorder = Recorder(trial, folder, runtime, ranks, state, Origin(sources, fingerprint, [made_with]))
    watch = partial(_watch, recorder, stop_requested, ranks)
    evaluator = Evaluator(task, data, device, trial.train.precision, ranks, recorder.note, watch)
    training = Training(trial, ranks, data, state, evaluator, recorder)
    try:
        recorder.resume()
        cause = training.train()
        seconds = recorder.seconds  # before the tests, which are no training
        outcome = Outcome("diverged", state.progress.epoch, cause=cause) if cause else training.test()
        recorder.finish(outcome, data, seconds)
    finally:
        recorder.close()
        if isinstance(data, FilesRead):
            data.close()


def _load(task: Task, seed: int, runtime: Runtime, ranks: Ranks, device: torch.device) -> TaskData:
    data = task.load(seed)
    if isinstance(data, FilesRead):
        data.read_with(Reading(runtime.loaders, ranks.rank, ranks.count, pin=device.type == "cuda"))
    return data


def _watch(recorder: Recorder, stop_requested: Callable[[], bool], ranks: Ranks) -> None:
    """Say how far the run is, and end it here if that is asked for.

    Raises:
        Interrupted: it was; the checkpoint is saved.
    """
    recorder.report()
    if ranks.sum(stop_requested()):
        recorder.save()
        raise Interrupted


@dataclass
class Training:
    """The loop: epochs of updates and validations, then the tests.

    Attributes:
        trial: what is trained.
        ranks: this process among those that train together.
        data: to train on.
        state: which the loop changes.
        evaluator: has the model tested; its `watch` is called after every step, too.
        recorder: is told what is done.
    """

    trial: Trial
    ranks: Ranks
    data: TaskData
    state: TrainState
    evaluator: Evaluator
    recorder: Recorder

    def train(self) -> str:
        """All remaining epochs; why they came to nothing, if they diverged."""
        while self.state.progress.epoch < self.trial.train.all_epochs:
            with _watching_memory(self.state.learner.device, self.state.progress):
                cause = self._train_epoch()
            cause = cause or self._end_epoch()
            if cause:
                return cause
        self.recorder.save_before_tests()
        return ""

    def _train_epoch(self) -> str:
        """The rest of the current epoch; where the loss is not finite, if so."""
        at, learner = self.state.progress, self.state.learner
        learner.model.train()
        batches = self.data.train_batches(at.epoch, self.trial.train.batch_size, start=at.step)
        since = time.monotonic()
        for batch in self.recorder.timed(batches):
            seed_noise(self.trial.seed, at, self.ranks, learner.device)
            own = own_share(batch, self.data, self.ranks)
            inputs, targets = learner.on_device(own)
            loss = learner.update(self.state.steps_done, inputs, targets, len(own.examples))
            at.step += 1
            at.loss_sum += loss
            if not math.isfinite(loss):
                where = learner.first_non_finite(inputs, targets)
                return f"loss not finite, {where}, in epoch {at.epoch + 1}, step {at.step}"
            self.recorder.add_step(loss)
            at.training += time.monotonic() - since
            self.evaluator.watch()
            self.recorder.save_when_due()
            since = time.monotonic()
        return ""

    def _end_epoch(self) -> str:
        """Validate; what of that is not finite, if so."""
        at, learner = self.state.progress, self.state.learner
        validation, _ = self.evaluate("validation")
        at.curve.append(
            {
                "epoch": at.epoch + 1,
                "learning_rate": learner.learning_rate,
                "train_loss": at.loss_sum / at.step,
                **{f"validation_{name}": value for name, value in validation.items()},
            }
        )
        self.recorder.write_curve()
        if self.trial.train.selection == "best" and self._is_best():
            at.best_epoch = at.epoch + 1
            weights = learner.tested.state_dict()
            self.state.best_weights = {name: value.clone() for name, value in weights.items()}
        at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
        return _not_finite(validation, f"validation after epoch {at.epoch}")

    def _is_best(self) -> bool:
        metric = self.evaluator.task.metric
        values = [row[f"validation_{metric.name}"] for row in self.state.progress.curve]
        best = max(values) if metric.higher_is_better else min(values)
        return values.index(best) == len(values) - 1  # the first of equals stays

    def test(self) -> Outcome:
        """Evaluate the selected weights; "diverged" where a metric of the test split is not finite."""
        epoch, tested = self.state.progress.epoch, self.state.learner.tested
        if self.state.best_weights is not None:
            tested.load_state_dict(self.state.best_weights)
            epoch = self.state.progress.best_epoch
        validation, _ = self.evaluate("validation")
        test, answers = self.evaluate("test")
        cause = _not_finite(test, "test")
        if cause:
            return Outcome("diverged", epoch, cause=cause)
        further, skipped = self.evaluator.answer_extra_tests(tested)
        return Outcome("ok", epoch, {"validation": validation, "test": test | further}, skipped, answers)

    def evaluate(self, split: str) -> tuple[dict[str, float], Answers]:
        """Metrics of a split, and what was answered to every example of it.

        Raises:
            EvaluationOutOfMemory: one example is too many; the checkpoint has what was trained until here.
        """
        try:
            return self.evaluator.answer(self.state.learner.tested, split)
        except EvaluationOutOfMemory as error:
            self.recorder.save()
            raise EvaluationOutOfMemory(
                f"{error}; what was trained is in the checkpoint, and the same command goes on from it"
            ) from error


def _not_finite(metrics: Mapping[str, float], what: str) -> str:
    """Which metrics are not finite, in words; nothing if all are."""
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    return f"{what}: {', '.join(wrong)} not finite" if wrong else ""


@contextmanager
def _watching_memory(device: torch.device, progress: Progress) -> Iterator[None]:
    """Note the peak of training alone, not of tests, whose batches are larger, or of other trials."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    progress.peak_memory = max(progress.peak_memory, torch.cuda.max_memory_allocated(device))


def seed_noise(seed: int, at: Progress, ranks: Ranks, device: torch.device) -> None:
    """Seed the draws of a step: mixup is the same on all ranks, stochastic depth in the model is not."""
    seed_global_generators(stream(seed, "noise", at.epoch, at.step), device)
    if ranks.rank > 0:
        torch.manual_seed(stream(seed, "noise", at.epoch, at.step, ranks.rank))


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that library code draws from: stochastic depth (torch), mixup (NumPy).

    And Python's, which a user's own mixer may draw from: resumed, it draws what it would have drawn.
    """
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is far slower
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
