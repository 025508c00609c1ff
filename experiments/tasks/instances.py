"""What tasks share that ask for the boxes, masks and classes of the objects in an image.

The target of one image is a dictionary, n being the number of its objects:

    boxes         (n, 4)     left, top, right, bottom in pixels
    labels        (n,)       from 1 on; 0 is the background
    masks         (n, H, W)  uint8, 0 or 1

in training, where the images of a batch differ in size,

    batch_sizes   (B, 2)     height and width of all of them: of which a model may get a part at a time

and, where answers are marked,

    area          (n,)       as COCO divides objects into small, medium and large
    crowd         (n,)       objects that cost nothing where they are hit, nor where they are missed
    category_ids  (classes,) the data's own id of each label

A model in training takes images and targets and returns its losses by name; else it takes images and
returns, per image, `boxes`, `labels` and `masks` (n, 1, H, W) of probabilities, and `scores` (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.interface import Metric
from experiments.tasks.coco_tools import coco_tools

Target = dict[str, Tensor]
Json = dict[str, Any]

STATISTICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""The first of COCO's twelve numbers, in its order: over IoU 0.50 to 0.95, at 0.50, at 0.75, by area."""
KINDS = {"box": "bbox", "mask": "segm"}
MASK_THRESHOLD = 0.5


def _metric(name: str) -> Metric:
    return Metric(name, "%", "points", higher_is_better=True)


class InstanceSegmentation:
    """Loss and metrics of detection with masks: COCO's average precision."""

    metric = _metric("box_AP")
    other_metrics = tuple(map(_metric, ("mask_AP", "box_AP50", "mask_AP50", "box_AP75", "mask_AP75")))

    def training_loss(
        self, model: nn.Module, inputs: list[Tensor], targets: list[Target], label_smoothing: float = 0.0
    ) -> Tensor:
        """Sum of the model's losses; it knows no label smoothing, which must be 0."""
        if label_smoothing != 0:
            raise ValueError("detection losses have no label smoothing")
        return torch.stack(list(model(inputs, targets).values())).sum()

    def loss_weight(self, targets: list[Target]) -> float:
        """Images, of which each brings the same number of sampled boxes, if there are so many.

        What is learned of masks is only nearly that of the whole batch: torchvision takes their mean over the
        boxes that hold an object, of which one part may have more than another.
        """
        return float(len(targets))

    def scorer(self) -> InstanceScorer:
        return InstanceScorer()


class InstanceScorer:
    """Collects detections and objects in COCO's form, then lets faster-coco-eval match them."""

    def __init__(self) -> None:
        self._examples: list[int] = []
        self._images: list[Json] = []  # numbered from 0, because the matching reads ids as floats
        self._objects: list[Json] = []
        self._detections: list[Json] = []
        self._category_ids: list[int] = []

    def add(self, outputs: list[Target], targets: list[Target], examples: Tensor) -> None:
        for found, target, example in zip(outputs, targets, examples.tolist(), strict=True):
            height, width = target["masks"].shape[1:]
            self._category_ids = target["category_ids"].tolist()
            image = len(self._images)
            self._examples.append(example)
            self._images.append({"id": image, "height": height, "width": width})
            masks = encoded(target["masks"])
            for mask, values in zip(masks, _rows(target, "boxes", "labels", "area", "crowd"), strict=True):
                box, label, area, crowd = values
                self._objects.append(
                    {
                        "id": len(self._objects) + 1,
                        **self._of(image, label, box, mask),
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
            masks = encoded(found["masks"][:, 0] > MASK_THRESHOLD)
            for mask, values in zip(masks, _rows(found, "boxes", "labels", "scores"), strict=True):
                box, label, score = values
                self._detections.append({**self._of(image, label, box, mask), "score": score})

    def metrics(self) -> dict[str, float]:
        """In %: `box_AP`, `mask_AP` and so on. An area that no object has has no number."""
        return {
            f"{kind}_{name}": 100.0 * value
            for kind in KINDS
            for name, value in zip(STATISTICS, self._statistics(kind), strict=True)
            if value >= 0
        }

    def answers(self) -> dict[str, np.ndarray]:
        """Examples with their number of detections; then all detections, those of an image together.

        Masks are not stored: at full size they would be larger than the weights.
        """
        image_of = np.array([each["image_id"] for each in self._detections], dtype=np.int64)
        return {
            "example": np.array(self._examples, dtype=np.int64),
            "detections": np.bincount(image_of, minlength=len(self._examples)),
            "box": np.array([each["bbox"] for each in self._detections], dtype=np.float32).reshape(-1, 4),
            "category": np.array([each["category_id"] for each in self._detections], dtype=np.int64),
            "score": np.array([each["score"] for each in self._detections], dtype=np.float32),
        }

    def _of(self, image: int, label: int, box: list[float], mask: Json) -> Json:
        left, top, right, bottom = box
        return {
            "image_id": image,
            "category_id": self._category_ids[label - 1],
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": mask,
        }

    def _statistics(self, kind: str) -> list[float]:
        """COCO's numbers between 0 and 1; -1 where there is no object to find."""
        tools = coco_tools()
        truth = tools.COCO(
            {
                "info": {},
                "images": self._images,
                "annotations": self._objects,
                "categories": [{"id": key, "name": str(key)} for key in self._category_ids],
            }
        )
        # the area of a detection is that of its box or of its mask, by what the results bring
        dropped = "segmentation" if kind == "box" else "bbox"
        results = [{key: each[key] for key in each if key != dropped} for each in self._detections]
        evaluation = tools.COCOeval_faster(
            truth, truth.loadRes(results), iouType=KINDS[kind], rle_iou_max_workers=1
        )
        evaluation.run()
        return [float(value) for value in evaluation.stats[: len(STATISTICS)]]


def encoded(masks: Tensor) -> list[Json]:
    """(n, H, W) of 0 and 1 -> run-length encodings."""
    columns = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return coco_tools().mask.encode(columns) if len(masks) else []


def _rows(of: Target, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(of[name].tolist() for name in names), strict=True))
