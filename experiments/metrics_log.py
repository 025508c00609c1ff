"""Live metrics: a JSON line every so many steps, for whoever watches a long run; no part of its result.

    {"step": 150, "epoch": 2, "loss": 0.31, "learning_rate": 0.002, "examples_per_second": 812.4,
     "waiting_seconds": 0.02, "grad_norm": 1.7}

`loss` is the mean since the line before; `waiting_seconds` is the time, of that which passed since then, that
the loop waited for data; `grad_norm` is the step's, before clipping, where gradients are clipped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from experiments.store import TrialFolder, write_bytes
from experiments.trial import canonical_json

Item = TypeVar("Item")


@dataclass
class Window:
    """The steps since the last line; part of the checkpoint, so that a resumed run writes the same lines."""

    loss_sum: float = 0.0
    steps: int = 0


class MetricsLog:
    """Writes `metrics.jsonl`, and with `tensorboard` an event file beside it.

    Args:
        folder: of the trial.
        every: steps between two lines.
        batch_size: examples per step.
        tensorboard: whether to write for TensorBoard, too.

    Attributes:
        window: the steps since the last line.
        session_waited: seconds waited for data since this began; set to 0 by who has taken note of them.
    """

    def __init__(self, folder: TrialFolder, every: int, batch_size: int, *, tensorboard: bool) -> None:
        self._folder, self._every, self._batch_size = folder, every, batch_size
        self._tensorboard = tensorboard
        self._writer: Any = None
        self.window = Window()  # set anew by who restores a checkpoint
        self._waited = 0.0  # since the last line
        self.session_waited = 0.0
        self._steps = 0  # of this session, since the last line
        self._since = time.perf_counter()

    def start(self, step: int) -> None:
        """Go on after `step` steps: lines of later ones, written before the run was cut off, go."""
        path = self._folder.metrics
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= step]
            write_bytes(path, b"".join(line + b"\n" for line in kept))
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder.path / "tensorboard"), purge_step=step + 1)
        self._since = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same, measuring how long each is waited for."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            waited = time.perf_counter() - asked
            self._waited += waited
            self.session_waited += waited
            yield batch

    def add(
        self, *, step: int, epoch: int, loss: float, learning_rate: float, grad_norm: Tensor | None
    ) -> None:
        """Take note of a step; write a line if it is time.

        Args:
            step: how many there have been in all, this one included.
            epoch: from 1.
            loss: of the step.
            learning_rate: of the step.
            grad_norm: before clipping; None without clipping.
        """
        self.window.loss_sum += loss
        self.window.steps += 1
        self._steps += 1
        if step % self._every:
            return
        now = time.perf_counter()
        values: dict[str, float | None] = {
            "loss": self.window.loss_sum / self.window.steps,
            "learning_rate": learning_rate,
            "examples_per_second": self._steps * self._batch_size / (now - self._since),
            "waiting_seconds": self._waited,
        }
        if grad_norm is not None:
            norm = grad_norm.item()
            values["grad_norm"] = norm if math.isfinite(norm) else None  # a float16 step that is skipped
        self._folder.append_metrics(canonical_json({"step": step, "epoch": epoch, **values}))
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, math.nan if value is None else value, step)
        self.window = Window()
        self._waited, self._steps, self._since = 0.0, 0, now

    def close(self) -> None:
        """Write out what TensorBoard's writer holds back."""
        if self._writer is not None:
            self._writer.close()


def _step_of(line: bytes) -> float:
    """The step of a line; infinite for one that was cut off in the middle, or damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf
