"""A comparison table as terminal text, within a width.

The columns are split into two blocks, results and costs, the rows by case, and names are broken into lines.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from analysis import quantities as q
from analysis.table import COST_KEYS, Cell, Column, Table

TERMINAL_WIDTH = 100  # where none is told
WIDEST = 120
NARROWEST_NAME = 8
RESULT_KEYS = ("arm", "metric", "against", "difference", "p", "verdict")
BROKEN = ("arm", "against", "verdict", "backend")  # into lines, where the terminal is too narrow


def terminal_width() -> int:
    """Of the terminal, as far as lines of that width can be read."""
    return min(WIDEST, shutil.get_terminal_size((TERMINAL_WIDTH, 24)).columns)


def terminal(table: Table, width: int | None = None) -> str:
    """Two plain-text blocks (results, costs), the naive baselines and the caption.

    Args:
        table: of a study.
        width: of the lines, which only numbers exceed; by default the terminal's.
    """
    width = width or terminal_width()
    blocks = [RESULT_KEYS, ("arm", *COST_KEYS)]
    texts = ["\n".join(_text_block(table, keys, width)) for keys in blocks]
    if table.naive_rows:
        texts.insert(1, "\n".join(_wrapped(_naive_line(table), width)))
    remarks = [line for warning in table.warnings for line in _wrapped(f"! {warning}", width)]
    texts += ["\n".join(lines) for lines in (remarks, _wrapped(" ".join(table.caption), width)) if lines]
    return "\n\n".join(texts) + "\n"


def _naive_line(table: Table) -> str:
    """What predictors that learn nothing reach, and in which cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in table.naive_rows:
        cases.setdefault((_within_case(row, "arm"), row["metric"].text), []).append(row["case"].text)
    said = [
        f"{name} {value}" + (f" at {q.listing(where)}" if any(where) else "")
        for (name, value), where in cases.items()
    ]
    return f"naive baselines: {'; '.join(said)}"


def _text_block(table: Table, keys: Sequence[str], width: int) -> list[str]:
    columns = [next(column for column in table.columns if column.key == key) for key in keys]
    groups = _by_case(table, keys)
    rows = [row for group in groups.values() for row in group]
    available = width - 2 * (len(columns) - 1)
    widths = [max(map(len, [column.heading, *cells])) for column, *cells in zip(columns, *rows, strict=True)]
    if sum(widths) > available:  # break the headings
        widths = [
            max(map(len, [*column.heading.split(), *cells]))
            for column, *cells in zip(columns, *rows, strict=True)
        ]
    widths = _fitted(widths, columns, rows, available)
    headings = [textwrap.wrap(column.heading, w) for column, w in zip(columns, widths, strict=True)]
    tallest = max(map(len, headings))
    lines = _laid_out([[""] * (tallest - len(each)) + each for each in headings], widths, columns)
    lines.append("  ".join("-" * w for w in widths))
    for case, group in groups.items():
        lines += [f"@ {case}"] if case else []
        for row in group:
            cells = [_lines_of(cell, w) for cell, w in zip(row, widths, strict=True)]
            lines += _laid_out(cells, widths, columns)
    return lines


def _by_case(table: Table, keys: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """The cells of the arms by case; under "" where there are no cases, or where they differ in nothing.

    An arm judged against two baselines still has only one price.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in table.rows:
        cells = tuple(_within_case(row, key) if key in ("arm", "against") else row[key].line for key in keys)
        group = groups.setdefault(row["case"].text, [])
        if "against" in keys or cells not in group:
            group.append(cells)
    first, *others = groups.values()
    return {"": first} if others and all(group == first for group in others) else groups


def _within_case(row: dict[str, Cell], key: str) -> str:
    """A name without the case that its row is of."""
    return row[key].text.removesuffix(f" @ {row['case'].text}")


def _fitted(
    widths: list[int], columns: list[Column], rows: Sequence[tuple[str, ...]], available: int
) -> list[int]:
    """Take what does not fit from the widest column of names, a character at a time; numbers stay whole.

    Names are broken between words before any word is.
    """
    widths = list(widths)
    words = [
        max(len(word) for cell in cells for word in textwrap.wrap(cell, 1, break_long_words=False))
        for cells in zip([column.heading for column in columns], *rows, strict=True)
    ]
    names = [i for i, column in enumerate(columns) if column.key in BROKEN]
    for least in (words, [NARROWEST_NAME] * len(columns)):
        while sum(widths) > available and any(widths[i] > least[i] for i in names):
            widths[max((i for i in names if widths[i] > least[i]), key=lambda i: widths[i])] -= 1
    return widths


def _lines_of(cell: str, width: int) -> list[str]:
    """A cell as it is, or in lines."""
    return [cell] if len(cell) <= width else textwrap.wrap(cell, width)


def _laid_out(cells: Sequence[list[str]], widths: Sequence[int], columns: Sequence[Column]) -> list[str]:
    """Cells of several lines side by side."""
    return [
        "  ".join(
            line.rjust(width) if column.numeric else line.ljust(width)
            for line, width, column in zip(lines, widths, columns, strict=True)
        ).rstrip()
        for lines in zip_longest(*cells, fillvalue="")
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent="  " if text.startswith("! ") else "", break_on_hyphens=False
    )
