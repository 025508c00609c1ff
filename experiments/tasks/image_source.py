"""A listed split of images: what is known of them without reading one, and what reads them by number."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from PIL import Image

from experiments.tasks.image_listing import shown
from mixers.registry import InputError

SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
"""Names that a split's folder may have, those of timm."""

WHOLE = "."
"""The split that is all of a folder, file or dataset without splits."""

Read = Callable[[int], Image.Image | BinaryIO]
"""Gives an image, or its open file, by number."""


@dataclass(frozen=True)
class Rows:
    """Some of a split that has been cut into parts: `train[:50%]`."""

    split: str
    start: int
    stop: int

    def overlaps(self, other: Rows) -> bool:
        return self.split == other.split and max(self.start, other.start) < min(self.stop, other.stop)


@dataclass(frozen=True)
class Source:
    """One split, listed.

    Attributes:
        where: what to call it in a message.
        read: gets an image; can be sent to another process.
        names: of the images.
        sizes: in bytes, or whatever else is known of the images without reading them.
        labels: of the images.
        classes: their names, in the order of the labels; a class may have no images.
        origins: the files or folders it is read from, links resolved; a hash stands for what has no file of
            its own.
        rows: of one dataset's splits, where it is read from parts of them and not from files.
    """

    where: str
    read: Read
    names: list[str]
    sizes: list[Any]
    labels: list[int]
    classes: list[str]
    origins: frozenset[PurePath]
    rows: tuple[Rows, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Hash of the listing: names, sizes and labels. No image is read for it."""
        return hash_of(zip(self.names, self.sizes, self.labels, strict=True))

    def overlaps(self, other: Source) -> bool:
        """Whether the two have an origin or rows in common, or one origin lies in one of the other's."""
        return (
            _lie_in(self.origins, other.origins)
            or _lie_in(other.origins, self.origins)
            or any(mine.overlaps(theirs) for mine in self.rows for theirs in other.rows)
        )

    def labelled_for(self, classes: tuple[str, ...]) -> Source:
        """The same with the labels of a split that has these classes: a class is known by its name.

        Raises:
            InputError: an image is of none of them, or names do not tell classes apart.
        """
        if list(classes) == self.classes:
            return self  # torchvision's ImageNet has two classes of one name
        numbers = {name: number for number, name in enumerate(classes)}
        if len(numbers) < len(classes) or len(set(self.classes)) < len(self.classes):
            raise InputError(f"{self.where} has other classes than the training split, and two of one name")
        own = dict(enumerate(self.classes))
        unknown = [
            own[label] for label in sorted(set(self.labels)) if own.get(label, classes[0]) not in numbers
        ]
        if unknown:
            raise InputError(
                f"{self.where} has images of {shown(unknown[0])}, which is not a class of the training split"
            )
        labels = [numbers[own[label]] if label in own else label for label in self.labels]
        return replace(self, labels=labels, classes=list(classes))


def hash_of(rows: Iterable[Any]) -> str:
    """SHA-256 over the rows, each as JSON."""
    state = hashlib.sha256()
    for row in rows:
        state.update(json.dumps(row).encode())
    return state.hexdigest()


def _lie_in(inner: frozenset[PurePath], outer: frozenset[PurePath]) -> bool:
    folders = {path.parent for path in inner}  # few, where a million files are links
    return not outer.isdisjoint(inner.union(folders, *(folder.parents for folder in folders)))


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files of their own."""

    paths: list[str]

    def __call__(self, number: int) -> BinaryIO:
        return open(self.paths[number], "rb")


@dataclass(frozen=True)
class FirstOfItems:
    """Images of a dataset whose items begin with one."""

    items: Any

    def __call__(self, number: int) -> Image.Image | BinaryIO:
        found: Image.Image | BinaryIO = self.items[number][0]
        return found


@dataclass(frozen=True)
class Member:
    """Where in a tar the bytes of an image are."""

    tar: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarMembers:
    """Images out of the middle of tars."""

    members: list[Member]

    def __call__(self, number: int) -> BinaryIO:
        member = self.members[number]
        with open(member.tar, "rb") as file:
            file.seek(member.offset)
            return io.BytesIO(file.read(member.size))


def split_path(data: Path, split: str, endings: tuple[str, ...] = ("", ".tar")) -> Path:
    """The folder or tar of a split.

    Raises:
        InputError: there is none.
    """
    if split == WHOLE:
        return data
    names = next((group for group in SYNONYMS if split in group), (split,))
    ordered = (split, *(name for name in names if name != split))
    for candidate in (data / f"{name}{ending}" for name in ordered for ending in endings):
        if candidate.exists():
            return candidate
    have = sorted(path.name for path in data.iterdir())[:5] if data.is_dir() else []
    kinds = "no folder and no tar" if ".tar" in endings else "no folder"
    raise InputError(
        f"{data} has no split {split!r}: {kinds} named {' or '.join(ordered)}"
        f"{', but ' + ', '.join(have) if have else ''}; --task.train-split and --task.test-split name "
        f"others, and {WHOLE!r} for both takes all of {data.name}, divided by hash"
    )
