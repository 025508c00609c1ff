"""A table as columns of formatted cells, and its plainest forms: Markdown, and CSV of what is shown.

`analysis.terminal_table` and `analysis.latex_table` set the same cells for the terminal and for LaTeX.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Table:
    """Cells by column key, and what has to be said about them.

    Attributes:
        columns: in order.
        rows: of a study's arms, with the name of their case under "case".
        caption: sentences.
        warnings: likewise.
        naive_rows: of predictors that learn nothing, below the others.
    """

    columns: list[Column]
    rows: list[dict[str, Cell]]
    caption: list[str]
    warnings: list[str]
    naive_rows: list[dict[str, Cell]] = field(default_factory=list)

    @property
    def all_rows(self) -> list[dict[str, Cell]]:
        return [*self.rows, *self.naive_rows]


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
