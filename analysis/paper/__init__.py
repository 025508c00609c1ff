"""MambaOut's figures and tables again, ours beside theirs, in one folder with an index page.

Published numbers come from `analysis.published`, ours from the records of a runs folder and from those that
are checked in. Nothing here needs torch.

    <folder>/index.html             figures, tables, sources
    <folder>/figures/NAME.{png,svg,pdf,csv}
    <folder>/tables/NAME.{md,csv,tex}
    <folder>/published/NAME.csv     the published rows that figures and tables point to
    <folder>/studies/NAME.csv       our rows
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import published
from analysis import quantities as q
from analysis.latex_table import latex
from analysis.page import inline_svg, render
from analysis.paper.ours import CHECKED_IN, OurStudy, find_studies
from analysis.paper.tables import PaperTable, all_tables
from analysis.records import Json
from analysis.table import markdown, plain_csv
from analysis.tables import comparison_csv
from experiments.store import write_bytes

if TYPE_CHECKING:
    from analysis.drawing import Drawing

DECODING = ("mixer", "context", "microseconds_per_token", "state_bytes", "machine")
MEASURED = DECODING[1:4]


@dataclass(frozen=True)
class PaperReport:
    """The index page, how much there is, and what had to be left out."""

    index: Path
    figures: int
    tables: int
    studies: tuple[str, ...]
    notes: tuple[str, ...]


def write_paper(folder: Path, runs: Path) -> PaperReport:
    """Write every figure and table, each file atomically; the same records give the same bytes.

    Args:
        folder: where to.
        runs: a runs folder whose studies stand beside the published numbers, before those checked in.

    Raises:
        PublishedError: a published table is damaged.
    """
    from analysis.paper import figures

    studies, notes = find_studies([runs, CHECKED_IN])
    drawings = figures.draw_all(studies, _decoding(runs, notes))
    found = all_tables(studies)
    files = {
        f"figures/{drawing.name}.{suffix}": content
        for drawing in drawings
        for suffix, content in drawing.files.items()
    }
    for entry in found:
        files |= {f"tables/{entry.name}.{suffix}": text.encode() for suffix, text in _texts(entry).items()}
    for name in published.names():
        files[f"published/{name}.csv"] = (published.FOLDER / f"{name}.csv").read_bytes()
    for ours in studies:
        text = comparison_csv(ours.arms, ours.comparisons)
        files[f"studies/{ours.study.name}.csv"] = text.encode()
    files["index.html"] = _html(studies, drawings, found, notes).encode()
    for name, content in files.items():
        write_bytes(folder / name, content, durable=False)
    names = tuple(ours.study.name for ours in studies)
    return PaperReport(folder / "index.html", len(drawings), len(found), names, tuple(notes))


def _texts(entry: PaperTable) -> dict[str, str]:
    table, label = entry.table, f"paper-{entry.name.replace('_', '-')}"
    return {
        "md": markdown(table, entry.title),
        "csv": plain_csv(table),
        "tex": latex(table, label),
    }


def _decoding(runs: Path, notes: list[str]) -> list[Json]:
    """The measurements of benchmarks/decoding.py that can be drawn: the user's own if there are any.

    Lines without a number where one belongs are left out and named in the notes, as is a file of mixers that
    carry nothing.
    """
    for folder in (runs, CHECKED_IN):
        path = folder / "decoding.csv"
        if not path.is_file():
            continue
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(DECODING) - set(reader.fieldnames or ())
            rows = list(reader) if not missing else []
        if missing:
            notes.append(f"{path.name} is left out: it lacks the columns {', '.join(sorted(missing))}")
            continue
        damaged = [str(line) for line, row in enumerate(rows, start=2) if not _measured(row)]
        if damaged:
            lines = f"{'line' if len(damaged) == 1 else 'lines'} {q.listing(damaged)}"
            notes.append(f"{path.name}: {lines} left out: no positive number in {q.listing(MEASURED, 'or')}")
        carrying = [row for row in rows if _measured(row) and float(row["state_bytes"]) > 0]
        if not carrying:
            notes.append(f"{path.name}: no mixer in it carries anything, so Figure 2 is left out")
        return carrying
    return []


def _measured(row: Json) -> bool:
    """Whether a line of decoding.csv has its numbers; bytes may be zero."""
    try:
        numbers = {name: float(row[name]) for name in MEASURED}
    except (TypeError, ValueError):
        return False
    least = min(numbers["context"], numbers["microseconds_per_token"])
    return all(map(math.isfinite, numbers.values())) and least > 0 and numbers["state_bytes"] >= 0


def _html(
    studies: Sequence[OurStudy],
    drawings: Sequence[Drawing],
    found: Sequence[PaperTable],
    notes: Sequence[str],
) -> str:
    return render(
        "paper.html.j2",
        figures=[(drawing, inline_svg(drawing)) for drawing in drawings],
        tables=found,
        studies=studies,
        sources=[published.load(name) for name in published.names()],
        notes=notes,
    )
