"""What a finished trial came to and where that comes from: the contents of its last files."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import safetensors.torch
import torch

from experiments.build import count_costs
from experiments.checkpoint import TrainState
from experiments.evaluate import Answers
from experiments.tasks.base import TaskData
from experiments.trial import SCHEMA_VERSION, Trial


@dataclass(frozen=True)
class Outcome:
    """What a trained model came to; without numbers where it diverged.

    Attributes:
        status: "ok" or "diverged".
        selected_epoch: whose weights were tested.
        metrics: by split.
        skipped: further test sets that were not answered, and why.
        answers: to the examples of the test split.
        cause: of divergence.
    """

    status: str
    selected_epoch: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)
    cause: str = ""


@dataclass
class Origin:
    """The code, the data and the machines that a trial's numbers come from.

    Attributes:
        sources: digests of the files of its mixers and its task.
        fingerprint: of its data; empty on all ranks but the first.
        made_with: what the sessions ran with, each once and this one last.
    """

    sources: dict[str, str]
    fingerprint: str
    made_with: list[dict[str, Any]]

    def continue_from(self, earlier: list[dict[str, Any]]) -> list[str]:
        """Keep what earlier sessions ran with; the names of that in which this one differs from the last."""
        (own,) = self.made_with
        self.made_with = [each for each in earlier if each != own] + [own]
        return [name for name, value in own.items() if value != earlier[-1].get(name)]


def result_fields(trial: Trial, sizes: dict[str, int], origin: Origin, outcome: Outcome) -> dict[str, Any]:
    """What is stored in `result.json`: what was asked for, what came out, and on which data and code.

    Args:
        trial: that is finished.
        sizes: examples per split.
        origin: of the numbers.
        outcome: the numbers.
    """
    *earlier, own = origin.made_with
    return {
        "schema_version": SCHEMA_VERSION,
        "trial_id": trial.id,
        "trial": trial.to_dict(),
        "status": outcome.status,
        "error": outcome.cause or None,
        "metrics": outcome.metrics,
        "skipped": outcome.skipped,
        "selected_epoch": outcome.selected_epoch,
        "costs": count_costs(trial).to_dict(),
        "data": {"fingerprint": origin.fingerprint, **sizes},
        "provenance": {
            **own,
            **({"earlier_sessions": earlier} if earlier else {}),
            "sources": origin.sources,
        },
    }


def timing_fields(
    state: TrainState, data: TaskData, batch_size: int, *, started: str, seconds: float, waiting: float
) -> dict[str, Any]:
    """What is stored in `timing.json`: all that differs from one run of the trial to the next.

    Args:
        state: at the end.
        data: it was trained on.
        batch_size: examples per step.
        started: when the last session began.
        seconds: how many training and its validations took.
        waiting: how many of them the next batch was not there yet.
    """
    training = state.progress.training
    return {
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "train_seconds": seconds,
        "examples_per_second": state.steps_done * batch_size / training if training else 0.0,
        "waiting_for_data": waiting / training if training else 0.0,
        "peak_memory_bytes": _training_memory(state, data, batch_size),
        "host": socket.gethostname(),
    }


def _training_memory(state: TrainState, data: TaskData, batch_size: int) -> int:
    """Bytes of a training step: on CUDA the allocator's peak, on CPU what the step must hold."""
    if state.learner.device.type == "cuda":
        return state.progress.peak_memory
    return state.learner.training_memory(next(data.train_batches(0, batch_size)))


def weights_file(state: TrainState, trial_id: str) -> bytes:
    """What is stored in `weights.safetensors`; tied weights twice, as the format knows no shared memory."""
    weights = {
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.learner.tested.state_dict().items()
    }
    # the id marks the file as ours; a single entry, since safetensors does not keep their order
    return safetensors.torch.save(weights, {"trial_id": trial_id})
