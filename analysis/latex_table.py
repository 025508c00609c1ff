"""A table as LaTeX with booktabs rules: a float, or a longtable where it has more rows than a page."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence

from analysis import quantities as q
from analysis.column_widths import column_widths
from analysis.table import Block, Column, Table

PAGE_LINES = 45
"""More lines than this, with those of the caption, do not fit on a page."""
CAPTION_LINE, FLOAT_LINE, LONG_LINE = 90, 120, 124
"""Characters on a line of 165 mm: in \\normalsize, \\footnotesize and \\scriptsize."""
GAP = 1.5
"""Between two columns, in characters."""
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "²": "$^2$",
    q.MINUS: "$-$",
    q.MISSING: "--",
    "…": r"\ldots{}",
}
BREAKS_AFTER = "_/:="


def latex(table: Table, label: str) -> str:
    """A `table*` float, or one `longtable` per block where it is longer than a page.

    The blocks of a table stand one above the other: side by side they would be too wide to read. Long texts
    are broken into lines, in columns whose widths are shares of the width of the text.
    """
    blocks = table.blocks()
    said = " ".join([*table.caption, *table.warnings])
    lines = len(said) // CAPTION_LINE + sum(map(_lines, blocks))
    write = _long if lines > PAGE_LINES else _float
    return write(blocks, rf"\caption{{{escape_latex(said)}}}\label{{tab:{_label(label)}}}")


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it; what pdflatex cannot set is replaced by the nearest ASCII, or by '?'."""
    escaped = "".join(LATEX.get(c) or (c if c.isascii() else _ascii(c)) for c in text)
    return escaped.replace(r" \%", r"~\%")  # a unit stays with its number


def _float(blocks: Sequence[Block], caption: str) -> str:
    """Shrunk where numbers alone are wider than the text."""
    tabulars = []
    for block in blocks:
        alignment, heading, body = _set(block, FLOAT_LINE)
        tabulars += [
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            heading,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\medskip",
        ]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
            r"\begin{table*}",
            r"\centering",
            caption,
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            *tabulars[:-1],
            r"\end{table*}",
            "",
        ]
    )


def _long(blocks: Sequence[Block], caption: str) -> str:
    """One longtable for each block, all under the number of the first."""
    tables = []
    for place, block in enumerate(blocks):
        alignment, heading, body = _set(block, LONG_LINE)
        head = [r"\toprule", heading, r"\midrule"]
        tables += [
            *([] if place == 0 else [r"\addtocounter{table}{-1}"]),
            rf"\begin{{longtable}}{{{alignment}}}",
            *([rf"{caption}\\"] if place == 0 else []),
            *head,
            r"\endfirsthead",
            *head,
            r"\endhead",
            r"\bottomrule",
            r"\endlastfoot",
            *body,
            r"\end{longtable}",
        ]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{longtable}, and one column of text",
            r"{\scriptsize\setlength{\tabcolsep}{3pt}\setlength{\LTcapwidth}{\textwidth}",
            *tables,
            "}",
            "",
        ]
    )


def _lines(block: Block) -> int:
    """How many lines its rows and the names of its groups take."""
    widths = _widths(block, FLOAT_LINE)
    rows = [row for group in block.groups.values() for row in group]
    return sum(map(bool, block.groups)) + sum(
        max(math.ceil(len(cell) / width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def _widths(block: Block, line: int) -> list[int]:
    """Of its columns, in characters."""
    rows = [row for group in block.groups.values() for row in group]
    return column_widths(block.columns, rows, int(line - GAP * (len(block.columns) - 1)))


def _set(block: Block, line: int) -> tuple[str, str, list[str]]:
    """The alignment of a block, its heading, and its lines with those of the groups above their rows."""
    columns = block.columns
    rows = [row for group in block.groups.values() for row in group]
    widths = _widths(block, line)
    broken = [
        not column.numeric and any(len(cell) > width for cell in cells)
        for column, width, *cells in zip(columns, widths, *rows, strict=True)
    ]
    alignment = "".join(
        rf"p{{{width / line:.3f}\textwidth}}" if lines else "r" if column.numeric else "l"
        for column, width, lines in zip(columns, widths, broken, strict=True)
    )
    body = []
    for group, members in block.groups.items():
        if group:
            body.append(
                rf"\multicolumn{{{len(columns)}}}{{@{{}}l@{{}}}}{{\emph{{{escape_latex(group)}}}}} \\*"
            )
        for row in members:
            cells = (
                _paragraph(cell) if lines else escape_latex(cell)
                for cell, lines in zip(row, broken, strict=True)
            )
            body.append(" & ".join(cells) + r" \tabularnewline")  # which \raggedright does not redefine
    heading = " & ".join(map(_heading, columns, widths)) + r" \\"
    return f"@{{}}{alignment}@{{}}", heading, body


def _heading(column: Column, width: int) -> str:
    """In lines, if it is wider than its column."""
    if len(column.heading) <= width:
        return escape_latex(column.heading)
    lines = r" \\ ".join(map(escape_latex, textwrap.wrap(column.heading, width, break_long_words=False)))
    return rf"\shortstack[{'r' if column.numeric else 'l'}]{{{lines}}}"


def _paragraph(cell: str) -> str:
    """A text that LaTeX may break at spaces, and in names after what divides them."""
    escaped = escape_latex(cell)
    for mark in map(escape_latex, BREAKS_AFTER):
        escaped = escaped.replace(mark, rf"{mark}\allowbreak{{}}")
    return rf"\raggedright {escaped}" if cell else ""


def _label(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in name)


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"
