"""What lies in a folder or a tar of class folders: images in timm's order, each in the folder of its class.

The order is timm's, on which the number of an image depends. What timm passes over in silence, or labels by
a folder that need not be its class, is an `InputError` here.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any, NoReturn

from mixers.registry import InputError

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".webp", ".avif", ".heic"),
    *(".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
"""Of files that are images. One that this Pillow cannot decode is named when it is read, not passed over."""


def shown(name: object) -> str:
    """A file's name for a message; bytes that are no UTF-8, which no log takes, as backslash and number."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)  # ImageNet has 1.3 million: no path is made of each


def natural_key(name: str) -> Any:
    """By which timm sorts: numbers in names by their value."""
    from timm.utils.misc import natural_key  # not on top: coco and ade20k have no need of timm

    return natural_key(name)


def image_paths(root: Path) -> list[str]:
    """All images below a folder, through symbolic links.

    Raises:
        InputError: a folder cannot be listed, or is reached twice, as by a link to one above it.
    """
    paths: list[str] = []
    reached: dict[str, str] = {}
    for folder, _, files in os.walk(root, followlinks=True, onerror=_refuse):
        first = reached.setdefault(os.path.realpath(folder), folder)
        if first != folder:
            raise InputError(
                f"{shown(folder)} is {shown(first)} again, by a link: its images would count twice"
            )
        paths += (f"{folder}{os.sep}{name}" for name in files if is_image(name))
    return sorted(paths, key=natural_key)


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{shown(error.filename)} cannot be listed: {error.strerror}")


def file_sizes(paths: Sequence[str]) -> list[int]:
    """In bytes.

    Raises:
        InputError: a file is not there, which a link may lead to.
    """
    return [_size(path) for path in paths]


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}") from None


def file_origins(paths: Sequence[str]) -> frozenset[PurePath]:
    """Where images really lie: the file that a link leads to, or the folder, all of which is listed.

    Raises:
        InputError: two paths lead to one file.
    """
    folders = {folder: os.path.realpath(folder) for folder in set(map(_folder, paths))}
    origins: set[str] = set()
    reached: dict[str, str] = {}
    for path in paths:
        linked = Path(path).is_symlink()
        folder = folders[_folder(path)]
        real = os.path.realpath(path) if linked else folder + path[len(_folder(path)) :]
        if real in reached:
            raise InputError(
                f"{shown(path)} is {shown(reached[real])} again, by a link: it would count twice"
            )
        reached[real] = path
        origins.add(real if linked else folder)
    return frozenset(map(PurePath, origins))


def _folder(path: str) -> str:
    return path.rpartition(os.sep)[0]


def class_of_each(where: str, names: Sequence[str]) -> list[str]:
    """The class folder of every image. All class folders lie side by side.

    Where they do not, timm takes the innermost folder for the class and torchvision the outermost.

    Raises:
        InputError: an image lies in no class folder, in a hidden one, or in one elsewhere.
    """
    check_not_hidden(where, names)
    folders = {folder: PurePath(folder) for folder in dict.fromkeys(map(_folder, names))}
    around = Counter(folder.parent for folder in folders.values() if folder.name).most_common(1)
    apart = {folder for folder, path in folders.items() if not path.name or path.parent != around[0][0]}
    if apart:
        name = next(name for name in names if _folder(name) in apart)
        if not folders[_folder(name)].name:
            raise InputError(f"{where}: {shown(name)} lies in no class folder; move it into one or remove it")
        other = next(name for name in names if _folder(name) not in apart)
        raise InputError(
            f"{where}: {shown(name)} and {shown(other)} do not lie in class folders side by side, so that "
            "which folder is the class cannot be told; --task.dataset torch/image_folder takes the outermost"
        )
    return [folders[_folder(name)].name for name in names]


def check_not_hidden(where: str, names: Sequence[str]) -> None:
    """What editors and systems keep in hidden folders are copies, and such a folder is no class.

    Raises:
        InputError: naming an image in one.
    """
    hidden = {folder for folder in set(map(_folder, names)) if any(map(_is_hidden, PurePath(folder).parts))}
    if hidden:
        name = next(name for name in names if _folder(name) in hidden)
        raise InputError(f"{where}: {shown(name)} lies in a hidden folder; remove that")


def _is_hidden(part: str) -> bool:
    return part.startswith(".")


# ------------------------------------------------------------------------ tars


@dataclass(frozen=True)
class Member:
    """An image in a tar.

    Attributes:
        name: its own, in the tar that it lies in directly.
        class_path: with the folder of its class, which may be a tar inside the tar: `n01440764.tar`.
        offset: of its bytes in the file.
        size: in bytes.
    """

    name: str
    class_path: str
    offset: int
    size: int


def tar_members(root: Path) -> list[Member]:
    """All images in a tar, those in tars inside it too.

    Raises:
        InputError: it is no tar, it is cut off, or an image in it is a link.
    """
    try:
        with tarfile.open(root, "r:") as archive:  # compressed, it has no offsets to read at
            return sorted(_members(archive), key=lambda member: natural_key(member.name))
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shown(root)} holds no images that can be listed: {error}") from None


def _members(archive: tarfile.TarFile, inside: str = "", start: int = 0) -> Iterator[Member]:
    for member in archive:
        offset = start + member.offset_data
        if member.isfile() and member.name.lower().endswith(".tar"):
            with tarfile.open(fileobj=_contents(archive, member), mode="r:") as inner:
                yield from _members(inner, PurePath(member.name).stem, offset)
        elif is_image(member.name) and member.isfile():
            alone = not PurePath(member.name).parent.name
            class_path = f"{inside}/{member.name}" if alone else member.name
            yield Member(member.name, class_path, offset, member.size)
        elif is_image(member.name) and not member.isdir():
            raise InputError(
                f"{shown(archive.name or inside)}: {shown(member.name)} is a link or no file; pack it with "
                "tar --dereference --hard-dereference"
            )


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    contents = archive.extractfile(member)
    assert contents is not None, "only files are asked for"
    return contents
