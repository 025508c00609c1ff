"""One update of the weights: by which loss, at which learning rate, clipped to which norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from experiments.build import create_task
from experiments.learner import Learner
from experiments.ranks import ALONE
from experiments.recipe import make_mixup
from experiments.runtime import Runtime
from experiments.tasks.base import Batch
from experiments.trial import Trial

MakeTrial = Callable[..., Trial]
STEPS = 10  # in an epoch


def learner_of(trial: Trial, micro_batch: int | None = None) -> tuple[Learner, Batch]:
    """With the first batch of its first epoch."""
    task = create_task(trial.task)
    batch = next(task.load(trial.seed).train_batches(0, trial.train.batch_size))
    return Learner(trial, task, Runtime(micro_batch=micro_batch), ALONE, torch.device("cpu"), STEPS), batch


def update(learner: Learner, batch: Batch, step: int = 0) -> float:
    return learner.update(step, batch.inputs, batch.targets, len(batch.examples))


def norm_of_gradients(learner: Learner) -> float:
    gradients = [parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_are_clipped_to_the_norm_of_the_recipe(tiny_trial: MakeTrial, precision: str) -> None:
    """Those of the loss, not those that the scaler of float16 has made larger."""
    unclipped, batch = learner_of(tiny_trial())
    update(unclipped, batch)
    assert unclipped.grad_norm is None
    norm = norm_of_gradients(unclipped)
    for largest in (norm / 10, norm * 10):
        learner, _ = learner_of(tiny_trial(clip_grad=largest, precision=precision))
        update(learner, batch)
        assert learner.grad_norm is not None
        assert learner.grad_norm.item() == pytest.approx(norm, rel=2e-2)
        assert norm_of_gradients(learner) == pytest.approx(min(norm, largest), rel=2e-2)


def test_mixed_targets_are_smoothed_once(tiny_trial: MakeTrial) -> None:
    trial = tiny_trial(mixup=0.8, label_smoothing=0.3)
    learner, batch = learner_of(trial)
    mixup = make_mixup(trial.train, 10)
    assert mixup is not None
    np.random.seed(1)
    inputs, targets = mixup(batch.inputs.clone(), batch.targets)
    assert targets.min() == pytest.approx(0.3 / 10)
    with torch.no_grad():
        expected = F.cross_entropy(learner.model(inputs), targets).item()
    np.random.seed(1)
    assert update(learner, batch) == pytest.approx(expected, rel=1e-5)


def test_an_update_has_the_learning_rate_of_its_step(tiny_trial: MakeTrial) -> None:
    """The first one that of the start of the warm-up."""
    learner, batch = learner_of(tiny_trial("identity", epochs=3, warmup_lr=1e-6, lr=1e-3, min_lr=1e-5))
    update(learner, batch)
    assert learner.learning_rate == 1e-6
    update(learner, batch, step=STEPS // 2)
    assert learner.learning_rate == pytest.approx((1e-6 + 1e-3) / 2)
    update(learner, batch, step=2 * STEPS)
    assert learner.learning_rate == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(2 * math.pi / 3)) / 2)


def test_the_memory_of_training_counts_the_average_and_the_part_that_is_taken_at_once(
    tiny_trial: MakeTrial,
) -> None:
    held = {}
    for decay, part in ((None, None), (0.9, None), (None, 16)):
        learner, batch = learner_of(tiny_trial(ema_decay=decay), part)
        update(learner, batch)
        held[decay, part] = learner.training_memory(batch)
    weights = sum(parameter.nbytes for parameter in learner.model.parameters())
    assert held[0.9, None] - held[None, None] == weights
    beside_activations = 4 * weights  # weights, gradients and two moments
    assert held[None, 16] - beside_activations == pytest.approx(
        (held[None, None] - beside_activations) / 4, rel=0.05
    )
