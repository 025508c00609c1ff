"""Scenes to detect: where is every plain digit, and what is it, by itself or beside the framed one?

The canvases of `scenes`, asked for objects: a box and a mask around the ink of each plain digit. With "own"
its category is its class, which is there to be seen; with "relation" it is 1 if the digit is of the framed
one's class and 2 if not, half and half, which only what carries information across the canvas can tell for
sure. Where half of the plain digits are of one class, however, a digit that has its like among them is mostly
of that class: with five of them this rule, which never looks at the framed digit, is right for 86 %. The
framed digit itself is not to be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import Batch, TaskData
from experiments.tasks.instances import InstanceScorer, InstanceSegmentation, Target
from experiments.tasks.scenes import CELL, CLASSES, MEAN, STD, SceneData, SceneRule, Scenes, assemble

SAME, OTHER = 1, 2
MOST = 100  # boxes of a category that COCO scores
Ask = Literal["relation", "own"]
Count = Annotated[int, Field(ge=1)]


class SceneDetection(InstanceSegmentation):
    """Find the plain digits and say what they are.

    COCO scores at most 100 boxes per image and category, and the slim head answers with at most 30 of all.

    Args:
        ask: "relation" for two categories, like the framed digit or not; "own" for the ten classes.
        side: cells along a side of the canvas, 16 pixels each.
        digits: plain ones on each canvas.
        noise: standard deviation of what is added to every pixel.
        train: canvases per epoch, drawn anew in every epoch.
        validation: canvases for choosing.
        test: canvases for reporting.

    Raises:
        InputError: more digits than cells.
    """

    def __init__(
        self,
        *,
        ask: Ask = "relation",
        side: Annotated[int, Field(ge=2, le=64)] = 4,
        digits: Annotated[int, Field(ge=1, le=MOST)] = 5,
        noise: Annotated[float, Field(ge=0)] = 0.05,
        train: Count = 3_200,
        validation: Count = 100,
        test: Count = 300,
    ) -> None:
        self.ask = ask
        self.rule = SceneRule(side, digits, noise, same=0.5 if ask == "relation" else None)
        self.sizes = {"train": train, "validation": validation, "test": test}

    @property
    def spec(self) -> TaskSpec:
        grid = (self.rule.side * CELL,) * 2
        classes = 2 if self.ask == "relation" else CLASSES
        return TaskSpec("image", 1, grid, classes, output="instances")

    def load(self, seed: int) -> TaskData:
        return DetectionData(SceneData(self.rule, self.sizes, seed), self.ask)


class DetectionData:
    """The scenes of another task's data as images with objects."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, scenes: SceneData, ask: Ask) -> None:
        self._scenes, self._ask = scenes, ask

    @property
    def sizes(self) -> dict[str, int]:
        return self._scenes.sizes

    @property
    def fingerprint(self) -> str:
        return self._scenes.fingerprint

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Every digit found, in every category at once: what is reached without knowing any."""
        scorer = InstanceScorer()
        for batch in self.batches("test", 64):
            scorer.add([_undecided(target) for target in batch.targets], batch.targets, batch.examples)
        return {"all digits found, none recognised": scorer.metrics()["box_AP"]}

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.sizes["train"] // batch_size):
            scenes = self._scenes.train_scenes(epoch, step, batch_size)
            images, targets = images_of(scenes), [_for_training(each) for each in objects(scenes, self._ask)]
            yield Batch(images, targets, step * batch_size + torch.arange(batch_size))

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        scenes, examples = self._scenes.scenes(split), self._scenes.examples(split)
        for chosen in torch.arange(len(examples)).split(batch_size):
            some = Scenes(*(tensor[chosen] for tensor in scenes))
            yield Batch(images_of(some), objects(some, self._ask), examples[chosen])


def images_of(scenes: Scenes) -> list[Tensor]:
    """(1, S, S) each, normalised."""
    return list(((scenes.images[:, None] - MEAN) / STD).unbind())


def objects(scenes: Scenes, ask: Ask) -> list[Target]:
    """The plain digits of each scene, as targets that answers are marked by."""
    side = scenes.images.shape[-1] // CELL
    count = scenes.cells.shape[1] - 1
    # one canvas per digit: (B, K, S, S)
    masks = torch.stack(
        [
            assemble(scenes.masks[:, [digit]].byte(), scenes.cells[:, [digit]], side, 0)
            for digit in range(1, count + 1)
        ],
        dim=1,
    )
    plain, key = scenes.classes[:, 1:], scenes.classes[:, :1]
    labels = plain + 1 if ask == "own" else torch.where(plain == key, SAME, OTHER)
    return [
        {
            "boxes": boxes_around(mask),
            "labels": label,
            "masks": mask,
            "area": mask.sum((1, 2)).double(),
            "crowd": torch.zeros(count, dtype=torch.bool),
            "category_ids": torch.arange(1, (CLASSES if ask == "own" else 2) + 1),
        }
        for mask, label in zip(masks, labels, strict=True)
    ]


def boxes_around(masks: Tensor) -> Tensor:
    """(n, S, S) of 0 and 1 -> left, top, right, bottom of the ink, (n, 4)."""
    edges = []
    for axis in (1, 2):  # over rows: which columns have ink; over columns: which rows
        inked = masks.amax(axis)  # (n, S)
        edges += [inked.argmax(1), inked.shape[1] - inked.flip(1).argmax(1)]
    left, right, top, bottom = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


def _for_training(target: Target) -> Target:
    return {name: target[name] for name in ("boxes", "labels", "masks")}


def _undecided(target: Target) -> Target:
    """Each object once per category, in an order that says nothing."""
    categories, count = len(target["category_ids"]), len(target["labels"])
    return {
        "boxes": target["boxes"].repeat(categories, 1),
        "labels": torch.arange(1, categories + 1).repeat_interleave(count),
        "scores": torch.full((categories * count,), 0.5),
        "masks": target["masks"].repeat(categories, 1, 1)[:, None].float(),
    }
