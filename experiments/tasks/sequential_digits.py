"""Handwritten digits pixel by pixel: the real data of `digits`, read as a text of 17 grey levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import Batch, TaskData
from experiments.tasks.digits import MEAN, STD, Digits

LEVELS = 17  # 0..16, as scanned


class SequentialDigits(Digits):
    """Which digit was read, in raster order, token by token?

    The causal twin of `digits`: the same examples, splits, places and distortions, as canvas^2 tokens.
    Options are those of `Digits`.
    """

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("tokens", LEVELS, (self.canvas**2,), classes=10, causal=True)

    def load(self, seed: int) -> TaskData:
        return PixelByPixel(super().load(seed))


class PixelByPixel:
    """The batches of another task's data as grey levels."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, images: TaskData) -> None:
        self._images = images

    @property
    def sizes(self) -> dict[str, int]:
        return self._images.sizes

    def baselines(self, split: str = "test") -> dict[str, float]:
        return self._images.baselines(split)

    @property
    def fingerprint(self) -> str:
        return self._images.fingerprint

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        yield from map(_as_tokens, self._images.train_batches(epoch, batch_size, start))

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        yield from map(_as_tokens, self._images.batches(split, batch_size))


def _as_tokens(batch: Batch) -> Batch:
    return batch._replace(inputs=grey_levels(batch.inputs))


def grey_levels(images: Tensor) -> Tensor:
    """(B, 1, H, W) normalised -> (B, H W) in 0..16."""
    levels = (images.flatten(1) * STD + MEAN) * (LEVELS - 1)
    return levels.round().clamp(0, LEVELS - 1).long()
