"""Handwritten digits: real data, no download, a short sequence and nothing causal about it.

The 1,797 8 x 8 digits that ship with scikit-learn (a copy of the UCI optical recognition test set).
They come centred, which lets a model without any token mixing answer from fixed pixels; so each digit
is put at a random place on a larger, empty canvas. Splits and places are drawn anew for every seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import (
    Batch,
    Classification,
    TaskData,
    fingerprint,
    generator,
    shuffled,
    split_examples,
)
from experiments.trial import stream
from mixers.registry import InputError

SIDE = 8
MEAN, STD = 0.305, 0.376  # of the 1,797 digits scaled to [0, 1]


class Digits(Classification):
    """Which digit is on the canvas?

    Args:
        canvas: side of the canvas in pixels, from 8 (digits stay centred).
        validation: examples for choosing, of 1,797.
        test: examples for reporting.
        distort: training digits are bent by a random linear map within this distance of the identity.
    """

    def __init__(
        self,
        *,
        canvas: Annotated[int, Field(ge=SIDE, le=64)] = 16,
        validation: Annotated[int, Field(ge=10)] = 180,
        test: Annotated[int, Field(ge=10)] = 360,
        distort: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    ) -> None:
        self.canvas, self.validation, self.test, self.distort = canvas, validation, test, distort
        if validation + test > 1_500:
            raise InputError(
                f"task digits: validation {validation} + test {test} leave too few of 1,797 to train on"
            )

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(input="image", channels=1, grid=(self.canvas, self.canvas), classes=10)

    def load(self, seed: int) -> TaskData:
        return DigitsData(self, *read_digits(), seed)


def read_digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 8, 8) in 0..1 and labels (1797,), as `sklearn.datasets.load_digits` has them.

    From the file itself: to import scikit-learn takes longer than a plan of a thousand trials.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    rows = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = torch.from_numpy(rows[:, :-1].reshape(-1, SIDE, SIDE)).float() / 16  # pixels are 0..16
    return images, torch.from_numpy(rows[:, -1].astype(np.int64))


class DigitsData:
    """The splits of one seed; outside of training every digit has one place."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, task: Digits, images: Tensor, labels: Tensor, seed: int) -> None:
        self._task, self._images, self._labels, self._seed = task, images, labels, seed
        self._examples: dict[str, Tensor] = split_examples(len(labels), task.validation, task.test, seed)
        self._placed: dict[str, Tensor] = {
            split: self._place(images[self._examples[split]], stream(seed, "data", "place", split))
            for split in self._examples
        }

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(examples) for split, examples in self._examples.items()}

    def baselines(self, split: str = "test") -> dict[str, float]:
        return {"a random class": 100 / self._task.spec.classes}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._images, self._labels, *self._examples.values(), *self._placed.values())

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        examples = self._examples["train"][shuffled(self.sizes["train"], self._seed, epoch)]
        for step in range(start, len(examples) // batch_size):
            chosen = examples[step * batch_size : (step + 1) * batch_size]
            bent = self._distort(
                self._images[chosen], stream(self._seed, "augmentation", "bend", epoch, step)
            )
            inputs = self._place(bent, stream(self._seed, "augmentation", "place", epoch, step))
            yield Batch(inputs, self._labels[chosen], chosen)

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        examples = self._examples[split]
        inputs = self._placed[split]
        for start in range(0, len(examples), batch_size):
            chosen = slice(start, start + batch_size)
            yield Batch(inputs[chosen], self._labels[examples[chosen]], examples[chosen])

    def _distort(self, images: Tensor, seed: int) -> Tensor:
        """Bend each digit inside its own 8 x 8 frame."""
        if self._task.distort == 0:
            return images
        bend = torch.rand(len(images), 2, 2, generator=generator(seed)) * 2 - 1
        maps = torch.zeros(len(images), 2, 3)
        maps[:, :, :2] = torch.eye(2) + self._task.distort * bend
        grid = F.affine_grid(maps, [len(images), 1, SIDE, SIDE], align_corners=False)
        return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]

    def _place(self, images: Tensor, seed: int) -> Tensor:
        """(B, 8, 8) -> (B, 1, canvas, canvas), each digit at its own random place, normalised."""
        canvas = self._task.canvas
        corner = torch.randint(canvas - SIDE + 1, (len(images), 2, 1), generator=generator(seed))
        rows, columns = (corner + torch.arange(SIDE)).unbind(dim=1)  # (B, 8) each
        placed = images.new_zeros(len(images), canvas, canvas)
        which = torch.arange(len(images))[:, None, None]
        placed[which, rows[:, :, None], columns[:, None, :]] = images
        return ((placed - MEAN) / STD)[:, None]
