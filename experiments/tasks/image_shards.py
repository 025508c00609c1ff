"""The shards of a webdataset, listed by their tar headers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.tasks.image_listing import ENDINGS
from experiments.tasks.image_source import SYNONYMS, WHOLE, Member, Source, TarMembers
from mixers.registry import InputError


def open_shards(name: str, data: str, split: str) -> Source:
    """timm reads shards as a stream; listed by their tar headers, images are shuffled like any others."""
    root = Path(data)
    info = _shard_info(root)
    shards = _shards_of(root, split, info)
    members: list[Member] = []
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
    read = TarMembers(members)
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


def _examples_of(shard: Path) -> Iterator[tuple[str, Member, int]]:
    """Key, image and label of what a shard holds; the members of one example share their key.

    A key ends at the first dot of the file's own name, as in webdataset: folders may have dots too.
    """
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    with tarfile.open(shard, "r:") as archive:  # compressed, it has no offsets to read at
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key = folder + slash + stem
            if f".{ending.lower()}" in ENDINGS:
                images[key] = Member(str(shard), member.offset_data, member.size)
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
