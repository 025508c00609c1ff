"""Images on the user's disk, read through `timm.data.create_dataset`: one listed split after the other.

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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from mixers.registry import InputError, suggest

SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
"""Names that a split's folder may have, those of timm."""

WHOLE = "."
"""The split that is all of a folder, file or dataset without splits."""

IMAGES_IN_SHARDS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

Read = Callable[[int], tuple[Image.Image | BinaryIO, int]]
"""Gives an image, or its open file, and its label; by number."""


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
        origins: the files or folders it is read from; a hash stands for what has no file of its own.
    """

    where: str
    read: Read
    names: list[str]
    sizes: list[Any]
    labels: list[int]
    classes: list[str]
    origins: frozenset[PurePath]

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Hash of the listing: names, sizes and labels. No image is read for it."""
        return _hash(zip(self.names, self.sizes, self.labels, strict=True))

    def overlaps(self, other: Source) -> bool:
        """Whether the two have an origin in common, or one that lies in one of the other's."""
        return _lie_in(self.origins, other.origins) or _lie_in(other.origins, self.origins)


def _hash(rows: Iterable[Any]) -> str:
    state = hashlib.sha256()
    for row in rows:
        state.update(json.dumps(row).encode())
    return state.hexdigest()


def _lie_in(inner: frozenset[PurePath], outer: frozenset[PurePath]) -> bool:
    return any(not outer.isdisjoint((path, *path.parents)) for path in inner)


def read_image(read: Read, number: int) -> tuple[Image.Image, int]:
    """An image in RGB, whatever it was stored as, and its label.

    Raises:
        Exception: whatever its decoder raises.
    """
    found, label = read(number)
    if isinstance(found, Image.Image):
        return in_rgb(found), int(label)
    with found, Image.open(found) as image:
        return in_rgb(image), int(label)


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
        InputError: it is not there, it cannot be read as that, or a class has no images.
    """
    kind, slash, name = dataset.partition("/")
    openers: dict[str, Callable[..., Source]] = {
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
    source = openers[kind](name, data, split, classes)
    if not len(source):
        raise InputError(f"{source.where} holds no images")
    return source


# ------------------------------------------------------------- folders and tars


def _open_files(name: str, data: str, split: str, classes: tuple[str, ...] | None) -> Source:
    from timm.data import create_dataset

    root = _split_path(Path(data), split)
    class_map = {label: number for number, label in enumerate(classes)} if classes else None
    try:
        found: Any = create_dataset("", str(root), search_split=False, class_map=class_map)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError, tarfile.TarError) as error:
        raise InputError(f"{root} holds no images that can be listed: {error}") from None
    if root.is_dir():
        return _folder(root, found.reader, classes)
    return _tar(root, found.reader)


def _folder(root: Path, reader: Any, classes: tuple[str, ...] | None) -> Source:
    paths, labels = ([row[column] for row in reader.samples] for column in (0, 1))
    names = [os.path.relpath(path, root) for path in paths]
    _check_class_folders(root, names, classes)
    sizes = [Path(path).stat().st_size for path in paths]
    in_order, origins = list(reader.class_to_idx), frozenset({root.resolve()})
    return Source(str(root), reader.__getitem__, names, sizes, labels, in_order, origins)


def _tar(root: Path, reader: Any) -> Source:
    """timm's reader keeps the tar open, which goes neither into another process nor through a fork."""
    labels = [int(label) for label in reader.targets]
    members = [
        _Member(str(root), file.offset_data + (inner.offset_data if inner else 0), file.size)
        for file, _, inner in reader.samples
    ]
    names = [file.name for file, *_ in reader.samples]
    sizes = [member.size for member in members]
    in_order, origins = list(reader.class_name_to_idx), frozenset({root.resolve()})
    return Source(str(root), _Shards(members, labels), names, sizes, labels, in_order, origins)


def _split_path(data: Path, split: str) -> Path:
    """The folder or tar of a split.

    Raises:
        InputError: there is none.
    """
    if split == WHOLE:
        return data
    names = next((group for group in SYNONYMS if split in group), (split,))
    ordered = (split, *(name for name in names if name != split))
    for candidate in (data / f"{name}{ending}" for name in ordered for ending in ("", ".tar")):
        if candidate.exists():
            return candidate
    have = sorted(path.name for path in data.iterdir())[:5] if data.is_dir() else []
    raise InputError(
        f"{data} has no split {split!r}: no folder and no tar named {' or '.join(ordered)}"
        f"{', but ' + ', '.join(have) if have else ''}; --task.train-split and --task.test-split name "
        f"others, and {WHOLE!r} for both takes all of {data.name}, divided by hash"
    )


def _check_class_folders(root: Path, listed: list[str], classes: tuple[str, ...] | None) -> None:
    """Every folder directly below must have images in it, of classes that the training split has.

    Raises:
        InputError: naming the folder.
    """
    used = {name.partition(os.sep)[0] for name in listed}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in used):
        if classes is not None and folder.name not in classes:
            raise InputError(f"class folder {folder} is not a class of the training split")
        raise InputError(f"class folder {folder} holds no images; fill it or remove it")


# ---------------------------------------------------------------- other layouts


def _open_torchvision(name: str, data: str, split: str, classes: tuple[str, ...] | None) -> Source:
    from timm.data import create_dataset

    where = f"torch/{name} in {data}, split {split}"
    try:
        found: Any = create_dataset(f"torch/{name}", data, split=split, download=False)
    except (RuntimeError, AssertionError, OSError, ValueError) as error:
        raise InputError(f"{where} cannot be opened, and nothing is downloaded here: {error}") from None
    labels = [int(label) for label in _attribute(found, "targets", "labels", "_labels")]
    samples = getattr(found, "samples", None) or getattr(found, "imgs", None)
    if samples is not None:  # files of their own
        names = [str(sample[0]) for sample in samples]
        sizes: list[Any] = [Path(name).stat().st_size for name in names]
        content = _hash(names)
    else:
        names = [f"{split}/{number}" for number in range(len(labels))]
        sizes = [hashlib.sha256(image.tobytes()).hexdigest()[:8] for image in _arrays(found.data)]
        content = _hash(sizes)
    in_order, origins = [str(each) for each in found.classes], frozenset({PurePath(content)})
    return Source(where, found.__getitem__, names, sizes, labels, in_order, origins)


def _attribute(dataset: Any, *names: str) -> Any:
    return next(getattr(dataset, name) for name in names if hasattr(dataset, name))


def _arrays(data: Any) -> Iterator[Any]:
    """The images of a dataset that holds them all in an array."""
    return iter(data.numpy() if hasattr(data, "numpy") else data)


def _open_hugging_face(name: str, data: str, split: str, classes: tuple[str, ...] | None) -> Source:
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
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{where} is not on this disk, and nothing is downloaded here: {first}") from None
    reader = found.reader
    labels = [int(label) for label in reader.iter_targets()]
    names = [f"{split}/{number}" for number in range(len(reader))]
    content = reader.dataset._fingerprint
    sizes = [content] * len(reader)
    in_order = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
    return Source(where, reader.__getitem__, names, sizes, labels, in_order, frozenset({PurePath(content)}))


@dataclass(frozen=True)
class _Member:
    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Shards:
    """Reads an image out of the middle of a tar."""

    members: list[_Member]
    labels: list[int]

    def __call__(self, number: int) -> tuple[BinaryIO, int]:
        member = self.members[number]
        with open(member.shard, "rb") as file:
            file.seek(member.offset)
            return io.BytesIO(file.read(member.size)), self.labels[number]


def _open_shards(name: str, data: str, split: str, classes: tuple[str, ...] | None) -> Source:
    """timm reads shards as a stream; listed by their tar headers, images are shuffled like any others."""
    root = Path(data)
    info = _shard_info(root)
    shards = _shards_of(root, split, info)
    members: list[_Member] = []
    names, labels = [], []
    for shard in shards:
        try:
            listed = list(_examples_of(shard))
        except (tarfile.TarError, OSError, ValueError) as error:
            raise InputError(f"shard {shard} cannot be read: {error}") from None
        for key, member, label in listed:
            members.append(member)
            names.append(f"{shard.name}/{key}")
            labels.append(label)
    known = info.get("class_names") or [str(number) for number in range(max(labels, default=-1) + 1)]
    read = _Shards(members, labels)
    sizes, origins = [each.size for each in members], frozenset(shard.resolve() for shard in shards)
    return Source(f"split {split} of {data}", read, names, sizes, labels, known, origins)


def _shard_info(root: Path) -> Mapping[str, Any]:
    for name in ("_info.json", "info.json"):
        if (root / name).is_file():
            try:
                content: dict[str, Any] = json.loads((root / name).read_bytes())
            except ValueError as error:
                raise InputError(f"{root / name} is not JSON: {error}") from None
            return content
    return {}


def _shards_of(root: Path, split: str, info: Mapping[str, Any]) -> list[Path]:
    """Those that the info file names, or all whose name has the split's in it."""
    names = next((group for group in SYNONYMS if split in group), (split,))
    for name in names:
        if name in info.get("splits", {}):
            return [root / each for each in info["splits"][name]["filenames"]]
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
    with tarfile.open(shard) as archive:
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key = folder + slash + stem
            if f".{ending.lower()}" in IMAGES_IN_SHARDS:
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
