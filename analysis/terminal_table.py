"""A comparison table as terminal text, within a width.

The columns are split into two blocks, results and costs, the rows by case, and names are broken into lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from analysis import quantities as q
from analysis.column_widths import column_widths
from analysis.table import COST_KEYS, Block, Column, Table, once, within_group
from analysis.terminal_lines import fit, terminal_width

RESULT_KEYS = ("arm", "metric", "against", "difference", "p", "verdict")


def terminal(table: Table, width: int | None = None) -> str:
    """Two plain-text blocks (results, costs), the naive baselines and the caption.

    Args:
        table: of a study.
        width: of the lines, which only numbers exceed; by default the terminal's.
    """
    width = width or terminal_width()
    blocks = [table.block(keys) for keys in (RESULT_KEYS, ("arm", *COST_KEYS))]
    texts = ["\n".join(_text_block(once(block), width)) for block in blocks]
    if table.naive_rows:
        texts.insert(1, fit(_naive_line(table), width))
    remarks = "\n".join(f"! {warning}" for warning in table.warnings)
    texts += [fit(text, width) for text in (remarks, " ".join(table.caption)) if text]
    return "\n\n".join(texts)


def _naive_line(table: Table) -> str:
    """What predictors that learn nothing reach, and in which cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in table.naive_rows:
        case = row["case"].text
        cases.setdefault((within_group(row["arm"], case).text, row["metric"].text), []).append(case)
    said = [
        f"{name} {value}" + (f" at {q.listing(where)}" if any(where) else "")
        for (name, value), where in cases.items()
    ]
    return f"naive baselines: {'; '.join(said)}"


def _text_block(block: Block, width: int) -> list[str]:
    columns = block.columns
    rows = [row for group in block.groups.values() for row in group]
    widths = column_widths(columns, rows, width - 2 * (len(columns) - 1))
    headings = [textwrap.wrap(column.heading, w) for column, w in zip(columns, widths, strict=True)]
    tallest = max(map(len, headings))
    lines = _laid_out([[""] * (tallest - len(each)) + each for each in headings], widths, columns)
    lines.append("  ".join("-" * w for w in widths))
    for case, group in block.groups.items():
        lines += [f"@ {case}"] if case else []
        for row in group:
            cells = [_lines_of(cell, w) for cell, w in zip(row, widths, strict=True)]
            lines += _laid_out(cells, widths, columns)
    return lines


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
