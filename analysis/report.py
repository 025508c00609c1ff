"""Everything a study leaves behind, written in one call: tables, figures, CSV records, verdict, HTML page."""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import quantities as q
from analysis.against_published import published_table
from analysis.beside import beside
from analysis.comparison import Comparison
from analysis.latex_table import latex
from analysis.notes import differing
from analysis.page import inline_svg, render
from analysis.read_records import load_study, read_study
from analysis.record_rows import backend_name
from analysis.records import DIVERGED, OK, Json, RecordError, Study
from analysis.summary import ArmSummary, summarise
from analysis.table import Table, markdown, plain_csv
from analysis.tables import comparison_csv, comparison_table, metrics_csv, timings_csv
from analysis.terminal_table import terminal
from analysis.verdict import compare, judge, pronounce
from experiments.store import naming_unusable_folders, write_bytes
from experiments.trial import SCHEMA_VERSION

if TYPE_CHECKING:
    from analysis.drawing import Drawing

FIGURES = ("reach", "sweep", "learning_rates", "seeds", "differences", "curves", "costs")
"""In the order of the page."""
MANY = 2_000
"""Trials from which on two processes report sooner than one."""


@dataclass(frozen=True)
class StudyReport:
    """What the command line prints, and the path of each file by its name in the study folder."""

    terminal_table: str
    verdict_lines: list[str]
    comparisons: list[Comparison] = field(default_factory=list)
    paths: dict[str, Path] = field(default_factory=dict)


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Pause the garbage collector: what is read stays to the end, and looking through it takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@nothing_collected()
def write_study(study_folder: Path, trials_folder: Path, remarks: Sequence[str] = ()) -> StudyReport:
    """Read the records of a study and rewrite its tables, figures and report, each file atomically.

    The files are a function of the records and the remarks alone: no dates, no machine names, the same bytes
    every time. A plan that cannot be read leaves the folder as it is, and the report says why.

    Args:
        study_folder: with the plan; the files go there.
        trials_folder: of the records.
        remarks: sentences on what no record can tell, to stand among the notes of the table.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        study = load_study(study_folder, trials_folder)
    except RecordError as error:
        return StudyReport(terminal_table="", verdict_lines=[f"No report: {error}"])
    many = len(study.trials) >= MANY
    numbers = beside(lambda: compare(study), many)
    arms = summarise(study)

    from analysis import figures, reach, sweep

    drawings = [*filter(None, [reach.draw(study)]), *figures.draw_arms(study, arms)]
    comparisons = pronounce(numbers(), study, arms)
    compared = beside(
        lambda: [
            *sweep.draw_all(study, arms, comparisons),
            *figures.draw_comparisons(study, arms, comparisons),
        ],
        many,
    )
    table = comparison_table(study, arms, comparisons)
    table = replace(table, warnings=[*remarks, *table.warnings])
    files = _text_files(study, arms, comparisons, table)
    mixed = differing(study)
    drawings = [
        replace(drawing, caption=drawing.caption + mixed)
        for drawing in sorted([*drawings, *compared()], key=lambda drawing: FIGURES.index(drawing.name))
    ]
    for drawing in drawings:
        files |= {f"figures/{drawing.name}.{suffix}": content for suffix, content in drawing.files.items()}
    published = published_table(study, arms)
    if published is not None:
        files |= _published_files(published, study.name)
    files["report.html"] = _html(study, arms, comparisons, table, published, drawings).encode()
    with naming_unusable_folders(study_folder, "no report can be written"):
        for name, content in files.items():
            write_bytes(study_folder / name, content, durable=False)
        _remove_stale_figures(study_folder / "figures", set(files))
    return StudyReport(
        terminal(table),
        verdict_lines(study, comparisons),
        comparisons,
        {name: study_folder / name for name in files},
    )


def judge_plan(plan: Json, trials_folder: Path) -> list[Comparison]:
    """What a plan, as it would be stored, comes to; nothing is written.

    Args:
        plan: as `read_study` takes it.
        trials_folder: of the records.
    """
    study = read_study(plan, trials_folder)
    return judge(study, summarise(study))


def verdict_lines(study: Study, comparisons: list[Comparison]) -> list[str]:
    """One line per comparison, in the order of the plan; with cases, one per pair of arms."""
    if not comparisons:
        return ["No verdict: the plan compares nothing."]
    if not study.cases:
        return [comparison.sentence for comparison in comparisons]
    by_case = verdicts_by_case(study, comparisons).items()
    lines = [f"{arm} against {baseline}: {words}." for (arm, baseline), words in by_case]
    return [*lines, "Each with its interval, and what would decide the undecided: report.html."]


def verdicts_by_case(study: Study, comparisons: list[Comparison]) -> dict[tuple[str, str], str]:
    """For each pair of arms what came out where: "helps at 128 and 256; equivalent at 64"."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for comparison in comparisons:
        arm, baseline = (study.arms[name] for name in (comparison.arm, comparison.baseline))
        words = found.setdefault((arm.label, baseline.label), {})
        words.setdefault(comparison.label, []).append(str(arm.case))
    return {
        pair: "; ".join(f"{word} at {q.listing(cases)}" for word, cases in words.items())
        for pair, words in found.items()
    }


def _published_files(table: Table, name: str) -> dict[str, bytes]:
    texts = {
        "published.md": markdown(table, f"{name}: ours beside published"),
        "published.tex": latex(table, f"{name}-published"),
        "published.csv": plain_csv(table),
    }
    return {file: text.encode() for file, text in texts.items()}


def _text_files(
    study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison], table: Table
) -> dict[str, bytes]:
    texts = {
        "table.md": markdown(table, study.name),
        "table.csv": comparison_csv(arms, comparisons),
        "table.tex": latex(table, study.name),
        "metrics.csv": metrics_csv(study),
        "timings.csv": timings_csv(study),
        "verdict.json": verdict_json(study, arms, comparisons),
    }
    return {name: text.encode() for name, text in texts.items()}


def verdict_json(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> str:
    """The verdict for programs: every number behind every sentence. NaN becomes null."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "study": study.name,
        "metric": asdict(study.metric),
        "margin": study.margin,
        "alpha": study.alpha,
        "comparisons": [asdict(comparison) | {"n": comparison.n} for comparison in comparisons],
        "arms": [
            {
                "arm": arm.name,
                "test": asdict(arm.test),
                "validation": asdict(arm.validation),
                "statuses": dict(sorted(Counter(trial.status for trial in arm.arm.trials).items())),
                "rise": asdict(arm.rise) if arm.rise else None,
            }
            for arm in arms.values()
        ],
    }
    return json.dumps(_finite(record), indent=1, ensure_ascii=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _html(
    study: Study,
    arms: dict[str, ArmSummary],
    comparisons: list[Comparison],
    table: Table,
    published: Table | None,
    drawings: list[Drawing],
) -> str:
    return render(
        "report.html.j2",
        study=study,
        comparisons=comparisons,
        arms=arms,
        by_case=verdicts_by_case(study, comparisons) if study.cases else {},
        table=table,
        published=published,
        figures=[(drawing, inline_svg(drawing)) for drawing in drawings],
        conditions=_conditions(study),
        unfinished=[trial for trial in study.trials if trial.status != OK],
        shard_commands=_shard_commands(study),
        q=q,
    )


def _shard_commands(study: Study) -> list[tuple[str, int]]:
    """What runs the missing trials of each shard, and how many those are; a diverged trial is a result."""
    open_trials = [trial for trial in study.trials if trial.shard and trial.status not in (OK, DIVERGED)]
    counts = Counter({trial.trial_id: trial.shard for trial in open_trials}.values())
    return [
        (f"{study.command} --shard {shard}", n)
        for shard, n in sorted(counts.items(), key=lambda each: int(each[0].partition("/")[0]))
    ]


def _conditions(study: Study) -> list[tuple[str, str]]:
    """How it was run, as (what, value) rows; a value that differs between trials is shown with its counts."""
    facts: dict[str, Counter[str]] = {}
    for trial in (trial for trial in study.trials if trial.result):
        data = trial.result.get("data") or {}
        examples = ", ".join(f"{data[k]:,} {k}" for k in ("train", "validation", "test") if k in data)
        found = [*chain.from_iterable(map(_machine, trial.sessions)), ("examples", examples)]
        for what in dict.fromkeys(what for what, _ in found):
            values = {str(value) for name, value in found if name == what and value not in (None, "")}
            if values:
                facts.setdefault(what, Counter())[" and ".join(sorted(values))] += 1
    return [(what, _tally(values)) for what, values in facts.items()]


def _machine(session: Json) -> list[tuple[str, object]]:
    """What one session of a trial ran with, as (what, value) rows."""
    versions = sorted((session.get("versions") or {}).items())
    return [
        *((name, session.get(name)) for name in ("device", "hardware", "threads")),
        ("backend", backend_name(session)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions)),
        ("code", session.get("code")),
    ]


def _tally(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({q.plural(n, 'trial')})" for value, n in sorted(values.items()))


def _remove_stale_figures(folder: Path, written: set[str]) -> None:
    """A figure that these records no longer support must not stand beside the others."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.stem in FIGURES and f"figures/{path.name}" not in written:
            path.unlink()
