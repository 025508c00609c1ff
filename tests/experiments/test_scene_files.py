"""Scenes written as files are the same scenes, in both formats, and our own tasks read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from experiments.scene_files import write
from experiments.tasks.ade20k import ADE20K, IGNORED
from experiments.tasks.coco import Coco
from experiments.tasks.scenes import CELL, SceneData, SceneRule
from mixers.registry import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "scenes"
    write(folder, side=3, digits=4, train=6, test=5)
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_the_files_are_the_scenes(folder: Path) -> None:
    scenes = SceneData(SceneRule(3, 4, 0.05), {"test": 5}, seed=0).scenes("test")
    for number in range(5):
        file = f"scene_{number + 1:05}.png"
        image = pixels(folder / "images" / "validation" / file)
        assert np.abs(image / 255.0 - scenes.images[number].clamp(0, 1).numpy()).max() < 0.51 / 255
        own = pixels(folder / "annotations" / "validation" / file)
        key = pixels(folder / "annotations_key" / "validation" / file)
        for cell, label in zip(scenes.cells[number].tolist(), scenes.classes[number].tolist(), strict=True):
            row, column = cell // 3 * CELL, cell % 3 * CELL
            seen = set(own[row : row + CELL, column : column + CELL].ravel().tolist())
            assert seen == ({0} if cell == scenes.cells[number, 0] else {0, label + 1})
        assert set(key[own > 0].tolist()) == {int(scenes.classes[number, 0]) + 1}
        assert (key[own == 0] == 0).all()


@pytest.mark.parametrize("kind", ["own", "relation"])
def test_boxes_and_masks_are_those_of_the_labels(folder: Path, kind: str) -> None:
    coco = COCO(str(folder / "annotations" / f"{kind}_validation.json"))
    for image in coco.dataset["images"]:
        own = pixels(folder / "annotations" / "validation" / image["file_name"])
        key = pixels(folder / "annotations_key" / "validation" / image["file_name"])
        found = coco.loadAnns(coco.getAnnIds([image["id"]]))
        assert len(found) == 4
        together = np.zeros_like(own)
        for annotation in found:
            mask = coco.annToMask(annotation).astype(bool)
            together[mask] += 1
            assert annotation["area"] == mask.sum()
            left, top, width, height = annotation["bbox"]
            rows, columns = np.nonzero(mask)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
            (label,), (of_key,) = np.unique(own[mask]), np.unique(key[mask])
            expected = label if kind == "own" else 1 if label == of_key else 2
            assert annotation["category_id"] == expected
        assert (together == (own > 0)).all()


def test_our_own_tasks_read_them(folder: Path) -> None:
    for labels_in in ("annotations", "annotations_key"):
        task = ADE20K(data=str(folder), annotations=labels_in, classes=10, crop=48, validation=1)
        data = task.load(0)
        assert data.sizes == {"train": 5, "validation": 1, "test": 5}
        labels = [batch.targets for batch in data.batches("test", 1)]
        assert all(0 <= each[each != IGNORED].min() <= each[each != IGNORED].max() < 10 for each in labels)
    coco = Coco(
        data=str(folder),
        classes=2,
        validation=1,
        train_annotations="annotations/relation_training.json",
        train_images="images/training",
        test_annotations="annotations/relation_validation.json",
        test_images="images/validation",
        short_side=48,
        long_side=48,
    )
    assert coco.load(0).sizes == {"train": 5, "validation": 1, "test": 5}
    assert {
        category["name"]
        for category in json.loads((folder / "annotations" / "relation_training.json").read_text())[
            "categories"
        ]
    } == {"same", "other"}


def test_a_folder_of_its_own_is_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        write(folder)
    with pytest.raises(InputError, match="4 digits and the key do not fit into 2 x 2"):
        write(tmp_path / "new", side=2, digits=4)
