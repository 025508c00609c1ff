"""Real textures, many tokens, nothing causal: which of three photographs is this a piece of?

The photographs (grass, gravel, brick; CC0, 512 x 512, grey) ship with scikit-image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import Batch, Classification, TaskData, example_ids, fingerprint, generator
from experiments.trial import stream

PHOTOGRAPHS = ("grass", "gravel", "brick")
SIDE = 512
BLOCK = 128
BLOCKS = (SIDE // BLOCK) ** 2
HELD_OUT = 3  # blocks of each photograph in the validation split, and in the test split

Count = Annotated[int, Field(ge=1)]


class Textures(Classification):
    """Grass, gravel or brick?

    Each photograph is cut into 16 blocks; each seed gives 3 of them to validation and 3 to the test, so
    that no pixel is in two splits. An example is a piece of `side` x `side` pixels from inside a block,
    shifted and scaled to mean 0 and variance 1, so that brightness and contrast do not give it away;
    training pieces are drawn anew in every epoch, mirrored and turned. A piece of 128 pixels is a whole
    block: the test has 9 different ones, however many are asked for.

    Args:
        side: of a piece, in pixels.
        train: pieces per epoch.
        validation: pieces for choosing.
        test: pieces for reporting.
    """

    def __init__(
        self,
        *,
        side: Annotated[int, Field(ge=8, le=BLOCK)] = 64,
        train: Count = 2_000,
        validation: Count = 200,
        test: Count = 500,
    ) -> None:
        self.side, self.sizes = side, {"train": train, "validation": validation, "test": test}

    @property
    def spec(self) -> TaskSpec:
        grid = (self.side, self.side)
        return TaskSpec(input="image", channels=1, grid=grid, classes=len(PHOTOGRAPHS))

    def load(self, seed: int) -> TaskData:
        folder = files("skimage") / "data"
        photographs = []
        for name in PHOTOGRAPHS:
            with (folder / f"{name}.png").open("rb") as file, Image.open(file) as image:
                photographs.append(np.asarray(image.convert("L"), dtype=np.float32))
        return TexturesData(self, torch.from_numpy(np.stack(photographs)), seed)


class TexturesData:
    """The blocks of one seed's splits, and pieces of them."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, task: Textures, photographs: Tensor, seed: int) -> None:
        self._task, self._photographs, self._seed = task, photographs, seed
        self.sizes = task.sizes
        orders = [
            torch.randperm(BLOCKS, generator=generator(stream(seed, "data", "split", name)))
            for name in PHOTOGRAPHS
        ]
        order = torch.stack(orders)  # (photographs, blocks)
        self.blocks = {
            "test": order[:, :HELD_OUT],
            "validation": order[:, HELD_OUT : 2 * HELD_OUT],
            "train": order[:, 2 * HELD_OUT :],
        }

    def baselines(self, split: str = "test") -> dict[str, float]:
        return {"a random class": 100 / len(PHOTOGRAPHS)}

    @property
    def fingerprint(self) -> str:
        first = next(self.train_batches(0, min(64, self.sizes["train"])))
        fixed = [next(self.batches(split, self.sizes[split])).inputs for split in ("validation", "test")]
        return fingerprint(self._photographs, *self.blocks.values(), first.inputs, *fixed)

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.sizes["train"] // batch_size):
            random = generator(stream(self._seed, "augmentation", epoch, step))
            pieces, labels = self._draw("train", batch_size, random)
            yield Batch(turned(pieces, random), labels, step * batch_size + torch.arange(batch_size))

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        random = generator(stream(self._seed, "data", split))
        pieces, labels = self._draw(split, self.sizes[split], random)
        ids = example_ids(self._seed, split, len(labels))
        for chosen in torch.arange(len(labels)).split(batch_size):
            yield Batch(pieces[chosen], labels[chosen], ids[chosen])

    def _draw(self, split: str, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> pieces (count, 1, side, side) and labels (count,), as many of each as can be."""
        side = self._task.side
        labels = torch.arange(count) % len(PHOTOGRAPHS)
        blocks = self.blocks[split]
        block = blocks[labels, torch.randint(blocks.shape[1], (count,), generator=random)]
        corner = torch.stack([block // (SIDE // BLOCK), block % (SIDE // BLOCK)]) * BLOCK
        corner = corner + torch.randint(BLOCK - side + 1, (2, count), generator=random)  # (2, count)
        rows, columns = corner[:, :, None] + torch.arange(side)  # (count, side) each
        pieces = self._photographs[labels[:, None, None], rows[:, :, None], columns[:, None, :]]
        mean, spread = pieces.mean((1, 2), keepdim=True), pieces.std((1, 2), keepdim=True)
        return ((pieces - mean) / spread.clamp(min=1e-3))[:, None], labels


def turned(pieces: Tensor, random: torch.Generator) -> Tensor:
    """Each piece in one of its 8 orientations: (B, 1, S, S) -> same."""
    choice = torch.randint(8, (len(pieces),), generator=random)
    result = pieces.clone()
    for orientation in range(8):
        chosen = choice == orientation
        piece = pieces[chosen].rot90(orientation % 4, dims=(2, 3))
        result[chosen] = piece.flip(3) if orientation >= 4 else piece
    return result
