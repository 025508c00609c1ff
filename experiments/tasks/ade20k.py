"""ADE20K, and whatever lies on disk in its format: scene parsing, a class for every pixel.

    DATA/images/{training,validation}/NAME.jpg
    DATA/annotations/{training,validation}/NAME.png    8 bits, 1..C for the classes, 0 or 255: not asked

or, without `reduce_zero_label`, 0..C - 1 for the classes and 255 for what is not asked.

Loss, augmentation and evaluation are those of Swin's and MambaOut's UPerNet (mmsegmentation's `ade20k.py`).
The validation images of the data set are the test split, as in every paper; what is chosen on is held out of
the training images, the same for every seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as colour

from experiments.interface import Metric, TaskSpec
from experiments.tasks.base import Batch, Scorer, TaskData, generator, share, shuffled
from experiments.tasks.pixels import in_rgb
from experiments.tasks.reading import FilesRead, Unreadable, whole
from experiments.tasks.segmentation import at_size, pixel_loss
from experiments.trial import stream
from mixers.registry import InputError

IGNORED = 255
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of ImageNet, RGB
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
SUFFIXES = (".jpg", ".jpeg", ".png")

LONGEST = 4.0  # times the crop: how long the long side may be where the short one has the crop's length
SCALES = (0.5, 2.0)  # of training
LARGEST_SHARE, CROPS = 0.75, 10  # of one class in a crop, and how often another crop is tried
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test, each also mirrored


class ADE20K:
    """Which of the classes is each pixel?

    The metric is the mean over classes of intersection over union, from one confusion matrix over the whole
    split, at the label's own size. Images are read one at a time, so that nothing is padded.

    Args:
        data: the folder with images and annotations in it.
        annotations: the folder of the labels in it.
        classes: how many there are.
        crop: side of the square that a training image is cut to, and length of the short side in the test.
        validation: images held out of the training ones.
        multi_scale: whether the test is also made at six scales and mirrored, as `miou_multiscale`.
        reduce_zero_label: whether labels are 1..C and 0 is not asked, as in ADE20K; else they are 0..C - 1.
    """

    metric = Metric("miou", "%", "points", higher_is_better=True)
    other_metrics = (
        Metric("pixel_accuracy", "%", "points", higher_is_better=True),
        Metric("class_accuracy", "%", "points", higher_is_better=True),
    )

    def __init__(
        self,
        *,
        data: str = "",
        annotations: str = "annotations",
        classes: Annotated[int, Field(ge=2, le=254)] = 150,
        crop: Annotated[int, Field(ge=16)] = 512,
        validation: Annotated[int, Field(ge=1)] = 200,
        multi_scale: bool = False,
        reduce_zero_label: bool = True,
    ) -> None:
        self.data, self.annotations, self.classes, self.crop = data, annotations, classes, crop
        self.validation, self.multi_scale = validation, multi_scale
        self.reduce_zero_label = reduce_zero_label

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("image", 3, (self.crop, self.crop), self.classes, output="per-pixel")

    def load(self, seed: int) -> TaskData:
        return ADE20KData(self, seed)

    def training_loss(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        return pixel_loss(model(inputs), lambda logits: self.loss(logits, targets, label_smoothing))

    def loss_weight(self, targets: Tensor) -> float:
        return float(targets.numel())

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Sum over the labelled pixels by the number of all: logits (B, h, w, C), targets (B, H, W).

        mmsegmentation's `CrossEntropyLoss` as its UPerNet has it, with `avg_non_ignore` false: pixels without
        a label, and what a crop is padded with, make the gradient smaller.
        """
        resized = at_size(logits, targets.shape[1:]).permute(0, 3, 1, 2)
        summed = F.cross_entropy(
            resized, targets, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
        )
        return summed / self.loss_weight(targets)

    def scorer(self) -> Scorer:
        return ConfusionScorer(self)


@dataclass(frozen=True)
class Example:
    """One image and its annotation."""

    image: Path
    annotation: Path


Purpose = Literal["whole", "views"] | int
"""What is made of an image: all of it, at one or at several scales; or, by a seed, an augmented crop."""
Key = tuple[Example, Purpose]


def list_folder(data: str, folder: str, labels: str = "annotations") -> list[Example]:
    """The images of `folder` ("training" or "validation"), by name, each with its annotation.

    Args:
        data: folder of the data set.
        folder: of a split.
        labels: folder of the annotations.

    Raises:
        InputError: a folder is missing or empty, or an image has no annotation.
    """
    if not data:
        raise InputError(
            "task ade20k needs --task.data PATH: a folder with images and annotations in it, such as "
            "ADEChallengeData2016"
        )
    images, annotations = Path(data) / "images" / folder, Path(data) / labels / folder
    for place in (images, annotations):
        if not place.is_dir():
            raise InputError(
                f"{place} is not there; --task.data must name the folder that holds images/{folder}"
            )
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{images} holds no images ({', '.join(SUFFIXES)})")
    examples = [Example(path, annotations / f"{path.stem}.png") for path in found]
    for example in examples:
        if not example.annotation.is_file():
            raise InputError(f"{example.image} has no annotation; {example.annotation} should be it")
    return examples


def read(example: Example, classes: int, reduce_zero_label: bool = True) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) in 0..1 and its labels (H, W) in 0..C - 1, or 255 for what is not asked.

    Args:
        example: the files.
        classes: C.
        reduce_zero_label: whether the file's labels are 1..C and its 0 is not asked; its 255 never is.

    Raises:
        InputError: a file cannot be read, the two differ in size, or a label is none of the classes.
    """
    with _opened(example.image) as image:
        pixels = _pixels(image, example.image)
    with _opened(example.annotation) as image:
        written = np.array(image)
    if written.ndim != 2:
        raise InputError(
            f"{example.annotation} has {written.shape[2]} numbers per pixel; a label is one (mode L or P)"
        )
    if written.shape != pixels.shape[:2]:
        sizes = " and ".join(" x ".join(map(str, array.shape[1::-1])) for array in (written, pixels))
        raise InputError(f"{example.annotation} and its image differ in size: {sizes} pixels")
    first = int(reduce_zero_label)
    labels = torch.from_numpy(written.astype(np.int64)) - first
    asked = torch.from_numpy(_asked(written, reduce_zero_label))
    if (labels[asked] >= classes).any():
        raise InputError(
            f"{example.annotation} has label {labels[asked].max() + first}, but the {classes} classes "
            f"(--task.classes) are {first} to {classes - 1 + first} (--task.reduce-zero-label)"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255, labels.where(asked, IGNORED)


def _asked(written: NDArray[np.uint8], reduce_zero_label: bool) -> NDArray[np.bool_]:
    """Which of the labels in a file are of a class."""
    return (written != IGNORED) & (written >= int(reduce_zero_label))


def _pixels(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    try:
        return np.array(in_rgb(image))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None
    return image


class ADE20KData(FilesRead[Key, tuple[Any, Tensor] | Unreadable]):
    """The splits, read while they are asked for."""

    def __init__(self, task: ADE20K, seed: int) -> None:
        self._task, self._seed = task, seed
        listed = {
            folder: list_folder(task.data, folder, task.annotations) for folder in ("training", "validation")
        }
        by_hash = sorted(listed["training"], key=lambda example: _digest(example.image.name))
        if len(by_hash) <= task.validation:
            raise InputError(
                f"{task.data}: {len(by_hash)} training images are too few to hold out {task.validation} for "
                "validation (--task.validation)"
            )
        held_out = set(by_hash[: task.validation])
        self._examples = {
            "train": [example for example in listed["training"] if example not in held_out],
            "validation": [example for example in listed["training"] if example in held_out],
            "test": listed["validation"],
        }
        for split, examples in self._examples.items():
            self._require_labels(split, examples)
        self.extra_tests = {"multiscale": task.spec.grid} if task.multi_scale else {}
        super().__init__(_Pixels(task.classes, task.crop, task.reduce_zero_label), _together)

    def _require_labels(self, split: str, examples: Sequence[Example]) -> None:
        """Look for a labelled pixel, which the first annotation mostly has.

        Raises:
            InputError: the split has none.
        """
        for example in examples:
            with _opened(example.annotation) as image:
                if _asked(np.array(image), self._task.reduce_zero_label).any():
                    return
        unasked = f"0 (--task.reduce-zero-label) and {IGNORED}" if self._task.reduce_zero_label else IGNORED
        raise InputError(
            f"task ade20k: no pixel of the {len(examples):,} {split} images has a label; "
            f"{examples[0].annotation.parent} has only {unasked} for them"
        )

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(examples) for split, examples in self._examples.items()}

    def baselines(self, split: str = "test") -> dict[str, float]:
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names and sizes of all files, split by split, without reading them."""
        state = hashlib.sha256()
        for split, examples in self._examples.items():
            for example in examples:
                sizes = f"{example.image.stat().st_size} {example.annotation.stat().st_size}"
                state.update(f"{split} {example.image.name} {sizes}\n".encode())
        return state.hexdigest()[:16]

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        order = shuffled(self.sizes["train"], self._seed, epoch)
        places = share(batch_size, self.reading.rank, self.reading.ranks)
        steps = [order[step * batch_size :][places] for step in range(start, len(order) // batch_size)]
        examples = self._examples["train"]
        keys = (
            [
                (examples[number], stream(self._seed, "augmentation", epoch, number))
                for number in numbers.tolist()
            ]
            for numbers in steps
        )
        for numbers, read_ones in zip(steps, self.read(keys), strict=True):
            yield Batch(*whole(read_ones), numbers)

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """One image at a time, whatever `batch_size`; of "test_multiscale", all of its views."""
        purpose: Purpose = "views" if split == "test_multiscale" else "whole"
        split = "test" if purpose == "views" else split
        names = list(self._examples)
        first = sum(self.sizes[name] for name in names[: names.index(split)])  # ids count through all splits
        own = list(enumerate(self._examples[split], start=first))[self.reading.rank :: self.reading.ranks]
        keys = ([(example, purpose)] for _, example in own)
        for (number, _), read_ones in zip(own, self.read(keys), strict=True):
            yield Batch(*whole(read_ones), torch.tensor([number]))


@dataclass(frozen=True)
class _Pixels:
    """An image as the model sees it and the labels of its pixels, each a batch of one."""

    classes: int
    crop: int
    reduce_zero_label: bool

    def __call__(self, key: Key) -> tuple[Any, Tensor]:
        example, purpose = key
        image, labels = read(example, self.classes, self.reduce_zero_label)
        if purpose == "views":
            return views(image, self.crop), labels[None]
        if purpose == "whole":
            return normalised(resized(image, self.crop, 1.0))[None], labels[None]
        cut, labels = augmented(image, labels, self.crop, generator(purpose))
        return cut[None], labels[None]


def _together(examples: list[tuple[Any, Tensor] | Unreadable]) -> tuple[Any, Tensor] | Unreadable:
    """A batch of batches of one, or the first that could not be read."""
    for each in examples:
        if isinstance(each, Unreadable):
            return each
    if len(examples) == 1:
        return examples[0]  # of which the image may be in several views
    images, labels = zip(*examples, strict=True)
    return torch.cat(images), torch.cat(labels)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


# ------------------------------------------------------------------------ images


def augmented(image: Tensor, labels: Tensor, crop: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scaled, cut out, mirrored and with other colours: -> (3, crop, crop), normalised, and (crop, crop)."""
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * _uniform(random)
    image = resized(image, crop, scale)
    labels = F.interpolate(labels[None, None].float(), size=image.shape[1:], mode="nearest-exact")[0, 0]
    image, labels = cut_out(image, labels.long(), crop, random)
    if _uniform(random) < 0.5:
        image, labels = image.flip(-1), labels.flip(-1)
    image = normalised(distorted(image, random))
    below, beside = (crop - side for side in image.shape[1:])
    return F.pad(image, (0, beside, 0, below)), F.pad(labels, (0, beside, 0, below), value=IGNORED)


def resized(image: Tensor, crop: int, scale: float) -> Tensor:
    """(3, H, W) with a short side of `crop * scale`, or a long one of four times that if that is less."""
    sides = image.shape[1:]
    factor = scale * crop * min(LONGEST / max(sides), 1 / min(sides))
    size = [max(1, round(side * factor)) for side in sides]
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def cut_out(image: Tensor, labels: Tensor, crop: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most crop x crop pixels of both, with no class on more than three quarters of what is labelled.

    After ten attempts the last one is taken.
    """
    for _ in range(CROPS):
        places = []
        for side in labels.shape:
            start = int(_uniform(random) * (max(side - crop, 0) + 1))
            places.append(slice(start, start + crop))
        cut = labels[places[0], places[1]]
        counts = torch.bincount(cut[cut != IGNORED])
        if (counts > 0).sum() > 1 and counts.max() < LARGEST_SHARE * counts.sum():
            break
    return image[:, places[0], places[1]], cut


def distorted(image: Tensor, random: torch.Generator) -> Tensor:
    """SSD's photometric distortion (arXiv 1512.02325): brightness, contrast, saturation and hue, each or not.

    Contrast comes before or after saturation and hue. mmsegmentation's `PhotoMetricDistortion`, which rounds
    to 8 bits after each of them: (3, H, W) in 0..1 -> same.
    """

    def changes() -> bool:
        return _uniform(random) < 0.5

    def between(low: float, high: float) -> float:
        return low + (high - low) * _uniform(random)

    if changes():
        image = (image + between(-32, 32) / 255).clamp(0, 1)
    contrast_first = changes()
    contrast = between(0.5, 1.5) if changes() else 1.0
    if contrast_first:
        image = (contrast * image).clamp(0, 1)
    if changes():
        image = saturated(image, between(0.5, 1.5))
    if changes():
        image = colour.adjust_hue(image, between(-0.1, 0.1))
    return image if contrast_first else (contrast * image).clamp(0, 1)


def saturated(image: Tensor, factor: float) -> Tensor:
    """Saturation times `factor`, at most 1, with hue and value of HSV as they are: (3, H, W) in 0..1 -> same.

    A channel is V (1 - S h), where h depends on the hue alone.
    """
    value = image.amax(0)
    chroma = value - image.amin(0)  # V S
    most = value / chroma.clamp(min=1e-6)  # 1 / S
    return value - most.clamp(max=factor) * (value - image)


def views(image: Tensor, crop: int) -> tuple[Tensor, ...]:
    """(1, 3, h, w) at six scales, each as it is and, after that, mirrored."""
    at_scales = [normalised(resized(image, crop, scale))[None] for scale in MULTI_SCALE]
    return tuple(view for each in at_scales for view in (each, each.flip(-1)))


def normalised(image: Tensor) -> Tensor:
    """(3, H, W) in 0..1 -> the same with ImageNet's mean and variance taken out."""
    return (image - MEAN) / STD


def _uniform(random: torch.Generator) -> float:
    return torch.rand((), generator=random).item()


# ----------------------------------------------------------------------- metrics


class ConfusionScorer:
    """Counts pixels by their class and by what was answered."""

    def __init__(self, task: ADE20K) -> None:
        self._task = task
        self._counts = torch.zeros(task.classes, task.classes, dtype=torch.long)
        self._loss_sum, self._several = 0.0, False
        self._examples: list[Tensor] = []

    def add(self, outputs: Tensor | Sequence[Tensor], targets: Tensor, examples: Tensor) -> None:
        """Logits (B, h, w, C), or those of `views`, whose probabilities are averaged; targets (B, H, W)."""
        size = targets.shape[1:]
        if isinstance(outputs, Tensor):
            self._loss_sum += self._task.loss(outputs, targets).item() * self._task.loss_weight(targets)
            likely = at_size(outputs, size)
        else:
            self._several = True  # the mean of probabilities has no loss to compare
            likely = torch.stack(
                [
                    at_size(logits.flip(2) if place % 2 else logits, size).softmax(-1)
                    for place, logits in enumerate(outputs)
                ]
            ).mean(0)
        asked = targets != IGNORED
        pairs = targets[asked] * self._task.classes + likely.argmax(-1)[asked]
        counts = torch.bincount(pairs, minlength=self._task.classes**2)
        self._counts += counts.view(self._counts.shape).cpu()
        self._examples.append(examples)

    def metrics(self) -> dict[str, float]:
        measured = overlap(self._counts)
        if not self._several:
            measured["loss"] = self._loss_sum / int(self._counts.sum())
        return measured

    def answers(self) -> dict[str, np.ndarray]:
        """The split's examples, and its pixels counted by class (rows) and answer (columns)."""
        return {"example": torch.cat(self._examples).numpy(), "confusion": self._counts.numpy()}


def overlap(confusion: Tensor) -> dict[str, float]:
    """Percentages from counts of pixels, (C, C) by class and answer.

    `miou` is the mean over classes of intersection / union, `class_accuracy` that of intersection / labelled
    pixels, `pixel_accuracy` the share of all pixels. A class that is neither there nor answered is left out.
    """
    counts = confusion.double()
    right, labelled, answered = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = labelled + answered - right
    return {
        "miou": 100 * (right / union)[union > 0].mean().item(),
        "class_accuracy": 100 * (right / labelled)[labelled > 0].mean().item(),
        "pixel_accuracy": 100 * (right.sum() / counts.sum()).item(),
    }
