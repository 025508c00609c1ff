"""How wide the columns of a table are, in characters, where a line has only so many."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from analysis.table import Column

NARROWEST_NAME = 8


def column_widths(columns: Sequence[Column], rows: Sequence[tuple[str, ...]], available: int) -> list[int]:
    """The width of each column; all together exceed `available` only where numbers do.

    What is too wide gives way in this order: headings are broken between words, then texts, then words.

    Args:
        columns: of the table.
        rows: their cells.
        available: characters of a line, without the gaps between columns.
    """
    headings = [column.heading for column in columns]
    widths = [max(map(len, cells)) for cells in zip(headings, *rows, strict=True)]
    if sum(widths) > available:
        words = [max(heading.split(), key=len) for heading in headings]
        widths = [max(map(len, cells)) for cells in zip(words, *rows, strict=True)]
    return _fitted(widths, columns, rows, available)


def _fitted(
    widths: list[int], columns: Sequence[Column], rows: Sequence[tuple[str, ...]], available: int
) -> list[int]:
    """Take what does not fit from the widest column of texts, a character at a time; numbers stay whole.

    Texts are broken between words before any word is.
    """
    widths = list(widths)
    words = [
        max(len(word) for cell in cells for word in textwrap.wrap(cell, 1, break_long_words=False))
        for cells in zip([column.heading for column in columns], *rows, strict=True)
    ]
    texts = [i for i, column in enumerate(columns) if not column.numeric]
    for least in (words, [NARROWEST_NAME] * len(columns)):
        while sum(widths) > available and any(widths[i] > least[i] for i in texts):
            widths[max((i for i in texts if widths[i] > least[i]), key=lambda i: widths[i])] -= 1
    return widths
