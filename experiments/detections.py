"""What trained detectors find in the same few test images, beside what is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from experiments.build import create_task
from experiments.tasks.instances import MASK_THRESHOLD, Target
from experiments.trained import trained

IMAGES = 3
TRUTH = "truth"
LONGEST_SIDE = 256  # images are shown no larger


@dataclass(frozen=True)
class Sight:
    """One image as one model sees it.

    Attributes:
        panel: the arm, or "truth".
        number: of the image, from 1.
        image: brightness from 0 to 1, (H, W).
        boxes: left, top, right, bottom in pixels, the surest first, (n, 4).
        categories: the data's own ids, (n,).
        scores: from 0 to 1, (n,).
        masks: 0 or 1, (n, H, W).
    """

    panel: str
    number: int
    image: list[list[float]]
    boxes: list[list[float]]
    categories: list[int]
    scores: list[float]
    masks: list[list[list[int]]]


@torch.inference_mode()
def sights(runs: Path, study: str | None) -> Iterator[Sight]:
    """The truth, then every arm with weights that was tested on the same images as the first.

    Args:
        runs: folder whose trained trials are looked at.
        study: only those of this study; None for any.
    """
    shown: list[int] = []
    for each in trained(runs, study):
        task = create_task(each.trial.task)
        if task.spec.output != "instances":
            continue
        batches = list(islice(task.load(each.trial.seed).batches("test", 1), IMAGES))
        examples = [int(batch.examples[0]) for batch in batches]
        model = each.load()
        for number, batch in enumerate(batches, start=1):
            (image,), (target,) = batch.inputs, batch.targets
            if not shown:
                certain = {**target, "scores": torch.ones(len(target["labels"]))}
                yield _sight(TRUTH, number, image, certain, target)
            if shown in ([], examples):
                (found,) = model([image])
                yield _sight(each.name, number, image, {**found, "masks": found["masks"][:, 0]}, target)
        shown = shown or examples


def _sight(panel: str, number: int, image: Tensor, objects: Target, target: Target) -> Sight:
    grey = image.mean(0)
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    step = -(-max(grey.shape) // LONGEST_SIDE)
    masks = (objects["masks"][:, ::step, ::step] > MASK_THRESHOLD).int()
    return Sight(
        panel,
        number,
        grey[::step, ::step].tolist(),
        (objects["boxes"] / step).tolist(),
        target["category_ids"][objects["labels"] - 1].tolist(),
        objects["scores"].tolist(),
        masks.tolist(),
    )
