"""A table as LaTeX with booktabs rules, and any text escaped for it."""

from __future__ import annotations

import unicodedata

from analysis import quantities as q
from analysis.table import COST_KEYS, Column, Table

LONG_TEXT = 60  # characters of a cell, from which on LaTeX breaks it into lines

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


def latex(table: Table, label: str) -> str:
    """A `table*` float with booktabs rules; needs \\usepackage{booktabs} and \\usepackage{graphicx}.

    Results and costs of a study stand one above the other: side by side they would be too small to read.
    """
    costs = [column for column in table.columns if column.key in COST_KEYS]
    results = [column for column in table.columns if column.key not in COST_KEYS]
    blocks = [results, [results[0], *costs]] if costs else [results]
    caption = " ".join([*table.caption, *table.warnings])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{tab:{_label(label)}}}",
            "\n\\par\\medskip\n".join(_tabular(table, columns) for columns in blocks),
            r"\end{table*}",
            "",
        ]
    )


def _tabular(table: Table, columns: list[Column]) -> str:
    """Some columns of a table, shrunk if they are wider than the page; equal rows once."""
    rows = dict.fromkeys(tuple(row[column.key].line for column in columns) for row in table.all_rows)
    alignment = latex_alignment(table, columns, 0.35)
    return "\n".join(
        [
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{\small",
            rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
            r"\toprule",
            " & ".join(escape_latex(column.heading) for column in columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(escape_latex, row)) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    )


def latex_alignment(table: Table, columns: list[Column], width: float) -> str:
    """The letters of a `tabular`: numbers to the right, long texts in paragraphs.

    Args:
        table: with the texts.
        columns: of them, those to be set.
        width: of a paragraph, as a share of the width of the text.
    """
    longest = {
        column.key: max((len(row[column.key].line) for row in table.all_rows), default=0)
        for column in columns
    }
    paragraph = rf"p{{{width}\textwidth}}"
    return "".join(
        "r" if column.numeric else paragraph if longest[column.key] > LONG_TEXT else "l" for column in columns
    )


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it; what pdflatex cannot set is replaced by the nearest ASCII, or by '?'."""
    escaped = "".join(LATEX.get(c) or (c if c.isascii() else _ascii(c)) for c in text)
    return escaped.replace(r" \%", r"~\%")  # a unit stays with its number


def _label(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in name)


def _ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"
