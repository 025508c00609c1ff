"""The comparison table: one set of cells, written as terminal text, Markdown, LaTeX and CSV.

Each arm has one row per comparison it is judged in, and one row if it is only a baseline. Accuracy and cost
stand in the same row, because a difference without its price is half an answer. The terminal version splits
the columns into two blocks and the rows by case, and breaks names into lines, to stay within its width.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import textwrap
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest

from analysis import quantities as q
from analysis.records import Json, NaiveBaseline, Study, timing_row, trial_row
from analysis.sampling import TestSets
from analysis.statistics import Estimate
from analysis.summary import ArmSummary, notes, warnings
from analysis.verdict import Comparison, margin_set, planned_looks, settled_late

TERMINAL_WIDTH = 100  # where none is told
WIDEST = 120
NARROWEST_NAME = 8
MOST_PLACES = 3  # tasks, skeletons and budgets that a caption names

RESULT_KEYS = ("arm", "metric", "against", "difference", "p", "verdict")
NO_COMPARISON: tuple[Comparison | None, ...] = (None,)
BROKEN = ("arm", "against", "verdict", "backend")  # into lines, where the terminal is too narrow
LONG_TEXT = 60  # characters of a cell, from which on LaTeX breaks it into lines
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
        rows: of arms, under "case" the name of theirs, too; at the end those of naive baselines.
        caption: sentences.
        warnings: likewise.
        naive: how many rows are of naive baselines.
    """

    columns: list[Column]
    rows: list[dict[str, Cell]]
    caption: list[str]
    warnings: list[str]
    naive: int = 0


def comparison_table(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> Table:
    """Build the table of a study, arms in the order of the plan."""
    pairs = _rows_of(arms, comparisons)
    return Table(
        columns=_columns(study),
        rows=[
            *(_cells(study, arm, comparison) for arm, comparison in pairs),
            *(_naive_cells(study, naive) for naive in study.baselines),
        ],
        caption=_caption(study, arms, comparisons),
        warnings=warnings(study, arms),
        naive=len(study.baselines),
    )


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
    if table.naive:
        texts.insert(1, "\n".join(_wrapped(_naive_line(table), width)))
    remarks = [line for warning in table.warnings for line in _wrapped(f"! {warning}", width)]
    texts += ["\n".join(lines) for lines in (remarks, _wrapped(" ".join(table.caption), width)) if lines]
    return "\n\n".join(texts) + "\n"


def markdown(table: Table, title: str) -> str:
    """A Markdown file: heading, pipe table, caption, warnings."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [f"# {title}", "", line(column.heading for column in table.columns)]
    lines.append("|" + "|".join("---:" if column.numeric else ":---" for column in table.columns) + "|")
    lines += [line(row[column.key].line for column in table.columns) for row in table.rows]
    lines += ["", " ".join(table.caption)]
    if table.warnings:
        lines += ["", *(f"- **Note:** {warning}" for warning in table.warnings)]
    return "\n".join(lines) + "\n"


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
    rows = dict.fromkeys(tuple(row[column.key].line for column in columns) for row in table.rows)
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
        column.key: max((len(row[column.key].line) for row in table.rows), default=0) for column in columns
    }
    paragraph = rf"p{{{width}\textwidth}}"
    return "".join(
        "r" if column.numeric else paragraph if longest[column.key] > LONG_TEXT else "l" for column in columns
    )


def plain_csv(table: Table) -> str:
    """The cells as they are shown, under their headings."""
    return write_csv(
        [{column.heading: row[column.key].line for column in table.columns} for row in table.rows]
    )


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


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it; what pdflatex cannot set is replaced by the nearest ASCII, or by '?'."""
    escaped = "".join(LATEX.get(c) or (c if c.isascii() else _ascii(c)) for c in text)
    return escaped.replace(r" \%", r"~\%")  # a unit stays with its number


def comparison_csv(arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> str:
    """The table with raw numbers: full precision, empty cells where there is no number."""
    return write_csv([_raw(arm, comparison) for arm, comparison in _rows_of(arms, comparisons)])


def metrics_csv(study: Study) -> str:
    """One row per planned trial, deterministic part only: two runs of the same trials give the same bytes."""
    return write_csv([trial_row(trial) for trial in study.trials])


def timings_csv(study: Study) -> str:
    """One row per planned trial: wall-clock, memory, hardware, backend."""
    return write_csv([timing_row(trial) for trial in study.trials])


def write_csv(rows: Sequence[Json]) -> str:
    """Rows as CSV text, columns in order of first appearance; None and NaN are empty, floats whole."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_csv_cell(row.get(column)) for column in columns] for row in rows])
    return text.getvalue()


def _csv_cell(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _columns(study: Study) -> list[Column]:
    metric = study.metric
    return [
        Column("arm", "arm", False),
        Column("metric", f"test {study.compared_by(study.arms.values())} ({metric.unit})", True),
        Column("validation", f"validation ({metric.unit})", True),
        Column("against", "against", False),
        Column("difference", f"difference ({metric.difference_unit})", True),
        Column("p", "p", True),
        Column("verdict", "verdict", False),
        Column("params", "params (mixer + rest)", True),
        Column("macs", "MACs", True),
        Column("state", "state / seq.", True),
        Column("memory", "peak memory", True),
        Column("speed", "examples / s", True),
        Column("backend", "backend", False),
    ]


def _rows_of(
    arms: dict[str, ArmSummary], comparisons: list[Comparison]
) -> list[tuple[ArmSummary, Comparison | None]]:
    of_arm: dict[str, list[Comparison | None]] = {}
    for comparison in comparisons:
        of_arm.setdefault(comparison.arm, []).append(comparison)
    return [(arm, comparison) for name, arm in arms.items() for comparison in of_arm.get(name, NO_COMPARISON)]


def _cells(study: Study, arm: ArmSummary, comparison: Comparison | None) -> dict[str, Cell]:
    decimals = q.decimals_for(study.margin, study.metric.unit)
    costs = arm.costs
    split = (
        f"({q.count(costs.params_mixer)} + {q.count(costs.params_rest)})"
        if costs.params_mixer is not None
        else ""
    )
    return {
        "case": Cell(arm.arm.case or ""),
        "arm": Cell(arm.name),
        "metric": _mean_and_sd(arm.test, decimals, f" ({arm.spread})"),
        "validation": _mean_and_sd(arm.validation, decimals, ""),
        **_difference_cells(comparison, decimals),
        "params": Cell(q.count(costs.params), split, costs.params),
        "macs": Cell(q.count(costs.macs), value=costs.macs),
        "state": Cell(q.byte_size(costs.state_bytes), value=costs.state_bytes),
        "memory": Cell(q.byte_size(costs.peak_memory_bytes), value=costs.peak_memory_bytes),
        "speed": Cell(q.count(costs.examples_per_second), value=costs.examples_per_second),
        "backend": Cell("; ".join(arm.backends) or q.MISSING),
    }


def _naive_cells(study: Study, naive: NaiveBaseline) -> dict[str, Cell]:
    """The row of a predictor that learns nothing: a number without seeds, difference or cost."""
    case = f" @ {naive.case}" if naive.case else ""
    decimals = q.decimals_for(study.margin, study.metric.unit)
    cells = {column.key: Cell(q.MISSING) for column in _columns(study)}
    cells["case"] = Cell(naive.case or "")
    cells["arm"] = Cell(f"{naive.name}{case}", "(naive baseline)")
    cells["metric"] = Cell(q.number(naive.value, decimals), value=naive.value)
    return cells


def _difference_cells(comparison: Comparison | None, decimals: int) -> dict[str, Cell]:
    if comparison is None:
        return {key: Cell(q.MISSING) for key in ("against", "difference", "p", "verdict")}
    mean, low, high = comparison.interval.mean, comparison.interval.low, comparison.interval.high
    bounds = q.interval(low, high, decimals) if math.isfinite(low) else ""
    return {
        "against": Cell(comparison.baseline),
        "difference": Cell(q.signed(mean, decimals), bounds, mean),
        "p": Cell(q.p_value(comparison.p_holm), value=comparison.p_holm),
        "verdict": Cell(comparison.label),
    }


def _mean_and_sd(estimate: Estimate, decimals: int, n: str) -> Cell:
    spread = f"± {q.number(estimate.sd, decimals)}" if math.isfinite(estimate.sd) else ""
    return Cell(q.number(estimate.mean, decimals), (spread + n).strip(), estimate.mean)


def _raw(arm: ArmSummary, comparison: Comparison | None) -> Json:
    costs, c = arm.costs, comparison
    return {
        "arm": arm.name,
        "mixer": arm.arm.mixer,
        "n": arm.test.n,
        "planned": len(arm.arm.trials),
        "test_mean": arm.test.mean,
        "test_sd": arm.test.sd,
        "validation_mean": arm.validation.mean,
        "validation_sd": arm.validation.sd,
        "against": c.baseline if c else None,
        "pairs": c.n if c else None,
        "difference": c.interval.mean if c else None,
        "difference_sd": c.interval.sd if c else None,
        "low": c.interval.low if c else None,
        "high": c.interval.high if c else None,
        "p": c.p if c else None,
        "p_holm": c.p_holm if c else None,
        "p_equivalence_holm": c.p_equivalence_holm if c else None,
        "test_set_error_one_seed": c.sampling.one_seed if c else None,
        "test_set_error_mean": c.sampling.mean if c else None,
        "verdict": c.word if c else None,
        "qualifier": c.qualifier if c else None,
        "under_trained": arm.under_trained,
        "params": costs.params,
        "params_mixer": costs.params_mixer,
        "params_rest": costs.params_rest,
        "macs": costs.macs,
        "macs_mixer": costs.macs_mixer,
        "state_bytes": costs.state_bytes,
        "peak_memory_bytes": costs.peak_memory_bytes,
        "examples_per_second": costs.examples_per_second,
        "train_seconds": costs.train_seconds,
        "backend": "; ".join(arm.backends),
    }


def _caption(study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]) -> list[str]:
    level, unit = q.percent(1 - study.alpha), study.metric.difference_unit
    better = "higher" if study.metric.higher_is_better else "lower"
    sentences = [
        f"{_places(study)}.",
        f"Mean ± standard deviation over seeds (n in brackets); {better} is better.",
    ]
    if study.baselines:
        sentences.append("Naive baselines are of the test split of seed 0.")
    if comparisons:
        families = sorted({c.family_size for c in comparisons})
        over = q.listing([q.plural(size, "comparison") for size in families])
        sentences.append(
            f"Differences are paired by seed, with {level} Student t intervals; p values are two-sided and "
            f"adjusted by Holm's method over {over}, the intervals are not. Both take differences to be "
            "roughly normal, which they are not where runs now and then fail outright."
        )
        sentences.append(
            f"Equivalence margin ±{q.with_unit(study.margin, unit)}, {margin_set(study)} (two one-sided "
            f"tests at {q.percent(study.alpha)})."
            if study.margin is not None
            else "No equivalence margin was fixed before the run, so nothing can be called equivalent."
        )
    sentences += planned_looks(study) + settled_late(comparisons, study)
    return sentences + notes(study, arms) + _sampling_error(study, comparisons)


def _places(study: Study) -> str:
    """Tasks, skeletons and budgets, and what is compared where that is not the same everywhere."""
    places = ", ".join(q.listing(_first_of(values)) for values in study.settings.values() if values)
    own = dict.fromkeys(f"{arm.metric} ({arm.case})" for arm in study.arms.values() if arm.metric)
    return places + (f". Compared: {'; '.join(own)}" if own else "")


def _first_of(texts: list[str]) -> list[str]:
    """All of them, or the first of many and how many more there are."""
    more = [f"{len(texts) - MOST_PLACES} more"] if len(texts) > MOST_PLACES else []
    return [*texts[:MOST_PLACES], *more]


def _sampling_error(study: Study, comparisons: list[Comparison]) -> list[str]:
    known = [c for c in comparisons if math.isfinite(c.sampling.one_seed)]
    if not known and comparisons and "accuracy" not in study.metric.name:
        return [
            "What the finite test set adds to the error is not given: "
            f"{study.metric.name} is no share of right answers."
        ]
    if not known:
        return []
    decimals = q.decimals_for(study.margin, study.metric.unit)
    one_seed = _range([c.sampling.one_seed for c in known], decimals)
    mean = _range([c.sampling.mean for c in known], decimals)
    return [
        f"The finite test set alone gives a difference a standard error of {one_seed} "
        f"{study.metric.difference_unit} in one seed and {mean} in the mean over seeds"
        f"{_in_the_intervals({c.sampling.test_sets for c in known} - {None})}."
    ]


def _in_the_intervals(test_sets: Set[TestSets | None]) -> str:
    """How much of what another test set would change the spread over seeds shows; "" of a single seed."""
    if not test_sets:
        return ""
    if "the same" in test_sets:
        return "; all seeds have the same test set, so it is not part of the intervals"
    if "overlapping" in test_sets:
        return "; the test sets of the seeds overlap, so it is only partly in the intervals"
    return "; it is part of the intervals, but for luck"


def _range(values: list[float], decimals: int) -> str:
    low, high = q.number(min(values), decimals), q.number(max(values), decimals)
    return low if low == high else f"{low} to {high}"


def _naive_line(table: Table) -> str:
    """What predictors that learn nothing reach, and in which cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in table.rows[-table.naive :]:
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
    for row in table.rows[: len(table.rows) - table.naive]:
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


def _label(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in name)


def _ascii(character: str) -> str:
    import unicodedata

    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"
