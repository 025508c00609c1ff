"""A table in LaTeX: escaped, within the width and the length of a page, with every row."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.latex_table import PAGE_LINES, escape_latex, latex
from analysis.table import COST_KEYS, Cell, Column, Table

STRANGE = r"x_y^2 & 50% $a$ #1 {z} ~ \m <é試…"
LONG = "ssm(d_state=16, expand=2, scan=bidirectional, dt_rank=auto)"
NUMBERS = ("difference", "params", "macs", "state", "memory", "speed")
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def row(arm: str, case: str = "", **cells: str) -> dict[str, Cell]:
    empty = {key: Cell("–") for key in ("against", "difference", *COST_KEYS)}
    given = {key: Cell(text) for key, text in cells.items()}
    return empty | {"case": Cell(case), "arm": Cell(f"{arm} @ {case}" if case else arm)} | given


def comparison(rows: Sequence[dict[str, Cell]]) -> Table:
    """A table of a study, with results and costs."""
    keys = ("arm", "against", "difference", *COST_KEYS)
    columns = [Column(key, key, key in NUMBERS) for key in keys]
    return Table(columns, list(rows), ["A caption."], [], group_keys=("case",))


def body_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.endswith(r"\tabularnewline")]


def test_it_is_balanced_and_escaped() -> None:
    text = latex(comparison([row("ssm_100%"), row("conv")]), "demo_study")
    opened, closed = re.findall(r"\\begin{(.+?)}", text), re.findall(r"\\end{(.+?)}", text)
    assert opened == ["table*", "tabular", "tabular"]
    assert closed == ["tabular", "tabular", "table*"]
    assert sorted({line.count("&") + 1 for line in body_rows(text)}) == [3, 1 + len(COST_KEYS)]
    assert r"ssm\_100\%" in text
    assert text.isascii()
    assert not re.search(r"(?<!\\)[_#]", text.replace("tab:demo-study", ""))


def test_an_arm_judged_twice_has_one_price() -> None:
    twice = [row("ssm", against=baseline, params="5") for baseline in ("conv", "attention")]
    rows = body_rows(latex(comparison(twice), "label"))
    assert [line.count("&") for line in rows] == [2, 2, len(COST_KEYS)]


def test_equal_rows_of_another_table_stay() -> None:
    columns = [Column("what", "what", False), Column("memory", "memory", True)]
    rows = [{"what": Cell("conv"), "memory": Cell("5")} for _ in range(3)]
    text = latex(Table(columns, rows, [], []), "label")
    assert text.count(r"\begin{tabular}") == 1, "it is no comparison with costs to set apart"
    assert len(body_rows(text)) == 3


def test_a_case_stands_once_above_its_arms() -> None:
    rows = [row(arm, case, params=case) for case in ("32", "64") for arm in ("conv", "ssm")]
    text = latex(comparison(rows), "label")
    assert text.count(r"{\emph{32}}") == text.count(r"{\emph{64}}") == 2  # results and costs
    assert [line.partition(" &")[0] for line in body_rows(text)] == ["conv", "ssm"] * 4


def test_what_is_longer_than_a_page_goes_on_on_the_next() -> None:
    rows = [row(f"arm {place}") for place in range(PAGE_LINES // 2 - 1)]
    assert latex(comparison(rows), "label").count(r"\begin{table*}") == 1
    text = latex(comparison([*rows, row("one"), row("more")]), "label")
    assert text.count(r"\begin{longtable}") == 2
    assert text.count(r"\caption") == 1


def test_long_texts_count_by_their_lines() -> None:
    rows = [{"what": Cell(" ".join(["word"] * 200))} for _ in range(PAGE_LINES // 4)]
    assert r"\begin{longtable}{@{}p{" in latex(Table([Column("what", "what", False)], rows, [], []), "label")


def test_a_long_text_is_broken_and_a_number_is_not() -> None:
    columns = [Column("n", 150 * "8", True), Column("what", "what", False)]
    rows = [{"what": Cell("studies/of_names " * 10), "n": Cell("+1.00 [+0.40, +2.24]")}]
    text = latex(Table(columns, rows, [], []), "label")
    assert re.search(r"{@{}rp{0\.\d+\\textwidth}@{}}", text)
    assert r"\raggedright studies/\allowbreak{}of\_\allowbreak{}names" in text


def test_latex_escapes_every_special_character() -> None:
    assert escape_latex("a_b & 5% $x #1 {y} ~^\\") == (
        r"a\_b \& 5\% \$x \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape_latex("−1 ± 2 × 3 – é 試") == r"$-$1 $\pm$ 2 $\times$ 3 -- e ?"
    assert escape_latex("24 D² L") == "24 D$^2$ L"


@needs_latex
@pytest.mark.parametrize("count", [2, PAGE_LINES])
def test_it_compiles_within_the_width(count: int, tmp_path: Path) -> None:
    costs = {"params": "41.9 k (20.2 k + 21.7 k)", "memory": "286 MiB", "backend": "conv: cuda, scan: triton"}
    rows = [row(name, against=LONG, difference="+1.88 [+1.36, +2.39]", **costs) for name in (STRANGE, LONG)]
    table = comparison(rows * (count // 2))
    packages = "".join(rf"\usepackage{{{name}}}" for name in ("booktabs", "graphicx", "longtable"))
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}{packages}\setlength{{\textwidth}}{{165mm}}\begin{{document}}"
        f"\n{latex(table, 'demo_study')}\n"
        r"\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for _ in range(2):  # longtable learns its widths from the run before
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    assert not re.search(r"Overfull|Float too large", said), said[-2000:]
