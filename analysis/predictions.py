"""What was answered to every example of a test split, read from `predictions.npz`."""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from analysis.records import Trial

STORED = "predictions.npz"


def load_predictions(trial: Trial, names: tuple[str, ...]) -> dict[str, NDArray[Any]] | None:
    """The named arrays of a trial's test predictions; None if they are not stored or not readable."""
    if trial.own_metric:
        return None
    try:
        stored = (trial.folder / STORED).read_bytes()
        with ZipFile(io.BytesIO(stored)) as archive:
            return {name: _array(_member(archive, stored, f"{name}.npy")) for name in names}
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, struct.error, zlib.error):
        return None


def _member(archive: ZipFile, stored: bytes, name: str) -> bytes:
    """What `archive.read` gives, in half the time: zlib is told the size.

    Raises:
        KeyError: there is no such member.
        BadZipFile, zlib.error: it is damaged.
    """
    info = archive.getinfo(name)
    if info.compress_type != ZIP_DEFLATED:
        return archive.read(info)
    name_length, extra_length = struct.unpack_from("<HH", stored, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length  # behind the local header
    content = zlib.decompress(stored[start : start + info.compress_size], -zlib.MAX_WBITS, info.file_size)
    if zlib.crc32(content) != info.CRC:
        raise BadZipFile(f"{name} is damaged")
    return content


def _array(npy: bytes) -> NDArray[Any]:
    """What `np.load` makes of it, in half the time: the trials of a study share their headers."""
    data = 10 + int.from_bytes(npy[8:10], "little")
    shape, fortran_order, dtype = _npy_header(npy[:data])
    return np.frombuffer(npy, dtype, offset=data).reshape(shape, order="F" if fortran_order else "C")


@lru_cache
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array behind the header of an .npy file, format 1.0.

    Raises:
        ValueError: it is no such header.
    """
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):  # others are for headers beyond 64 KiB
        raise ValueError("not in format 1.0")
    return np.lib.format.read_array_header_1_0(file)
