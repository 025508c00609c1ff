"""Scenes: real handwriting scattered over a canvas, and one framed digit that all the others must know of.

The 1,797 digits that ship with scikit-learn, twice as large, each in a cell of 16 x 16 pixels of a canvas of
G x G cells. Every plain digit's pixels are asked for two things: `own`, the digit's class, which local
features tell, and `key`, the class of the framed digit, which only what carries information across the canvas
can tell. Accuracy of `key` by the distance to the key is a mixer's range; below against above the key in scan
order is the price of causality.

Splits are made of the digits before anything is composed: no handwriting is in two of them. The same rule
draws scenes for detection (`scenes-detect`) and writes them as files (`experiments.scene_files`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.interface import Metric, TaskSpec
from experiments.tasks.base import IGNORE, Batch, Scorer, example_ids, fingerprint, generator, split_examples
from experiments.tasks.digits import read_digits
from experiments.tasks.segmentation import at_size, pixel_loss
from experiments.trial import stream
from mixers.registry import InputError

CELL = 16  # pixels along a side of a cell
INK = 0.25  # brightness from which a pixel belongs to its digit
MEAN, STD = 0.12, 0.28  # of a canvas with 6 digits in 16 cells
HELD_OUT = {"validation": 180, "test": 360}  # digits, of 1,797
CLASSES = 10
QUESTIONS = ("own", "key")

Count = Annotated[int, Field(ge=1)]


class Scenes(NamedTuple):
    """Some canvases of G x G cells, S = 16 G pixels wide, with K plain digits and one key each.

    Attributes:
        images: brightness with noise, about 0 to 1, (B, S, S).
        sources: which of the 1,797 digits, (B, K + 1); the key is the first.
        classes: of each digit, (B, K + 1).
        cells: where each digit is, counted row by row, (B, K + 1).
        masks: the pixels of each digit in its cell, without the frame, (B, K + 1, 16, 16).
    """

    images: Tensor
    sources: Tensor
    classes: Tensor
    cells: Tensor
    masks: Tensor

    def painted(self, values: Tensor, background: int) -> Tensor:
        """Each digit's pixels in the value given for it: (B, K + 1) -> (B, S, S)."""
        side = self.images.shape[-1] // CELL
        tiles = torch.where(self.masks, values[..., None, None], background)
        return assemble(tiles, self.cells, side, background)


@dataclass(frozen=True)
class SceneRule:
    """How scenes are drawn from a pool of digits.

    Attributes:
        side: cells along a side of the canvas, G.
        digits: plain ones, K.
        noise: standard deviation of what is added to every pixel.
        same: probability that a plain digit has the key's class; None for digits drawn regardless of it.

    Raises:
        InputError: more digits than cells.
    """

    side: int
    digits: int
    noise: float
    same: float | None = None

    def __post_init__(self) -> None:
        if self.digits + 1 > self.side**2:
            raise InputError(
                f"{self.digits} digits and the key do not fit into {self.side} x {self.side} cells; at most "
                f"{self.side**2 - 1} digits do"
            )

    def draw(self, count: int, pool: Tensor, random: torch.Generator) -> Scenes:
        """-> `count` scenes.

        Args:
            count: number of scenes.
            pool: ids of the digits to draw from, (n,).
            random: the only source of randomness.
        """
        tiles, labels = handwriting()
        cells = torch.rand(count, self.side**2, generator=random).topk(self.digits + 1, dim=1).indices
        keys = torch.randint(len(pool), (count, 1), generator=random)
        others = self._plain(labels[pool], keys, random)
        sources = pool[torch.cat([keys, others], dim=1)]  # (B, K + 1)
        chosen = tiles[sources]  # (B, K + 1, 16, 16)
        masks = chosen > INK
        drawn = chosen.clone()
        drawn[:, 0] = framed(drawn[:, 0])
        images = assemble(drawn, cells, self.side, 0.0)
        images = images + self.noise * torch.randn(images.shape, generator=random)
        return Scenes(images, sources, labels[sources], cells, masks)

    def _plain(self, labels: Tensor, keys: Tensor, random: torch.Generator) -> Tensor:
        """Positions in the pool of the plain digits: labels (n,), keys (B, 1) -> (B, K)."""
        if self.same is None:
            return torch.randint(len(labels), (len(keys), self.digits), generator=random)
        alike = labels == labels[keys]  # (B, n)
        share = alike.double().sum(1, keepdim=True)
        weights = torch.where(alike, self.same / share, (1 - self.same) / (len(labels) - share))
        return torch.multinomial(weights, self.digits, replacement=True, generator=random)


def framed(tiles: Tensor) -> Tensor:
    """(..., 16, 16) with a bright frame one pixel wide."""
    frame = F.pad(torch.zeros(CELL - 2, CELL - 2), (1, 1, 1, 1), value=1.0)
    return torch.maximum(tiles, frame)


def assemble(tiles: Tensor, cells: Tensor, side: int, background: float) -> Tensor:
    """Tiles (B, n, 16, 16) at their cells (B, n) -> canvases (B, 16 side, 16 side)."""
    canvas = torch.full((len(tiles), side**2, CELL, CELL), background, dtype=tiles.dtype)
    canvas[torch.arange(len(tiles))[:, None], cells] = tiles
    rows = canvas.unflatten(1, (side, side)).transpose(2, 3)  # (B, rows, 16, columns, 16)
    return rows.reshape(len(tiles), side * CELL, side * CELL)


def cut_up(canvas: Tensor, cells: Tensor) -> Tensor:
    """The inverse of `assemble`: (B, 16 side, 16 side) -> the tiles at the cells (B, n), (B, n, 16, 16)."""
    side = canvas.shape[-1] // CELL
    tiles = canvas.view(len(canvas), side, CELL, side, CELL).transpose(2, 3).flatten(1, 2)
    return tiles[torch.arange(len(canvas), device=canvas.device)[:, None], cells]


_handwriting: list[tuple[Tensor, Tensor]] = []


def handwriting() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits twice as large, (1797, 16, 16) in 0..1, and their classes (1797,)."""
    if not _handwriting:
        small, labels = read_digits()
        large = F.interpolate(small[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        _handwriting.append((large, labels))
    return _handwriting[0]


class SceneSegmentation:
    """What is this digit, and what is the framed one? Asked of every pixel of every plain digit.

    With G = 2 and K = 1, and cells of a single pixel, a 7 at the lower left under a framed 3 at the upper
    right is

        image    .  [3]      own   .  .      key   .  .
                 7   .             7  .            3  .      (the rest is not scored)

    Logits (B, h, w, 20) are resized to the pixels; the first ten answer `own`, the last ten `key`. Accuracy
    is that of the scored pixels. Distances are counted in cells, as a king moves; a digit is below the key if
    its row of cells is.

    Args:
        side: cells along a side of the canvas; at a stride of 4 pixels a canvas has 16 side^2 tokens.
        digits: plain ones on each canvas.
        noise: standard deviation of what is added to every pixel.
        train: canvases per epoch, drawn anew in every epoch.
        validation: canvases for choosing.
        test: canvases for reporting.

    Raises:
        InputError: more digits than cells.
    """

    metric = Metric("key_accuracy", "%", "points", higher_is_better=True)

    def __init__(
        self,
        *,
        side: Annotated[int, Field(ge=2, le=64)] = 4,
        digits: Count = 5,
        noise: Annotated[float, Field(ge=0)] = 0.05,
        train: Count = 6_400,
        validation: Count = 200,
        test: Count = 500,
    ) -> None:
        self.rule = SceneRule(side, digits, noise)
        self.sizes = {"train": train, "validation": validation, "test": test}

    @property
    def other_metrics(self) -> tuple[Metric, ...]:
        """Of either question: of all digits, and of those in one place about the key."""
        names = [f"{question}_accuracy{place}" for question in QUESTIONS for place in places(self.rule.side)]
        return tuple(
            dataclasses.replace(self.metric, name=name) for name in names if name != self.metric.name
        )

    @property
    def spec(self) -> TaskSpec:
        grid = (self.rule.side * CELL,) * 2
        return TaskSpec("image", 1, grid, len(QUESTIONS) * CLASSES, output="per-pixel")

    def load(self, seed: int) -> SceneData:
        return SceneData(self.rule, self.sizes, seed)

    def training_loss(
        self, model: nn.Module, inputs: Tensor, targets: Mapping[str, Tensor], label_smoothing: float = 0.0
    ) -> Tensor:
        return pixel_loss(model(inputs), lambda logits: self.loss(logits, targets, label_smoothing))

    def loss_weight(self, targets: Mapping[str, Tensor]) -> float:
        return float((targets["own"] != IGNORE).sum())

    def loss(self, logits: Tensor, targets: Mapping[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Mean over both questions and the scored pixels: logits (B, h, w, 20), targets (B, S, S) each."""
        scored = targets["own"] != IGNORE  # the same pixels are asked both
        answers = at_size(logits, scored.shape[1:])[scored]  # (n, 20)
        asked = torch.stack([targets[question][scored] for question in QUESTIONS], dim=1)  # (n, 2)
        return F.cross_entropy(
            answers.unflatten(1, (len(QUESTIONS), CLASSES)).flatten(0, 1),
            asked.flatten(),
            label_smoothing=label_smoothing,
        )

    def answers(self, logits: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
        """The class answered to each question at each pixel: logits (B, h, w, 20) -> (B, *size) each."""
        likeliest = at_size(logits, size).unflatten(-1, (len(QUESTIONS), CLASSES)).argmax(-1)
        return dict(zip(QUESTIONS, likeliest.unbind(-1), strict=True))

    def scorer(self) -> Scorer:
        return SceneScorer(self)


class SceneData:
    """The digits of one seed's splits, and scenes drawn from them."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, rule: SceneRule, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes = dict(sizes)
        self._rule, self._seed = rule, seed
        _, labels = handwriting()
        self.pools: dict[str, Tensor] = split_examples(len(labels), **HELD_OUT, seed=seed)

    def baselines(self, split: str = "test") -> dict[str, float]:
        return {"a random class": 100 / CLASSES}

    @property
    def fingerprint(self) -> str:
        scenes = [self.train_scenes(0, 0, min(64, self.sizes["train"]))]
        scenes += [self.scenes(split) for split in ("validation", "test")]
        return fingerprint(*self.pools.values(), *(tensor for each in scenes for tensor in each))

    def train_scenes(self, epoch: int, step: int, count: int) -> Scenes:
        """The scenes of one step of training."""
        random = generator(stream(self._seed, "data", "train", epoch, step))
        return self._rule.draw(count, self.pools["train"], random)

    def scenes(self, split: str) -> Scenes:
        """All scenes of a split; of training, as many as an epoch has, from a stream that no step uses."""
        random = generator(stream(self._seed, "data", split))
        return self._rule.draw(self.sizes[split], self.pools[split], random)

    def examples(self, split: str) -> Tensor:
        """Ids of the scenes of a split."""
        return example_ids(self._seed, split, self.sizes[split])

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.sizes["train"] // batch_size):
            scenes = self.train_scenes(epoch, step, batch_size)
            yield as_batch(scenes, step * batch_size + torch.arange(batch_size))

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        scenes = self.scenes(split)
        examples = self.examples(split)
        for chosen in torch.arange(len(examples)).split(batch_size):
            yield as_batch(Scenes(*(tensor[chosen] for tensor in scenes)), examples[chosen])


def as_batch(scenes: Scenes, examples: Tensor) -> Batch:
    """Normalised images (B, 1, S, S), both questions' labels (B, S, S) and the digits' cells (B, K + 1)."""
    targets = {**labels_of(scenes), "cells": scenes.cells}
    return Batch((scenes.images[:, None] - MEAN) / STD, targets, examples)


def labels_of(scenes: Scenes) -> dict[str, Tensor]:
    """What every pixel is asked, by question: (B, S, S), `IGNORE` but for the plain digits' pixels."""
    own = torch.cat([torch.full_like(scenes.classes[:, :1], IGNORE), scenes.classes[:, 1:]], dim=1)
    key = torch.where(own == IGNORE, IGNORE, scenes.classes[:, :1])
    return {"own": scenes.painted(own, IGNORE), "key": scenes.painted(key, IGNORE)}


class SceneScorer:
    """Keeps the answer to both questions at the pixels of every plain digit."""

    def __init__(self, task: SceneSegmentation) -> None:
        self._task = task
        self._loss_sum, self._scored = 0.0, 0
        self._batches: list[dict[str, Tensor]] = []

    def add(self, outputs: Tensor, targets: Mapping[str, Tensor], examples: Tensor) -> None:
        own, cells = targets["own"], targets["cells"]
        count = int((own != IGNORE).sum())
        self._loss_sum += self._task.loss(outputs, targets).item() * count
        self._scored += count
        columns = {"example": examples, "cells": cells.cpu()}
        for question, prediction in self._task.answers(outputs, own.shape[1:]).items():
            for name, canvas in ((question, targets[question]), (f"{question}_prediction", prediction)):
                columns[name] = cut_up(canvas, cells[:, 1:]).flatten(2).short().cpu()  # (B, K, 256)
        self._batches.append(columns)

    def metrics(self) -> dict[str, float]:
        found = self._columns()
        key, place = places_of(found["cells"], self._task.rule.side)
        down = place[..., 0] - key[..., 0]
        distance = (place - key).abs().amax(-1)  # (N, K)
        steps = [distance == step for step in range(1, self._task.rule.side)]
        chosen_by = (distance > 0, down < 0, down == 0, down > 0, *steps)
        where = dict(zip(places(self._task.rule.side), chosen_by, strict=True))
        measured = {"loss": self._loss_sum / self._scored}
        for question in QUESTIONS:
            asked = found[question] != IGNORE  # (N, K, 256)
            right = asked & (found[f"{question}_prediction"] == found[question])
            for name, chosen in where.items():
                if scored := int(asked[chosen].sum()):
                    measured[f"{question}_accuracy{name}"] = 100 * int(right[chosen].sum()) / scored
        return measured

    def answers(self) -> dict[str, np.ndarray]:
        """Of `key`, which is the metric: at each pixel of each plain digit's cell, (N, K * 256)."""
        found = self._columns()
        return {
            "example": found["example"].numpy(),
            "target": found["key"].flatten(1).numpy(),
            "prediction": found["key_prediction"].flatten(1).numpy(),
        }

    def _columns(self) -> dict[str, Tensor]:
        return {name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]}


def places(side: int) -> tuple[str, ...]:
    """What the numbers of all digits, of those above, beside and below the key, and of those so many cells
    away end with."""
    return ("", "_above", "_beside", "_below", *(f"_d{step}" for step in range(1, side)))


def places_of(cells: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cells (N, K + 1) -> row and column of the key, (N, 1, 2), and of the plain digits, (N, K, 2)."""
    places = torch.stack([cells // side, cells % side], dim=-1)
    return places[:, :1], places[:, 1:]
