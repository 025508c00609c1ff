"""Numbers from papers, one CSV per published table, each with its source and its convention.

`sources.toml` says of every table where it comes from and what its columns are; `effects.toml` names pairs of
rows whose difference is what an ingredient was worth. Nothing here was measured by this project, and a
value keeps the line of the file that it was read from, so that any figure can be traced back to it.
"""

from __future__ import annotations

import csv
import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent

Value = str | float | None


class PublishedError(ValueError):
    """A table that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Row:
    """One row of a published table: its cells by column, as values and as written, and its line."""

    table: str
    line: int
    cells: dict[str, Value]
    written: dict[str, str]

    @property
    def origin(self) -> str:
        """Where to look it up: ``mambaout_table1_imagenet.csv:15``."""
        return f"{self.table}.csv:{self.line}"

    def text(self, column: str) -> str:
        """A cell as it is written in the file: ``83.0`` keeps its zero."""
        return self.written[column]

    def number(self, column: str) -> float:
        """A number; NaN where the source gives none.

        Raises:
            PublishedError: the column holds words.
        """
        value = self.cells[column]
        if isinstance(value, str):
            raise PublishedError(f"{self.origin}: {column} is {value!r}, not a number")
        return math.nan if value is None else value


@dataclass(frozen=True)
class PublishedTable:
    """A table as its paper gives it."""

    name: str
    source: str
    convention: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def find(self, **cells: Value) -> Row:
        """The one row with these cells.

        Raises:
            PublishedError: none or several have them.
        """
        found = [row for row in self.rows if all(row.cells[name] == cells[name] for name in cells)]
        if len(found) != 1:
            raise PublishedError(f"{self.name}.csv: {len(found)} rows have {cells}, not one")
        return found[0]


@dataclass(frozen=True)
class Effect:
    """What an ingredient was worth in one paper: a difference of two rows, in points."""

    component: str
    paper: str
    before: Row
    after: Row
    column: str

    @property
    def points(self) -> float:
        return self.after.number(self.column) - self.before.number(self.column)


def names(folder: Path = FOLDER) -> list[str]:
    """The tables that there are."""
    return sorted(_sources(folder))


@cache
def load(name: str, folder: Path = FOLDER) -> PublishedTable:
    """Read and check one table.

    Raises:
        PublishedError: no such table or file, a header that `sources.toml` does not describe, a cell that is
            no number where one belongs, a percentage outside of 0 to 100, or two rows with the same key.
    """
    sources = _sources(folder)
    if name not in sources:
        raise PublishedError(f"{name}: not among the published tables ({', '.join(sorted(sources))})")
    about, path = sources[name], folder / f"{name}.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file))
    except (OSError, ValueError) as error:
        raise PublishedError(f"{path.name}: cannot be read: {error}") from error
    unknown = {*about["text"], *about["key"]} - set(header)
    if unknown:
        raise PublishedError(
            f"{path.name}: sources.toml names columns it lacks: {', '.join(sorted(unknown))}"
        )
    rows = tuple(_row(name, line, header, cells, about["text"]) for line, cells in enumerate(lines, start=2))
    _check_keys(rows, about["key"])
    return PublishedTable(name, about["source"], about["convention"], tuple(header), rows)


@cache
def effects() -> tuple[Effect, ...]:
    """The differences named in `effects.toml`, in its order."""
    with open(FOLDER / "effects.toml", "rb") as file:
        entries = tomllib.load(file)["effects"]
    found = []
    for entry in entries:
        table = load(entry["table"])
        before, after = (table.find(**entry[side]) for side in ("from", "to"))
        found.append(Effect(entry["component"], entry["paper"], before, after, entry["column"]))
    return tuple(found)


@cache
def _sources(folder: Path) -> dict[str, dict]:
    with open(folder / "sources.toml", "rb") as file:
        return tomllib.load(file)


def _row(table: str, line: int, header: list[str], cells: list[str], text: list[str]) -> Row:
    if len(cells) != len(header):
        raise PublishedError(f"{table}.csv:{line}: {len(cells)} cells under {len(header)} columns")
    values = {
        column: cell or None if column in text else _number(cell, column, f"{table}.csv:{line}")
        for column, cell in zip(header, cells, strict=True)
    }
    return Row(table, line, values, dict(zip(header, cells, strict=True)))


PERCENTAGES = ("top1", "top5", "AP", "mIoU", "ade_", "OBJ_")
"""Columns with one of these in the name are percentages."""


def _number(cell: str, column: str, where: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        raise PublishedError(f"{where}: {column} is {cell!r}, not a number") from None
    limit = 100.0 if any(part in column for part in PERCENTAGES) else math.inf
    if not 0 <= value <= limit:
        raise PublishedError(f"{where}: {column} is {cell}, outside of 0 to {limit:g}")
    return value


def _check_keys(rows: tuple[Row, ...], key: list[str]) -> None:
    seen: dict[tuple[Value, ...], Row] = {}
    for row in rows:
        identity = tuple(row.cells[name] for name in key)
        if identity in seen:
            raise PublishedError(f"{row.origin}: has the same {', '.join(key)} as line {seen[identity].line}")
        seen[identity] = row
