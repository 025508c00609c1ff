"""Detection and instance segmentation on data in COCO's format: COCO itself, or one's own.

DATA/annotations/instances_train2017.json    DATA/train2017/*.jpg
DATA/annotations/instances_val2017.json      DATA/val2017/*.jpg
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import Batch, TaskData, fingerprint, generator, share, shuffled
from experiments.tasks.coco_format import CocoFile, Degenerate, Picture, decode, read
from experiments.tasks.instances import InstanceSegmentation, Target
from experiments.tasks.pixels import in_rgb
from experiments.tasks.reading import FilesRead, Unreadable, whole
from experiments.trial import stream
from mixers.registry import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
SMALLEST_SIDE = 32  # images with a shorter one are not trained on, boxes below 1 pixel neither: mmdetection's
SMALLEST_BOX = 1.0

Side = Annotated[int, Field(ge=32)]
Key = tuple[str, Picture, bool]
"""Split, image in its file, and whether it is mirrored."""
Example = tuple[Tensor, Target]


class Coco(InstanceSegmentation):
    """Where is what, pixel by pixel?

    The test split is the data's validation file, as in the literature; what is chosen is chosen on images
    held out of the training file, the same for every seed. Crowds, images without an object and boxes below
    one pixel are not trained on. They count in tests: an object found where there is none is wrong.

    Args:
        data: folder of annotations and images.
        classes: categories in the files.
        validation: training images held out for choosing.
        train_annotations: file, inside `data`.
        train_images: folder, inside `data`.
        test_annotations: file, inside `data`.
        test_images: folder, inside `data`.
        short_side: that images are resized to, by the model ...
        long_side: ... unless the longer side would exceed this.
        flip: share of training images that are mirrored.
        degenerate: whether annotations without width or height are refused or dropped; COCO has a few.
    """

    def __init__(
        self,
        *,
        data: str = "coco",
        classes: Annotated[int, Field(ge=1)] = 80,
        validation: Annotated[int, Field(ge=1)] = 1_000,
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        test_annotations: str = "annotations/instances_val2017.json",
        test_images: str = "val2017",
        short_side: Side = 800,
        long_side: Side = 1333,
        flip: Annotated[float, Field(ge=0, le=1)] = 0.5,
        degenerate: Degenerate = "refuse",
    ) -> None:
        self.data, self.classes, self.validation, self.flip = Path(data), classes, validation, flip
        self.train_annotations, self.train_images = train_annotations, train_images
        self.test_annotations, self.test_images = test_annotations, test_images
        self.grid, self.degenerate = (short_side, long_side), degenerate
        if long_side < short_side:
            raise InputError(f"task coco: long_side {long_side} is below short_side {short_side}")

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("image", channels=3, grid=self.grid, classes=self.classes, output="instances")

    def load(self, seed: int) -> TaskData:
        if not self.data.is_dir():
            raise InputError(
                f"task coco: folder {self.data} does not exist; --task.data names that of the data"
            )
        train = self._read(self.train_annotations, self.train_images)
        test = self._read(self.test_annotations, self.test_images)
        if train.categories != test.categories:
            raise InputError(f"{train.path} and {test.path} do not have the same categories")
        return CocoData(self, train, test, seed)

    def _read(self, annotations: str, images: str) -> CocoFile:
        file = read(self.data / annotations, self.data / images, self.degenerate)
        if len(file.categories) != self.classes:
            raise InputError(
                f"{file.path} has {len(file.categories)} categories; --task.classes says {self.classes}"
            )
        if not any(_trainable(picture) for picture in file.pictures):
            raise InputError(f"{file.path} has no image with an object")
        return file


class CocoData(FilesRead[Key, list[Example | Unreadable]]):
    """The images of one seed's splits; the splits are the same for every seed."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, task: Coco, train: CocoFile, test: CocoFile, seed: int) -> None:
        self._task, self._seed = task, seed
        self._files = {"train": train, "validation": train, "test": test}
        order = torch.randperm(len(train.pictures), generator=generator(stream(0, "data", "split"))).tolist()
        held_out = set(order[: task.validation])
        self._pictures = {
            "train": [
                each
                for index, each in enumerate(train.pictures)
                if index not in held_out and _trainable(each)
            ],
            "validation": [train.pictures[index] for index in sorted(held_out)],
            "test": test.pictures,
        }
        if not self._pictures["train"] or not any(map(_trainable, self._pictures["validation"])):
            raise InputError(
                f"task coco: with {task.validation} of the {len(train.pictures)} images in {train.path} held "
                "out for validation, one of the two has no image with an object"
            )
        super().__init__(_Examples(train.path, test.path, tuple(train.categories)), list)

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(pictures) for split, pictures in self._pictures.items()}

    def baselines(self, split: str = "test") -> dict[str, float]:
        return {}

    @property
    def fingerprint(self) -> str:
        """Hash of the annotations, the images' names and sizes on disk, and the splits; not of pixels."""
        annotations = [
            hashlib.sha256(self._files[split].path.read_bytes()).hexdigest() for split in ("train", "test")
        ]
        images = [
            f"{each.path.name} {each.path.stat().st_size}"
            for pictures in self._pictures.values()
            for each in pictures
        ]
        listing = "\n".join([*annotations, *images, *map(str, self.sizes.values())])
        return fingerprint(np.frombuffer(listing.encode(), dtype=np.uint8))

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        pictures = self._pictures["train"]
        order = shuffled(len(pictures), self._seed, epoch).tolist()
        steps = by_shape([pictures[index] for index in order], batch_size)[start:]
        places = share(batch_size, self.reading.rank, self.reading.ranks).tolist()
        own = []
        for step, batch in enumerate(steps, start=start):
            random = generator(stream(self._seed, "augmentation", epoch, step))
            mirrored = (torch.rand(batch_size, generator=random) < self._task.flip).tolist()
            own.append([("train", batch[place], mirrored[place]) for place in places])
        for of_all_ranks, read_here in zip(steps, self._batches(own), strict=True):
            sizes = torch.tensor([[picture.height, picture.width] for picture in of_all_ranks])
            for target in read_here.targets:
                target["batch_sizes"] = sizes
            yield read_here

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """In order; images of a batch have one size, because padding changes what is seen in smaller ones."""
        steps = by_size(self._pictures[split], batch_size)[self.reading.rank :: self.reading.ranks]
        return self._batches([[(split, picture, False) for picture in batch] for batch in steps])

    def _batches(self, keys: Sequence[Sequence[Key]]) -> Iterator[Batch]:
        for batch, read_ones in zip(keys, self.read(keys), strict=True):
            images, targets = zip(*map(whole, read_ones), strict=True)
            ids = torch.tensor([picture.id for _, picture, _ in batch])
            yield Batch(list(images), list(targets), ids)


@dataclass(frozen=True)
class _Examples:
    """An image and its target: in training what is learned, mirrored or not, else what is marked."""

    train: Path
    test: Path
    categories: tuple[int, ...]

    def __call__(self, key: Key) -> Example:
        split, picture, mirrored = key
        image = _image(picture)
        if split == "train":
            target = _training_target(picture, self.train)
            return mirror(image, target) if mirrored else (image, target)
        return image, _marking_target(picture, self.test if split == "test" else self.train, self.categories)


def by_size(pictures: Sequence[Picture], batch_size: int) -> list[list[Picture]]:
    """Runs of images of one size, none longer than a batch."""
    runs = (list(run) for _, run in groupby(pictures, key=lambda each: (each.height, each.width)))
    return [run[start : start + batch_size] for run in runs for start in range(0, len(run), batch_size)]


def by_shape(pictures: Sequence[Picture], batch_size: int) -> list[list[Picture]]:
    """Full batches of upright or of lying images, so that little is padded; at the end what is left is mixed.

    -> floor(n / batch_size) batches, in the order in which they fill.
    """
    waiting: dict[bool, list[Picture]] = {False: [], True: []}
    batches = []
    for picture in pictures:
        same = waiting[picture.height > picture.width]
        same.append(picture)
        if len(same) == batch_size:
            batches.append(list(same))
            same.clear()
    rest = waiting[False] + waiting[True]
    return [*batches, rest[:batch_size]] if len(rest) >= batch_size else batches


def mirror(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left for right: an image (channels, H, W) with its boxes and masks."""
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
    return image.flip(2), {**target, "boxes": boxes, "masks": target["masks"].flip(2)}


def _trainable(picture: Picture) -> bool:
    return min(picture.height, picture.width) >= SMALLEST_SIDE and any(
        not each.crowd for each in picture.annotations
    )


def _image(picture: Picture) -> Tensor:
    """(3, H, W), normalised.

    Raises:
        InputError: the file is no image that can be read, or of another size than its annotations say.
    """
    try:
        with Image.open(picture.path) as file:
            pixels = np.asarray(in_rgb(file))
    except (OSError, InputError) as error:
        raise InputError(f"image {picture.path} cannot be read: {error}") from None
    if pixels.shape[:2] != (picture.height, picture.width):
        raise InputError(
            f"image {picture.path} is {pixels.shape[0]} x {pixels.shape[1]}, but its annotations say "
            f"{picture.height} x {picture.width}"
        )
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _target(picture: Picture, source: Path) -> Target:
    """Every object in the file."""
    objects = picture.annotations
    masks = [torch.from_numpy(decode(each, picture, source)) for each in objects]
    boxes = torch.tensor([each.box for each in objects], dtype=torch.float64).reshape(-1, 4)
    return {
        "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
        "labels": torch.tensor([each.label for each in objects], dtype=torch.long),
        "masks": torch.stack(masks) if masks else torch.zeros(0, picture.height, picture.width).byte(),
    }


def _marking_target(picture: Picture, source: Path, categories: tuple[int, ...]) -> Target:
    objects = picture.annotations
    return {
        **_target(picture, source),
        "area": torch.tensor([each.area for each in objects], dtype=torch.float64),
        "crowd": torch.tensor([each.crowd for each in objects], dtype=torch.bool),
        "category_ids": torch.tensor(categories),
    }


def _training_target(picture: Picture, source: Path) -> Target:
    """Objects that are no crowd and have a pixel inside the image; boxes end at its border."""
    target = _target(picture, source)
    border = torch.tensor([picture.width, picture.height] * 2)
    boxes = target["boxes"].clamp(min=torch.zeros(4)).minimum(border).float()
    crowd = torch.tensor([each.crowd for each in picture.annotations], dtype=torch.bool)
    kept = ~crowd & (boxes[:, 2:] - boxes[:, :2] >= SMALLEST_BOX).all(1)
    return {"boxes": boxes[kept], "labels": target["labels"][kept], "masks": target["masks"][kept]}
