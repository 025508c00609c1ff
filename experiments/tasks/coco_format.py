"""Annotations in COCO's format: read whole, checked entry by entry, masks decoded when asked for.

The format is that of https://cocodataset.org/#format-data: one JSON file per split with `images`,
`annotations` and `categories`. A mask is a list of polygons, an uncompressed RLE (a list of run lengths in
column-major order) or a compressed one (a text).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from experiments.tasks.coco_tools import coco_tools
from mixers.registry import InputError

Degenerate = Literal["refuse", "drop"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object.

    Attributes:
        id: in the file.
        label: its category, from 1 on in the order of the categories' ids.
        box: left, top, width, height in pixels.
        area: in pixels, as the file gives it; else that of the box.
        crowd: whether it stands for a group; such are not trained on and cost nothing where they are hit.
        segmentation: the mask, as in the file.
    """

    id: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: list[list[float]] | Json


@dataclass(frozen=True, slots=True)
class Picture:
    """One image and its objects."""

    id: int
    path: Path
    height: int
    width: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class CocoFile:
    """A whole annotation file.

    Attributes:
        path: of the file.
        categories: name by id, in the order of ids; the n-th is label n.
        pictures: in the order of their ids.
    """

    path: Path
    categories: dict[int, str]
    pictures: list[Picture]


def read(path: Path, folder: Path, degenerate: Degenerate = "refuse") -> CocoFile:
    """Read and check an annotation file.

    Args:
        path: of the file.
        folder: that the images are in.
        degenerate: what becomes of boxes without width or height, of which COCO's own files have a few.

    Raises:
        InputError: a missing file or folder, broken JSON, or an entry that cannot be used; the file is named,
            and the annotation or image by its id.
    """
    content = _load(path)
    if not folder.is_dir():
        raise InputError(f"image folder {folder} does not exist")
    reader = _Reader(path, degenerate)
    categories = reader.categories(content["categories"])
    images = reader.images(content["images"], folder)
    objects = reader.annotations(content["annotations"], images, categories)
    pictures = [
        Picture(key, folder / image["file_name"], image["height"], image["width"], tuple(objects[key]))
        for key, image in sorted(images.items())
    ]
    return CocoFile(path, categories, pictures)


def decode(annotation: Annotation, picture: Picture, source: Path) -> NDArray[np.uint8]:
    """The mask of an object: (H, W) of 0 and 1.

    Raises:
        InputError: a run-length encoding that is cut off or does not fill its image.
    """
    rle = coco_tools().mask
    try:
        encoded = rle.segmToRle(annotation.segmentation, picture.width, picture.height)
        return rle.decode(encoded)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{source}: annotation {annotation.id}: its mask cannot be decoded: {error}"
        ) from None


def _load(path: Path) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"annotation file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise InputError(f"{path} is not in COCO's format: it has no list {name!r}")
    return content


def _files_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


class _Reader:
    """Checks the entries of one file."""

    def __init__(self, path: Path, degenerate: Degenerate) -> None:
        self._path, self._degenerate = path, degenerate

    def categories(self, entries: list[Json]) -> dict[int, str]:
        """Name by id, in the order of ids."""
        found = {self._id(entry, "id", "a category"): str(entry.get("name", "")) for entry in entries}
        return dict(sorted(found.items()))

    def images(self, entries: list[Json], folder: Path) -> dict[int, Json]:
        """The entries by id; every file is there."""
        found: dict[int, Json] = {}
        files: dict[Path, set[str]] = {}
        for entry in entries:
            key = self._id(entry, "id", "an image")
            name = str(self._field(entry, "file_name", f"image {key}"))
            for side in ("height", "width"):
                if not isinstance(self._field(entry, side, f"image {key}"), int) or entry[side] < 1:
                    raise InputError(f"{self._path}: image {key}: {side} is {entry[side]!r}")
            if key in found:
                raise InputError(f"{self._path}: image id {key} is given twice")
            place = (folder / name).parent
            if place not in files:
                files[place] = _files_in(place)
            if Path(name).name not in files[place]:
                raise InputError(f"{self._path}: image {key} is {name}, which is not in {folder}")
            found[key] = entry
        return found

    def annotations(
        self, entries: list[Json], images: dict[int, Json], categories: dict[int, str]
    ) -> dict[int, list[Annotation]]:
        """By image, in the order of the file."""
        labels = {category: label for label, category in enumerate(categories, start=1)}
        found: dict[int, list[Annotation]] = {key: [] for key in images}
        for entry in entries:
            key = self._field(entry, "id", "an annotation")
            who = f"annotation {key}"
            image, category = self._id(entry, "image_id", who), self._id(entry, "category_id", who)
            if image not in images:
                raise InputError(f"{self._path}: {who} is on image {image}, which is not among the images")
            if category not in labels:
                raise InputError(
                    f"{self._path}: {who} has category {category}, which is not among the categories"
                )
            box = self._box(entry, who)
            if box is None:
                continue
            segmentation = self._segmentation(entry, who, images[image])
            area = self._area(entry, who, default=box[2] * box[3])
            crowd = bool(entry.get("iscrowd", 0))
            found[image].append(Annotation(key, labels[category], box, area, crowd, segmentation))
        return found

    def _box(self, entry: Json, who: str) -> tuple[float, float, float, float] | None:
        """None for one that is to be dropped."""
        box = self._field(entry, "bbox", who)
        if not _are_numbers(box) or len(box) != 4:
            raise InputError(f"{self._path}: {who}: bbox {box!r} is not [left, top, width, height]")
        left, top, width, height = map(float, box)
        if width > 0 and height > 0:
            return left, top, width, height
        if self._degenerate == "drop":
            return None
        raise InputError(
            f"{self._path}: {who}: its box is {width:g} wide and {height:g} high; "
            "--task.degenerate drop leaves such annotations out"
        )

    def _area(self, entry: Json, who: str, default: float) -> float:
        area = entry.get("area")
        if area is None:
            return default
        if not _are_numbers([area]):
            raise InputError(f"{self._path}: {who}: area is {area!r}")
        return float(area)

    def _segmentation(self, entry: Json, who: str, image: Json) -> list[list[float]] | Json:
        mask = self._field(entry, "segmentation", who)
        height, width = image["height"], image["width"]
        if isinstance(mask, list):
            if not all(map(_are_numbers, mask)):
                raise InputError(f"{self._path}: {who}: segmentation is not a list of lists of numbers")
            if not mask or any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
                raise InputError(f"{self._path}: {who}: a polygon needs at least three points, x and y each")
            return mask
        if not isinstance(mask, dict) or not _are_runs(mask.get("counts")):
            raise InputError(
                f"{self._path}: {who}: segmentation is neither polygons nor a run-length encoding"
            )
        if mask.get("size") != [height, width]:
            raise InputError(
                f"{self._path}: {who}: the size of its mask is {mask.get('size')}, "
                f"but image {image['id']} is {height} x {width}"
            )
        if isinstance(mask["counts"], list) and sum(mask["counts"]) != height * width:
            raise InputError(
                f"{self._path}: {who}: the runs of its mask add up to {sum(mask['counts'])} pixels, "
                f"but image {image['id']} has {height * width}"
            )
        return mask

    def _id(self, entry: Json, name: str, who: str) -> int:
        found = self._field(entry, name, who)
        if type(found) is not int:
            raise InputError(f"{self._path}: {who}: {name} is {found!r}, which is not an integer")
        return found

    def _field(self, entry: Json, name: str, who: str) -> Any:
        if not isinstance(entry, dict) or name not in entry:
            raise InputError(f"{self._path}: {who} has no {name!r}")
        return entry[name]


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers; fast, because of a million polygons in a file."""
    return isinstance(values, list) and set(map(type, values)) <= {int, float} and math.isfinite(sum(values))


def _are_runs(counts: Any) -> bool:
    """Whether it is a text, which is decoded later, or run lengths."""
    if isinstance(counts, list):
        return all(type(run) is int and run >= 0 for run in counts)
    return isinstance(counts, str)
