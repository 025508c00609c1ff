"""A table as columns of formatted cells, and its plainest forms: Markdown, and CSV of what is shown.

`analysis.terminal_table` and `analysis.latex_table` set the same cells for the terminal and for LaTeX.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from analysis.csv_text import write_csv

COST_KEYS = ("params", "macs", "state", "memory", "speed", "backend")


@dataclass(frozen=True)
class Column:
    """A column: its key in a row, its heading, and whether it is a number (aligned right)."""

    key: str
    heading: str
    numeric: bool


@dataclass(frozen=True)
class Cell:
    """A formatted cell: text, a detail that a page may set below it, the raw value to sort by if a number."""

    text: str
    detail: str = ""
    value: float | None = None

    @property
    def line(self) -> str:
        """Text and detail in one line."""
        return f"{self.text} {self.detail}".rstrip()


Row = dict[str, Cell]


@dataclass(frozen=True)
class Block:
    """Some columns, and rows of their cells by the name of the group, which is "" without any."""

    columns: list[Column]
    groups: dict[str, list[tuple[str, ...]]]


@dataclass(frozen=True)
class Table:
    """Cells by column key, and what has to be said about them.

    Attributes:
        columns: in order.
        rows: of a study's arms, with the name of their case under "case".
        caption: sentences.
        warnings: likewise.
        naive_rows: of predictors that learn nothing, below the others.
        group_keys: what rows have in common, which LaTeX sets once above them; not columns of its own there.
    """

    columns: list[Column]
    rows: list[Row]
    caption: list[str]
    warnings: list[str]
    naive_rows: list[Row] = field(default_factory=list)
    group_keys: tuple[str, ...] = ()

    @property
    def all_rows(self) -> list[Row]:
        return [*self.rows, *self.naive_rows]

    def blocks(self) -> list[Block]:
        """The table for a narrow page: without what groups have in common, and costs apart from results."""
        columns = [column for column in self.columns if column.key not in self.group_keys]
        if not any(column.key == "against" for column in columns):
            return [self._block(columns, self.all_rows)]
        results = [column for column in columns if column.key not in COST_KEYS]
        costs = [results[0], *(column for column in columns if column.key in COST_KEYS)]
        return [self._block(results, self.all_rows), once(self._block(costs, self.rows))]

    def block(self, keys: Sequence[str]) -> Block:
        """Some columns of the rows that are of a study's arms."""
        columns = [next(column for column in self.columns if column.key == key) for key in keys]
        return self._block(columns, self.rows)

    def _block(self, columns: list[Column], rows: list[Row]) -> Block:
        groups: dict[str, list[tuple[str, ...]]] = {}
        for row in rows:
            group = "; ".join(row[key].line for key in self.group_keys if row[key].text)
            cells = tuple(within_group(row[column.key], group).line for column in columns)
            groups.setdefault(group, []).append(cells)
        return Block(columns, groups)


def within_group(cell: Cell, group: str) -> Cell:
    """A name without the case that all of its group are of."""
    return replace(cell, text=cell.text.removesuffix(f" @ {group}"))


def once(block: Block) -> Block:
    """Equal rows of a group once, as an arm judged twice has one price; groups that are alike once."""
    groups = {group: list(dict.fromkeys(rows)) for group, rows in block.groups.items()}
    first, *others = groups.values()
    if others and all(rows == first for rows in others):
        groups = {"": first}
    return replace(block, groups=groups)


def markdown(table: Table, title: str) -> str:
    """A Markdown file: heading, pipe table, caption, warnings."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [f"# {title}", "", line(column.heading for column in table.columns)]
    lines.append("|" + "|".join("---:" if column.numeric else ":---" for column in table.columns) + "|")
    lines += [line(row[column.key].line for column in table.columns) for row in table.all_rows]
    lines += ["", " ".join(table.caption)]
    if table.warnings:
        lines += ["", *(f"- **Note:** {warning}" for warning in table.warnings)]
    return "\n".join(lines) + "\n"


def plain_csv(table: Table) -> str:
    """The cells as they are shown, under their headings."""
    return write_csv(
        [{column.heading: row[column.key].line for column in table.columns} for row in table.all_rows]
    )
