"""Images on the user's disk, in the layouts that timm reads: one listed split after the other.

Nothing is downloaded. Every split is listed when it is opened, and an image can then be read by its
number, in any order and in any process: a folder of class folders or a tar of them, what torchvision has
(`torch/cifar10`), Hugging Face datasets (`hfds/...`), and the shards of a webdataset (`wds/`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image

from experiments.tasks.image_datasets import open_hugging_face, open_torchvision
from experiments.tasks.image_listing import (
    class_of_each,
    file_origins,
    file_sizes,
    image_paths,
    natural_key,
    shown,
    tar_members,
)
from experiments.tasks.image_shards import open_shards
from experiments.tasks.image_source import ImageFiles, Member, Read, Source, TarMembers, split_path
from experiments.tasks.pixels import in_rgb
from mixers.registry import InputError, suggest


def read_image(read: Read, number: int) -> Image.Image:
    """An image in RGB, whatever it was stored as.

    Raises:
        Exception: whatever its decoder raises.
    """
    found = read(number)
    if isinstance(found, Image.Image):
        return in_rgb(found)
    with found, Image.open(found) as image:
        return in_rgb(image)


@lru_cache(maxsize=8)
def open_source(dataset: str, data: str, split: str, classes: tuple[str, ...] | None = None) -> Source:
    """List a split.

    Args:
        dataset: "" for a folder or a tar; "torch/NAME", "hfds/NAME" or "wds/".
        data: the folder or file.
        split: its name; "." for all of what has no splits.
        classes: names of the classes in their order, where another split has settled it.

    Raises:
        InputError: it is not there, it cannot be read as that, or it has other classes or a class without
            images.
    """
    kind, slash, name = dataset.partition("/")
    openers: dict[str, Callable[[str, str, str], Source]] = {
        "": _open_files,
        "torch": open_torchvision,
        "hfds": open_hugging_face,
        "wds": open_shards,
    }
    if kind not in openers or (kind and not slash):
        known = "nothing for a folder or a tar, torch/NAME, hfds/NAME, wds/"
        raise InputError(f"task images: unknown dataset {dataset!r}{suggest(kind, openers)} (known: {known})")
    if kind != "hfds" and not Path(data).exists():
        raise InputError(f"task images: there is no {data} (--task.data)")
    source = openers[kind](name, data, split)
    if not len(source):
        raise InputError(f"{source.where} holds no images")
    if not classes or kind == "wds":  # shards of all splits have the same numbers for labels
        return source
    return source.labelled_for(classes)


def _open_files(name: str, data: str, split: str) -> Source:
    root = split_path(Path(data), split)
    return _folder(root) if root.is_dir() else _tar(root)


def _folder(root: Path) -> Source:
    paths = image_paths(root)
    names = [os.path.relpath(path, root) for path in paths]
    _check_class_folders(root, names)
    classes, labels = _numbered(class_of_each(shown(root), names))
    return Source(
        shown(root), ImageFiles(paths), names, file_sizes(paths), labels, classes, file_origins(paths)
    )


def _tar(root: Path) -> Source:
    members = tar_members(root)
    names, sizes = [member.name for member in members], [member.size for member in members]
    classes, labels = _numbered(class_of_each(shown(root), [member.class_path for member in members]))
    read = TarMembers([Member(str(root), member.offset, member.size) for member in members])
    return Source(shown(root), read, names, sizes, labels, classes, frozenset({root.resolve()}))


def _numbered(found: list[str]) -> tuple[list[str], list[int]]:
    """Classes in timm's order, and the number of each that was found."""
    classes = sorted(set(found), key=lambda name: (natural_key(name), name))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[name] for name in found]


def _check_class_folders(root: Path, listed: list[str]) -> None:
    """Every folder directly below must have images in it.

    Raises:
        InputError: naming the folder.
    """
    used = {name.partition(os.sep)[0] for name in listed}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in used):
        raise InputError(f"class folder {shown(folder)} holds no images; fill it or remove it")
