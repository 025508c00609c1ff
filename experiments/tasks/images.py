"""Real images from the user's disk, under timm's transforms: ImageNet, CIFAR, any folder of class folders.

Files are read and augmented by processes of their own. Every example has its own stream of randomness per
epoch, seeded where it is augmented: arms of a seed see the same pixels, whoever reads them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from timm.data import create_transform
from torch import Tensor

from experiments.interface import Metric, TaskSpec
from experiments.tasks.base import (
    Batch,
    Classification,
    ClassificationScorer,
    Scorer,
    TaskData,
    share,
    shuffled,
)
from experiments.tasks.image_listing import shown
from experiments.tasks.image_source import WHOLE, Read, Source
from experiments.tasks.image_sources import open_source, read_image
from experiments.tasks.reading import FilesRead, Unreadable
from experiments.trial import stream
from mixers.registry import InputError

TOP_5 = Metric("top_5", "%", "points", higher_is_better=True)

Share = Annotated[float, Field(ge=0, le=1)]
Key = tuple[str, int, int | None]
"""Split, number in its source, and the seed of its augmentation; None for none."""
Stacked = tuple[Tensor, Tensor, dict[int, str]]
"""Images, labels, and the error of each place where there is none."""


class Images(Classification):
    """What is in the picture?

    The splits are folders, or tars, named train and validation (or val) below `data`, each with a folder per
    class. What is tested on is the validation split of the data set, as everyone does with ImageNet. What is
    chosen on is held out of the training split, by a hash of the file's name: the same images for every seed,
    so that a model that is fine-tuned has not seen them either. Normalisation is ImageNet's. A batch of the
    training split in which an image cannot be read has its neighbour twice; other splits go without it. Class
    folders lie side by side, and a class is known by its name in every split.

    Args:
        data: the folder or file.
        dataset: what lies there, in timm's words: nothing for folders or tars, torch/cifar10 and others of
            torchvision, hfds/NAME, wds/.
        size: side of the square that the model sees, in pixels.
        classes: how many there are; None to look.
        train_split: its name; "." for all of what has no splits.
        validation_split: its name; None to hold it out of the training split.
        test_split: its name; that of the training split to hold it out too.
        held_out: share of the training split that is held out, for each split that is.
        crop_pct: share of the resized image's side that evaluation keeps.
        interpolation: of evaluation.
        train_interpolation: of training; "random" for bilinear or bicubic.
        scale: least share of the area that a training crop has.
        hflip: probability of a mirror image.
        auto_augment: timm's name of the policy; None for none.
        color_jitter: strength; timm leaves it out where there is a policy.
        re_prob: probability of random erasing, of one rectangle, by noise.
        unreadable: whether an image that cannot be decoded ends the trial or is skipped and counted.
    """

    other_metrics = (TOP_5,)

    def __init__(
        self,
        *,
        data: str = "",
        dataset: str = "",
        size: Annotated[int, Field(ge=8)] = 224,
        classes: Annotated[int, Field(ge=2)] | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str = "validation",
        held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.02,
        crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0,
        interpolation: Literal["bilinear", "bicubic"] = "bicubic",
        train_interpolation: Literal["random", "bilinear", "bicubic"] = "random",
        scale: Annotated[float, Field(gt=0, le=1)] = 0.08,
        hflip: Share = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: Annotated[float, Field(ge=0)] = 0.4,
        re_prob: Share = 0.25,
        unreadable: Literal["fatal", "skip"] = "fatal",
    ) -> None:
        self.data, self.dataset, self.size, self.unreadable = data, dataset, size, unreadable
        self.held_out = held_out
        train = train_split or WHOLE
        self.splits = {"train": train, "validation": validation_split or train, "test": test_split or train}
        self._classes = classes
        self.evaluating = {"crop_pct": crop_pct, "interpolation": interpolation}
        self.training = {
            "interpolation": train_interpolation,
            "scale": (scale, 1.0),
            "hflip": hflip,
            "auto_augment": auto_augment,
            "color_jitter": color_jitter or None,
            "re_prob": re_prob,
            "re_mode": "pixel",
        }

    @classmethod
    def settle(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the number of classes filled in from the data, where it was left open.

        Raises:
            InputError: no data was named, or it cannot be opened.
        """
        task = cls(**options)
        return {**options, "classes": options["classes"] or len(task.open("train").classes)}

    @property
    def spec(self) -> TaskSpec:
        classes = self._classes or len(self.open("train").classes)
        return TaskSpec(input="image", channels=3, grid=(self.size, self.size), classes=classes)

    def open(self, split: str) -> Source:
        """The source of a split, listed; the one of the training split where it is held out of that.

        Raises:
            InputError: no data was named, or it cannot be opened.
        """
        data = self._where()
        train, name = self.splits["train"], self.splits[split]
        first = open_source(self.dataset, data, train)
        return first if name == train else open_source(self.dataset, data, name, tuple(first.classes))

    def _where(self) -> str:
        """Where the data is."""
        if not self.data and not self.dataset.startswith("hfds/"):
            raise InputError("task images needs --task.data PATH: a folder with train and validation in it")
        return self.data

    def load(self, seed: int) -> TaskData:
        """All splits.

        Raises:
            InputError: one cannot be opened, or two of them share images.
        """
        sources = {split: self.open(split) for split in self.splits}
        self._check_apart(sources)
        return ImagesData(self, seed, sources)

    def _check_apart(self, sources: Mapping[str, Source]) -> None:
        """No two share images, but for what is held out of the training split."""
        for one, other in combinations(sources, 2):
            if sources[other] is not sources["train"] and sources[one].overlaps(sources[other]):
                raise InputError(
                    f"--task.{one}-split {self.splits[one]!r} and --task.{other}-split "
                    f"{self.splits[other]!r} share images: {sources[one].where}, {sources[other].where}; a "
                    f"split that is named {self.splits['train']!r} too is held out of the training split"
                )

    def load_test(self) -> TaskData:
        """The test split, for a model that is trained already; without the images that it was trained on.

        Raises:
            InputError: it cannot be opened, or it has another number of classes than was said.
        """
        source = open_source(self.dataset, self._where(), self.splits["test"])
        if len(source.classes) != self.spec.classes:
            raise InputError(
                f"{source.where} has {len(source.classes):,} classes, but the weights answer for "
                f"{self.spec.classes:,}"
            )
        held_out = self.held_out_splits()
        splits = ["train", *held_out] if "test" in held_out else ["test"]
        return ImagesData(self, 0, dict.fromkeys(splits, source))

    def held_out_splits(self) -> list[str]:
        """Those that are held out of the training split, in the order of their shares."""
        return [split for split in ("validation", "test") if self.splits[split] == self.splits["train"]]

    def transform(self, training: bool) -> Any:
        """timm's transform, image -> (3, size, size).

        Raises:
            InputError: timm has no such policy of augmentation.
        """
        options = self.training if training else self.evaluating
        try:
            return create_transform((3, self.size, self.size), is_training=training, **options)
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(
                f"timm reads no policy in --task.auto-augment {self.training['auto_augment']} ({error}); "
                "rand-m9-mstd0.5-inc1, augmix-m3 and original are such, and None leaves it out"
            ) from None

    def scorer(self) -> Scorer:
        return ImagesScorer(self)


class ImagesScorer(ClassificationScorer):
    """Also counts how often the answer is among the five likeliest."""

    def __init__(self, task: Images) -> None:
        super().__init__(task)
        self._among = self._asked = 0

    def add(self, outputs: Tensor, targets: Tensor, examples: Tensor) -> None:
        super().add(outputs, targets, examples)
        likeliest = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        self._among += int((likeliest == targets[:, None]).sum())
        self._asked += len(targets)

    def metrics(self) -> dict[str, float]:
        if not self._asked:  # every rank has passed over all of its share
            raise InputError("no image of the split can be read")
        return {**super().metrics(), "top_5": 100.0 * self._among / self._asked}


class ImagesData(FilesRead[Key, Stacked]):
    """The splits of one seed, or only the one that is tested on.

    Raises:
        InputError: they cannot be opened, or one of them is empty, or has more classes than were said.
    """

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, task: Images, seed: int, sources: Mapping[str, Source]) -> None:
        self._task, self._seed = task, seed
        self._sources = dict(sources)
        self._numbers = self._divide()
        self._check()
        reads = {split: source.read for split, source in self._sources.items()}
        labels = {split: source.labels for split, source in self._sources.items()}
        transforms = {split: task.transform(training=split == "train") for split in reads}
        super().__init__(_Images(reads, labels, transforms), _stack)

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(numbers) for split, numbers in self._numbers.items()}

    def baselines(self, split: str = "test") -> dict[str, float]:
        labels = torch.tensor(self._sources[split].labels)[self._numbers[split]]
        anywhere = 100 / self._task.spec.classes
        frequent = 100 * labels.bincount().max().item() / len(labels)
        found = {"the most frequent class": frequent} if frequent > anywhere else {}
        return {**found, "a random class": anywhere}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the listing of every split (names, sizes, labels) and of how they were divided.

        Not of the pixels: a million files are not read for it.
        """
        state = hashlib.sha256()
        for split, source in self._sources.items():
            state.update(f"{split} {source.digest()}".encode())
            state.update(self._numbers[split].numpy().tobytes())
        return state.hexdigest()[:16]

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        order = self._numbers["train"][shuffled(self.sizes["train"], self._seed, epoch)]
        places = share(batch_size, self.reading.rank, self.reading.ranks)
        steps = [order[step * batch_size :][places] for step in range(start, len(order) // batch_size)]
        keys = ([self._training_key(epoch, number) for number in numbers.tolist()] for numbers in steps)
        for numbers, read in zip(steps, self.read(keys), strict=True):
            images, labels, errors = read
            self._note("train", numbers, errors)
            if len(errors) == len(numbers):
                yield self._in_place_of(numbers, order, epoch)
                continue
            if errors:
                kept = _neighbours(len(numbers), errors)
                images, labels, numbers = images[kept], labels[kept], numbers[kept]
            yield Batch(images, labels, numbers)

    def _training_key(self, epoch: int, number: int) -> Key:
        return "train", number, stream(self._seed, "augmentation", epoch, number)

    def _in_place_of(self, numbers: Tensor, order: Tensor, epoch: int) -> Batch:
        """The next image of the epoch that can be read, for a share of a batch in which none can.

        It cannot be left out: other ranks, and the schedule, count its step.

        Raises:
            InputError: there is none in the whole split.
        """
        after = int((order == numbers[-1]).nonzero()) + 1
        for number in order.roll(-after).tolist():
            try:
                image, label = self._read_one(self._training_key(epoch, number))
            except InputError:
                continue
            labels, repeated = torch.full_like(numbers, label), torch.full_like(numbers, number)
            return Batch(torch.stack([image] * len(numbers)), labels, repeated)
        raise InputError(f"{self._sources['train'].where}: none of {len(order)} images can be read")

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        every = self._numbers[split].split(batch_size)
        steps = every[self.reading.rank :: self.reading.ranks]
        keys = ([(split, number, None) for number in numbers.tolist()] for numbers in steps)
        passed_over = 0
        for numbers, read in zip(steps, self.read(keys), strict=True):
            images, labels, errors = read
            self._note(split, numbers, errors)
            passed_over += len(errors)
            if errors:
                kept = [place for place in range(len(numbers)) if place not in errors]
                if not kept:
                    continue
                images, labels, numbers = images[kept], labels[kept], numbers[kept]
            yield Batch(images, labels, self._ids(split, numbers))
        if passed_over == self.sizes[split] and self.reading.ranks == 1:  # of several, the scorer knows
            raise InputError(f"{self._sources[split].where}: none of {passed_over} images can be read")

    def _ids(self, split: str, numbers: Tensor) -> Tensor:
        """Of a split's images among those of all splits; the training split's are their numbers."""
        if self._sources[split] is self._sources.get("train", self._sources[split]):
            return numbers
        before = len(self._sources["train"])
        if split == "test" and self._sources["validation"] is not self._sources["train"]:
            before += len(self._sources["validation"])
        return numbers + before

    def _divide(self) -> dict[str, Tensor]:
        """Numbers of the images of each split in its source."""
        numbers = {split: torch.arange(len(source)) for split, source in self._sources.items()}
        if "train" not in self._sources:
            return numbers
        train = self._sources["train"]
        held_out = self._task.held_out_splits()
        places = torch.tensor([_place(name) for name in train.names]) if held_out else torch.ones(len(train))
        for position, split in enumerate(held_out):
            low, high = position * self._task.held_out, (position + 1) * self._task.held_out
            numbers[split] = numbers[split][(places >= low) & (places < high)]
        numbers["train"] = numbers["train"][places >= len(held_out) * self._task.held_out]
        return numbers

    def _check(self) -> None:
        for split, numbers in self._numbers.items():
            if not len(numbers):
                raise InputError(
                    f"{self._sources[split].where}: held_out {self._task.held_out:g} of "
                    f"{len(self._sources[split])} images leaves the {split} split empty"
                )
        classes = self._task.spec.classes
        for source in self._sources.values():
            if min(source.labels) < 0:
                raise InputError(
                    f"{source.where} has images with the label {min(source.labels)}, which is no class; a "
                    "split without labels cannot be learned or tested on"
                )
            if max(source.labels) >= classes:
                raise InputError(
                    f"{source.where} has labels up to {max(source.labels)}, but task images was told of "
                    f"{classes} classes (--task.classes)"
                )

    def _note(self, split: str, numbers: Tensor, errors: Mapping[int, str]) -> None:
        """Remember what could not be read, or refuse to go on."""
        for place, error in errors.items():
            error, source = shown(error), self._sources[split]
            name = f"{source.where}: {shown(source.names[int(numbers[place])])}"
            if self._task.unreadable == "fatal":
                raise InputError(
                    f"{name} cannot be read ({error}); replace it, or let --task.unreadable skip pass "
                    "over such images and count them"
                )
            self.unreadable[name] = error


def _place(name: str) -> float:
    """Where a name falls in [0, 1)."""
    as_stored = name.encode(errors="surrogateescape")  # a file's name may be no UTF-8
    return int.from_bytes(hashlib.sha256(as_stored).digest()[:6], "big") / 2**48


def _neighbours(count: int, errors: Mapping[int, str]) -> Tensor:
    """Every place, or the next one around that has no error."""
    places = torch.arange(count)
    for place in sorted(errors):
        places[place] = next(
            other % count for other in range(place + 1, place + count) if other % count not in errors
        )
    return places


# --------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Images:
    """How to get an image, and what to make of it, by split."""

    reads: Mapping[str, Read]
    labels: Mapping[str, Sequence[int]]
    transforms: Mapping[str, Any]

    def __call__(self, key: Key) -> tuple[Tensor, int]:
        split, number, seed = key
        try:
            image = read_image(self.reads[split], number)
        except InputError:
            raise
        except Exception as error:  # decoders raise anything
            raise InputError(f"{type(error).__name__}: {error}") from None
        with _seeded(seed):
            return self.transforms[split](image), self.labels[split][number]


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """timm's transforms draw from the global generators: seeded inside, outside as they were before."""
    if seed is None:
        yield
        return
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def _stack(examples: Sequence[tuple[Tensor, int] | Unreadable]) -> Stacked:
    errors = {place: each.problem for place, each in enumerate(examples) if isinstance(each, Unreadable)}
    read = [each for each in examples if not isinstance(each, Unreadable)]
    blank = (torch.zeros_like(read[0][0]) if read else torch.zeros(0), -1)
    whole = [blank if isinstance(each, Unreadable) else each for each in examples]
    images, labels = zip(*whole, strict=True)
    return torch.stack(images), torch.tensor(labels), errors
