"""Images that torchvision or Hugging Face datasets have on disk, listed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any

from experiments.tasks.image_listing import check_not_hidden, file_origins, file_sizes, image_paths, shown
from experiments.tasks.image_source import FirstOfItems, ImageFiles, Rows, Source, hash_of, split_path
from mixers.registry import InputError

IMAGE_FOLDER = ("image_folder", "folder")
"""Names that timm has for torchvision's reader of class folders."""


def open_torchvision(name: str, data: str, split: str) -> Source:
    from timm.data import create_dataset

    where = f"torch/{name} in {data}, split {split}"
    folder = split_path(Path(data), split, endings=("",)) if name.lower() in IMAGE_FOLDER else None
    below = image_paths(folder) if folder else []  # before torchvision, which follows links in circles
    try:
        found: Any = create_dataset(f"torch/{name}", data, split=split, download=False)
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        why, *_ = str(error).partition(" You can use download=True")  # which nobody here can
        raise InputError(f"{where} cannot be opened, and nothing is downloaded here: {why}") from None
    labels, classes = _torchvision_labels(where, found)
    samples = getattr(found, "samples", None) or getattr(found, "imgs", None)
    if samples is not None:  # files of their own, which torchvision would clip if they are deep
        paths = [str(sample[0]) for sample in samples]
        names = [os.path.relpath(path, found.root) for path in paths]  # the same wherever the data are
        if folder:
            _check_all_listed(where, folder, below, names)
        return Source(
            where, ImageFiles(paths), names, file_sizes(paths), labels, classes, file_origins(paths)
        )
    names = [f"{split}/{number}" for number in range(len(labels))]
    sizes = [hashlib.sha256(image.tobytes()).hexdigest()[:8] for image in _arrays(found.data)]
    return Source(
        where, FirstOfItems(found), names, sizes, labels, classes, frozenset({PurePath(hash_of(sizes))})
    )


def _torchvision_labels(where: str, dataset: Any) -> tuple[list[int], list[str]]:
    """Of every image, and what the classes are called.

    Raises:
        InputError: the dataset does not list one label for each image.
    """
    try:
        return [int(label) for label in dataset.targets], [str(each) for each in dataset.classes]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{where} has no list of one label per image, and cannot be read; class folders can, without "
            "--task.dataset"
        ) from None


def _check_all_listed(where: str, folder: Path, below: list[str], listed: list[str]) -> None:
    """Torchvision takes all in a class folder for the class, hidden copies too, and nothing else.

    Raises:
        InputError: naming what it should not take, or passes over.
    """
    check_not_hidden(where, listed)
    passed_over = {os.path.relpath(path, folder) for path in below} - set(listed)
    if passed_over:
        raise InputError(
            f"{where}: torchvision passes over {shown(min(passed_over))}, which lies in no class folder or "
            "is of a format that it does not list"
        )


def _arrays(data: Any) -> Iterator[Any]:
    """The images of a dataset that holds them all in an array."""
    return iter(data.numpy() if hasattr(data, "numpy") else data)


def open_hugging_face(name: str, data: str, split: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise InputError("hfds/ needs the package datasets: uv pip install datasets") from None
    import huggingface_hub
    from timm.data import create_dataset

    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True  # nothing is downloaded
    datasets.disable_progress_bars()
    where = f"hfds/{name}, split {split}"
    try:
        found: Any = create_dataset(f"hfds/{name}", data or None, split=split)
    except Exception as error:  # a zoo of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{where} is not on this disk, and nothing is downloaded here: {first}") from None
    reader = found.reader
    try:
        labels = [int(label) for label in reader.iter_targets()]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where} has no column `label` with one number per image") from None
    names = [f"{split}/{number}" for number in range(len(reader))]
    sizes = [reader.dataset._fingerprint] * len(reader)
    classes = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
    rows = _rows(where, reader.dataset)
    return Source(where, FirstOfItems(reader), names, sizes, labels, classes, frozenset(), rows)


def _rows(where: str, dataset: Any) -> tuple[Rows, ...]:
    """What a dataset is made of, whatever its split was called: `train[:50%]+test`, `all`.

    Raises:
        InputError: it does not say, or has rows twice; two splits could share images unseen.
    """
    from datasets import ReadInstruction

    lengths = {name: split.num_examples for name, split in (dataset.info.splits or {}).items()}
    try:
        parts = ReadInstruction.from_spec(str(dataset.split)).to_absolute(lengths)
    except ValueError as error:
        raise InputError(f"{where} does not say which rows it has: {error}") from None
    rows = tuple(Rows(part.splitname, part.from_, part.to) for part in parts)
    if any(one.overlaps(other) for one, other in combinations(rows, 2)):
        raise InputError(f"{where} has images that count twice")
    return rows
