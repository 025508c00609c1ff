"""The contract of a task, and what classification tasks share.

A task is created with its options only: its `spec` and `metric` cost nothing. `load(seed)` gives the
data of one seed. All randomness comes from `trial.stream(seed, purpose, ...)`, so that the arms of a
seed see the same examples, in the same order, under the same augmentations. The three splits are
"train", "validation" and "test"; only the last is reported, and nothing is chosen on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.interface import Metric, TaskSpec
from experiments.trial import stream

Split = Literal["train", "validation", "test"]

IGNORE = -100
"""Target where nothing is asked; torch's default."""


class Batch(NamedTuple):
    """Inputs and targets, with the id of each example in the whole data set.

    Inputs are what the skeleton takes and targets what the task's loss does: tensors with the examples
    first, or lists and dictionaries of tensors where examples differ in shape. A tuple of inputs in a test
    are views of the same examples, each answered by itself; the scorer gets the tuple of answers.
    """

    inputs: Any
    targets: Any
    examples: Tensor


class TaskData(Protocol):
    """The data of one seed."""

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split."""

    @property
    def fingerprint(self) -> str:
        """Hash of every example and of the splits."""

    @property
    def extra_tests(self) -> Mapping[str, tuple[int, ...]]:
        """The grid of each further test set by its name; the batches of "1024" are those of the split
        "test_1024"."""

    def baselines(self, split: str = "test") -> dict[str, float]:
        """What naive predictors reach on a test set, in the task's metric; the best mere guess first."""

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled and augmented, from step `start` of the epoch; full batches only."""

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split or an extra test set in order, without augmentation, the short last batch included."""


def share(batch_size: int, rank: int, ranks: int) -> Tensor:
    """Places in a batch that are one rank's: from the front and, mirrored, from the back.

    Mixup mixes the first example with the last, the second with the one before; so every rank has both
    of a pair, at mirrored places again, and mixing its share is mixing the batch.
    """
    places = torch.arange(batch_size)
    if ranks == 1:
        return places
    each = batch_size // ranks
    half = each // 2
    front = places[rank * half : (rank + 1) * half]
    back = places.flip(0)[rank * half : (rank + 1) * half].flip(0)
    middle = places[ranks * half : batch_size - ranks * half]  # only where shares are odd
    return torch.cat([front, middle[rank : rank + 1], back])


class Task(Protocol):
    """What is asked of a model."""

    @property
    def spec(self) -> TaskSpec:
        """Shapes in and out."""

    @property
    def metric(self) -> Metric:
        """The number that is compared."""

    @property
    def other_metrics(self) -> tuple[Metric, ...]:
        """Numbers that a study may compare in its place."""

    def load(self, seed: int) -> TaskData:
        """The data of this seed."""

    def training_loss(
        self, model: nn.Module, inputs: Any, targets: Any, label_smoothing: float = 0.0
    ) -> Tensor:
        """Mean loss of a batch; targets are those of a `Batch` or, after mixup, class probabilities."""

    def loss_weight(self, targets: Any) -> float:
        """Over how much that mean is: what it counts for beside those of the batch's other parts."""

    def scorer(self) -> Scorer:
        """Marks the answers to one split."""


class Scorer(Protocol):
    """Takes a model's answers to a split batch by batch, then says what they are worth."""

    def add(self, outputs: Any, targets: Any, examples: Tensor) -> None:
        """The outputs of a batch, its targets on the same device, and the ids of its examples."""

    def metrics(self) -> dict[str, float]:
        """Every number reported for the split, the metric's among them."""

    def answers(self) -> dict[str, np.ndarray]:
        """What is stored of every example: `example`, `target` and `prediction`, examples first."""


ACCURACY = Metric("accuracy", "%", "points", higher_is_better=True)


class Classification:
    """Loss and metric of a task with one label per example."""

    metric = ACCURACY
    other_metrics: tuple[Metric, ...] = ()

    def training_loss(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        return self.loss(model(inputs).float(), targets, label_smoothing)

    def loss_weight(self, targets: Tensor) -> float:
        return float(len(targets))

    def scorer(self) -> Scorer:
        return ClassificationScorer(self)

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean loss; targets are class ids or, after mixup, class probabilities."""
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, predictions: Tensor, targets: Tensor, mean_loss: float) -> dict[str, float]:
        """Every number reported for a split, from what was predicted for all of it."""
        return {"accuracy": 100.0 * (predictions == targets).double().mean().item(), "loss": mean_loss}


class TokenClassification(Classification):
    """Loss and metric of a task with a label at some tokens of each example; the others are `IGNORE`d."""

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(
            outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, label_smoothing=label_smoothing
        )

    def loss_weight(self, targets: Tensor) -> float:
        return float((targets != IGNORE).sum())

    def measure(self, predictions: Tensor, targets: Tensor, mean_loss: float) -> dict[str, float]:
        """Accuracy over the scored tokens of each sequence, averaged over sequences as in zoology."""
        scored = targets != IGNORE  # (n, L)
        right = (predictions == targets) & scored
        accuracy = (right.sum(1).double() / scored.sum(1)).mean().item()
        return {"accuracy": 100.0 * accuracy, "loss": mean_loss}


class ClassificationScorer:
    """Keeps every prediction, and the loss over what is asked."""

    def __init__(self, task: Classification) -> None:
        self._task = task
        self._loss_sum, self._scored = 0.0, 0
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor, examples: Tensor) -> None:
        count = int((targets != IGNORE).sum())
        self._loss_sum += self._task.loss(outputs, targets).item() * count
        self._scored += count
        self._batches.append((examples, targets.cpu(), outputs.argmax(dim=-1).cpu()))

    def metrics(self) -> dict[str, float]:
        _, targets, predictions = self._columns()
        return self._task.measure(predictions, targets, self._loss_sum / self._scored)

    def answers(self) -> dict[str, np.ndarray]:
        names = ("example", "target", "prediction")
        return {name: column.numpy() for name, column in zip(names, self._columns(), strict=True)}

    def _columns(self) -> list[Tensor]:
        return [torch.cat(column) for column in zip(*self._batches, strict=True)]


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, and those inside lists, tuples and dictionaries, on the device."""
    if isinstance(value, Tensor):
        # to a CPU nothing would wait for the end of the copy
        return value.to(device, non_blocking=device.type != "cpu")
    if isinstance(value, dict):
        return {key: to_device(inner, device) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(inner, device) for inner in value)
    return value


def part_of(value: Any, chosen: slice) -> Any:
    """Some of a batch's inputs or targets: of tensors and lists, with the examples first; of dictionaries,
    from every entry."""
    if isinstance(value, dict):
        return {key: part_of(inner, chosen) for key, inner in value.items()}
    return value[chosen]


def chosen(value: Any, places: Tensor) -> Any:
    """The examples at some places of a batch's inputs or targets."""
    if isinstance(value, dict):
        return {key: chosen(inner, places) for key, inner in value.items()}
    return value[places] if isinstance(value, Tensor) else [value[place] for place in places.tolist()]


def generator(seed: int) -> torch.Generator:
    """A generator of its own for one use."""
    return torch.Generator().manual_seed(seed)


def split_examples(count: int, validation: int, test: int, seed: int) -> dict[str, Tensor]:
    """Disjoint random example ids, drawn anew for every seed."""
    order = torch.randperm(count, generator=generator(stream(seed, "data", "split")))
    return {
        "test": order[:test].sort().values,
        "validation": order[test : test + validation].sort().values,
        "train": order[test + validation :].sort().values,
    }


def example_ids(seed: int, split: str, count: int) -> Tensor:
    """Ids of examples that exist in one split of one seed only: (count,).

    Whoever compares seeds can tell from them that the examples are not the same.
    """
    return (stream(seed, "data", split, "ids") >> 20 << 20) + torch.arange(count)


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch."""
    return torch.randperm(count, generator=generator(stream(seed, "order", epoch)))


def fingerprint(*arrays: Tensor | np.ndarray) -> str:
    """16 hexadecimal digits of the SHA-256 of the arrays' shapes, types and bytes."""
    state = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array.numpy() if isinstance(array, Tensor) else array)
        state.update(f"{values.dtype}{values.shape}".encode())
        state.update(values.tobytes())
    return state.hexdigest()[:16]
