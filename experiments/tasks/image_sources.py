"""Images on the user's disk, in the layouts that timm reads: one listed split after the other.

Nothing is downloaded. Every split is listed when it is opened, and an image can then be read by its
number, in any order and in any process: a folder of class folders or a tar of them, what torchvision has
(`torch/cifar10`), Hugging Face datasets (`hfds/...`), and the shards of a webdataset (`wds/`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from experiments.tasks.image_listing import (
    ENDINGS,
    check_not_hidden,
    class_of_each,
    file_origins,
    file_sizes,
    image_paths,
    natural_key,
    shown,
    tar_members,
)
from mixers.registry import InputError, suggest

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
        return _hash(zip(self.names, self.sizes, self.labels, strict=True))

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


def _hash(rows: Iterable[Any]) -> str:
    state = hashlib.sha256()
    for row in rows:
        state.update(json.dumps(row).encode())
    return state.hexdigest()


def _lie_in(inner: frozenset[PurePath], outer: frozenset[PurePath]) -> bool:
    folders = {path.parent for path in inner}  # few, where a million files are links
    return not outer.isdisjoint(inner.union(folders, *(folder.parents for folder in folders)))


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


def in_rgb(image: Image.Image) -> Image.Image:
    """Grey of 8 or 16 bits, palette, RGBA or CMYK as RGB; transparency is dropped, as timm does.

    The orientation that EXIF may name is not applied, by timm's readers neither.

    Raises:
        InputError: 32 bits per pixel, of which it cannot be told what is white.
    """
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        _check_range(image)
    return image.convert("RGB")


def _check_range(image: Image.Image) -> None:
    """Pillow would clip, so that all above 255 is white, and floating point up to 1 black."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):
        raise InputError(
            f"mode {image.mode} with values from {low:g} to {high:g} is not read: store it in 8 bits, or 16"
        )


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
        "torch": _open_torchvision,
        "hfds": _open_hugging_face,
        "wds": _open_shards,
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


@dataclass(frozen=True)
class _Files:
    """Images that are files of their own."""

    paths: list[str]

    def __call__(self, number: int) -> BinaryIO:
        return open(self.paths[number], "rb")


@dataclass(frozen=True)
class _FirstOf:
    """Images of a dataset whose items begin with one."""

    items: Any

    def __call__(self, number: int) -> Image.Image | BinaryIO:
        found: Image.Image | BinaryIO = self.items[number][0]
        return found


# ------------------------------------------------------------- folders and tars


def _open_files(name: str, data: str, split: str) -> Source:
    root = _split_path(Path(data), split)
    return _folder(root) if root.is_dir() else _tar(root)


def _folder(root: Path) -> Source:
    paths = image_paths(root)
    names = [os.path.relpath(path, root) for path in paths]
    _check_class_folders(root, names)
    classes, labels = _numbered(class_of_each(shown(root), names))
    return Source(shown(root), _Files(paths), names, file_sizes(paths), labels, classes, file_origins(paths))


def _tar(root: Path) -> Source:
    members = tar_members(root)
    names, sizes = [member.name for member in members], [member.size for member in members]
    classes, labels = _numbered(class_of_each(shown(root), [member.class_path for member in members]))
    read = _Shards([_Member(str(root), member.offset, member.size) for member in members])
    return Source(shown(root), read, names, sizes, labels, classes, frozenset({root.resolve()}))


def _numbered(found: list[str]) -> tuple[list[str], list[int]]:
    """Classes in timm's order, and the number of each that was found."""
    classes = sorted(set(found), key=lambda name: (natural_key(name), name))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[name] for name in found]


def _split_path(data: Path, split: str, endings: tuple[str, ...] = ("", ".tar")) -> Path:
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


def _check_class_folders(root: Path, listed: list[str]) -> None:
    """Every folder directly below must have images in it.

    Raises:
        InputError: naming the folder.
    """
    used = {name.partition(os.sep)[0] for name in listed}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in used):
        raise InputError(f"class folder {shown(folder)} holds no images; fill it or remove it")


# ---------------------------------------------------------------- other layouts


IMAGE_FOLDER = ("image_folder", "folder")
"""Names that timm has for torchvision's reader of class folders."""


def _open_torchvision(name: str, data: str, split: str) -> Source:
    from timm.data import create_dataset

    where = f"torch/{name} in {data}, split {split}"
    folder = _split_path(Path(data), split, endings=("",)) if name.lower() in IMAGE_FOLDER else None
    below = image_paths(folder) if folder else []  # before torchvision, which follows links in circles
    try:
        found: Any = create_dataset(f"torch/{name}", data, split=split, download=False)
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        raise InputError(f"{where} cannot be opened, and nothing is downloaded here: {error}") from None
    labels, classes = _torchvision_labels(where, found)
    samples = getattr(found, "samples", None) or getattr(found, "imgs", None)
    if samples is not None:  # files of their own, which torchvision would clip if they are deep
        paths = [str(sample[0]) for sample in samples]
        if folder:
            _check_all_listed(where, folder, below, [os.path.relpath(path, found.root) for path in paths])
        return Source(where, _Files(paths), paths, file_sizes(paths), labels, classes, file_origins(paths))
    names = [f"{split}/{number}" for number in range(len(labels))]
    sizes = [hashlib.sha256(image.tobytes()).hexdigest()[:8] for image in _arrays(found.data)]
    return Source(where, _FirstOf(found), names, sizes, labels, classes, frozenset({PurePath(_hash(sizes))}))


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


def _open_hugging_face(name: str, data: str, split: str) -> Source:
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
    return Source(where, _FirstOf(reader), names, sizes, labels, classes, frozenset(), rows)


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


@dataclass(frozen=True)
class _Member:
    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Shards:
    """Reads an image out of the middle of a tar."""

    members: list[_Member]

    def __call__(self, number: int) -> BinaryIO:
        member = self.members[number]
        with open(member.shard, "rb") as file:
            file.seek(member.offset)
            return io.BytesIO(file.read(member.size))


def _open_shards(name: str, data: str, split: str) -> Source:
    """timm reads shards as a stream; listed by their tar headers, images are shuffled like any others."""
    root = Path(data)
    info = _shard_info(root)
    shards = _shards_of(root, split, info)
    members: list[_Member] = []
    names, labels = [], []
    for shard in shards:
        try:
            listed = list(_examples_of(shard))
        except (tarfile.TarError, OSError, TypeError, ValueError) as error:
            raise InputError(f"shard {shard} cannot be read: {error}") from None
        for key, member, label in listed:
            members.append(member)
            names.append(f"{shard.name}/{key}")
            labels.append(label)
    known = info.get("class_names") or [str(number) for number in range(max(labels, default=-1) + 1)]
    read = _Shards(members)
    sizes, origins = [each.size for each in members], frozenset(shard.resolve() for shard in shards)
    return Source(f"split {split} of {data}", read, names, sizes, labels, known, origins)


def _shard_info(root: Path) -> Mapping[str, Any]:
    """What timm's file beside the shards says of them, if there is one."""
    for path in (root / name for name in ("_info.json", "info.json")):
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        if not isinstance(content, dict) or not isinstance(content.get("splits", {}), dict):
            raise InputError(f"{path} is not an object, with an object `splits` in it")
        if not _are_names(content.get("class_names") or []):
            raise InputError(f"{path}: class_names is not a list of names")
        return content
    return {}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _shards_of(root: Path, split: str, info: Mapping[str, Any]) -> list[Path]:
    """Those that the info file names, or all whose name has the split's in it."""
    names = next((group for group in SYNONYMS if split in group), (split,))
    for name in names:
        if name in info.get("splits", {}):
            said = info["splits"][name]
            filenames: Any = said.get("filenames") if isinstance(said, dict) else None
            if not _are_names(filenames) or len(set(filenames)) < len(filenames):
                raise InputError(f"info file of {root}: split {name} has no list of distinct `filenames`")
            return [root / each for each in filenames]
    every = sorted(root.glob("*.tar"))
    chosen = [
        path for path in every if split == WHOLE or set(names) & set(path.stem.replace("_", "-").split("-"))
    ]
    if not chosen:
        raise InputError(
            f"{root} has no shards of split {split!r}: *-{split}-*.tar, or _info.json naming them"
        )
    return chosen


def _examples_of(shard: Path) -> Iterator[tuple[str, _Member, int]]:
    """Key, image and label of what a shard holds; the members of one example share their key.

    A key ends at the first dot of the file's own name, as in webdataset: folders may have dots too.
    """
    images: dict[str, _Member] = {}
    labels: dict[str, int] = {}
    with tarfile.open(shard, "r:") as archive:  # compressed, it has no offsets to read at
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key = folder + slash + stem
            if f".{ending.lower()}" in ENDINGS:
                images[key] = _Member(str(shard), member.offset_data, member.size)
            elif ending == "cls" and (file := archive.extractfile(member)) is not None:
                labels[key] = int(file.read())
            elif ending == "json" and (file := archive.extractfile(member)) is not None:
                content = json.load(file)
                if "label" in content:
                    labels[key] = int(content["label"])
    for key, image in images.items():
        if key not in labels:
            raise ValueError(f"{key} has an image, but neither {key}.cls nor a label in {key}.json")
        yield key, image, labels[key]
