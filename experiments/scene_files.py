"""Scenes as files, in ADE20K's and in COCO's format at once, for other programs and for our own tasks.

    python -m experiments.scene_files FOLDER --side 8 --train 1000 --test 200

writes

    FOLDER/images/{training,validation}/scene_00001.png
    FOLDER/annotations/{training,validation}/scene_00001.png        own class + 1; 0 is not asked
    FOLDER/annotations_key/{training,validation}/scene_00001.png    class of the framed digit + 1
    FOLDER/annotations/own_{training,validation}.json               one object per plain digit, its class
    FOLDER/annotations/relation_{training,validation}.json          1 of the framed one's class, 2 of another

Our tasks read them with

    --task "ade20k(data=FOLDER, classes=10, annotations=annotations_key, crop=128)"
    --task "coco(data=FOLDER, classes=10, train_annotations=annotations/own_training.json,
      train_images=images/training, test_annotations=annotations/own_validation.json,
      test_images=images/validation)" --skeleton "mambaout-pico(head=mask-rcnn-slim)"
      --train.label-smoothing 0

The digits of the two splits are those of the training and test splits of seed 0. The plain ones are drawn
regardless of the framed one, as in the task `scenes`: about a tenth are of its class, and whoever answers a
digit's own class where the framed one's is asked is right on 10 % of the pixels. As `scenes-detect` draws
them, half of its class, that would be 49 %.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from experiments.tasks.scenes import QUESTIONS, SceneData, SceneRule, Scenes, labels_of
from mixers.registry import InputError

SPLITS = {"training": "train", "validation": "test"}
AT_ONCE = 256  # scenes in memory
CATEGORIES = {
    "own": [{"id": number + 1, "name": str(number), "supercategory": "digit"} for number in range(10)],
    "relation": [
        {"id": 1, "name": "same", "supercategory": "digit"},
        {"id": 2, "name": "other", "supercategory": "digit"},
    ],
}


def write(
    folder: tyro.conf.Positional[Path],
    side: int = 4,
    digits: int = 5,
    noise: float = 0.05,
    train: int = 1_000,
    test: int = 200,
) -> None:
    """Write scenes to an empty folder.

    Args:
        folder: where to.
        side: cells along a side of a canvas, 16 pixels each.
        digits: plain ones on each canvas.
        noise: standard deviation of what is added to every pixel.
        train: canvases in the training split.
        test: canvases in the validation split.

    Raises:
        InputError: the folder is not empty, or the digits do not fit.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; scenes are written to a folder of their own")
    data = SceneData(SceneRule(side, digits, noise), {"train": train, "test": test}, seed=0)
    for name, split in SPLITS.items():
        _write_split(folder, name, data, split)


def _write_split(folder: Path, name: str, data: SceneData, split: str) -> None:
    images: list[dict[str, Any]] = []
    objects: dict[str, list[dict[str, Any]]] = {kind: [] for kind in CATEGORIES}
    for scenes in _parts(data, split):
        labels = labels_of(scenes)
        for place in range(len(scenes.images)):
            number = len(images) + 1
            file = f"scene_{number:05}.png"
            _save(folder / "images" / name / file, 255 * scenes.images[place].clamp(0, 1))
            for question, kind in zip(QUESTIONS, ("annotations", "annotations_key"), strict=True):
                _save(folder / kind / name / file, (labels[question][place] + 1).clamp(min=0))
            height, width = scenes.images.shape[1:]
            images.append({"id": number, "file_name": file, "height": height, "width": width})
            for kind, found in _objects(scenes, place, number).items():
                objects[kind] += [{"id": len(objects[kind]) + 1 + i, **each} for i, each in enumerate(found)]
    for kind, categories in CATEGORIES.items():
        content = {
            "info": {"description": f"scenes, {kind}"},
            "licenses": [],
            "images": images,
            "annotations": objects[kind],
            "categories": categories,
        }
        path = folder / "annotations" / f"{kind}_{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def _parts(data: SceneData, split: str) -> Iterator[Scenes]:
    """All scenes of a split, some at a time."""
    if split == "train":
        for step, chosen in enumerate(torch.arange(data.sizes["train"]).split(AT_ONCE)):
            yield data.train_scenes(0, step, len(chosen))
    else:
        yield data.scenes(split)


def _save(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.round().to(torch.uint8).numpy()).save(path)


def _objects(scenes: Scenes, place: int, image: int) -> Mapping[str, list[dict[str, Any]]]:
    """The plain digits of one scene in COCO's form, by kind of category."""
    digits = torch.arange(1, scenes.cells.shape[1])
    inside = scenes.painted(torch.arange(scenes.cells.shape[1]).expand_as(scenes.cells), -1)[place]
    classes = scenes.classes[place]
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in CATEGORIES}
    for digit in digits.tolist():
        mask = (inside == digit).numpy()
        shape = {
            "image_id": image,
            "bbox": _box(mask),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": _runs(mask)},
        }
        same = bool(classes[digit] == classes[0])
        kinds["own"].append({**shape, "category_id": int(classes[digit]) + 1})
        kinds["relation"].append({**shape, "category_id": 1 if same else 2})
    return kinds


def _box(mask: np.ndarray) -> list[int]:
    """Left, top, width, height of what is set."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, the zeros first."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()


def main() -> None:
    tyro.cli(write)


if __name__ == "__main__":
    main()
