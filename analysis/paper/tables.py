"""The paper's tables with our rows beside them, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis import published
from analysis import quantities as q
from analysis.comparison import Comparison
from analysis.paper import long_sequences
from analysis.paper.evidence import no_spread, reservations_of_differences, t_interval_of
from analysis.paper.our_rows import arms_elsewhere, arms_on, caption_of, rows_beside, table_of_our_own
from analysis.paper.ours import OurStudy
from analysis.published import PublishedTable, Row
from analysis.table import Cell, Column, Table

SIZES = ("femto", "tiny", "small", "base")


@dataclass(frozen=True)
class PaperTable:
    """A table of the page: its file name, its title, its cells."""

    name: str
    title: str
    table: Table


@dataclass(frozen=True)
class Margin:
    """MambaOut against the best SSM of the same size in one published table, in points."""

    task: str
    size: str
    mambaout: Row
    best: Row
    column: str
    model_column: str

    @property
    def points(self) -> float:
        return self.mambaout.number(self.column) - self.best.number(self.column)


def all_tables(studies: Sequence[OurStudy]) -> list[PaperTable]:
    """Every table, in the order of the page."""
    own = table_of_our_own(arms_elsewhere(studies))
    return [
        _with_ours("table_1", "Table 1: ImageNet", "mambaout_table1_imagenet", "images", studies),
        _with_ours("table_2", "Table 2: COCO", "mambaout_table2_coco", "coco", studies),
        _with_ours("table_3", "Table 3: ADE20K", "mambaout_table3_ade20k", "ade20k", studies),
        *([PaperTable("our_studies", "Our studies on other tasks", own)] if own.rows else []),
        PaperTable("margins", "Margins of the claim", _margin_table()),
        PaperTable("long_sequences", "Which stages are long", _long_sequence_table()),
        PaperTable("effects", "What each ingredient was worth", _effect_table(studies)),
        _as_published("later_models", "Other SSM and linear-attention models", "later_ssm_models"),
        _as_published("same_block", "Same block, mixer swapped (PointMamba)", "pointmamba_same_block_swap"),
        _as_published("discrepancies", "Where papers disagree", "discrepancies"),
    ]


def margins() -> list[Margin]:
    """For each task and size: MambaOut, and the best model whose token mixing contains an SSM."""
    asked = [
        ("ImageNet top-1", "mambaout_table1_imagenet", "model", "top1"),
        ("COCO box AP", "mambaout_table2_coco", "backbone", "APb"),
        ("COCO mask AP", "mambaout_table2_coco", "backbone", "APm"),
        ("ADE20K mIoU, single scale", "mambaout_table3_ade20k", "backbone", "mIoU_SS"),
    ]
    found = []
    for task, name, model, column in asked:
        rows = published.load(name).rows
        for size in SIZES:
            known = [row for row in rows if row.text("group") == size and row.cells[column] is not None]
            ours = [row for row in known if row.text(model).startswith("MambaOut")]
            with_ssm = [row for row in known if "SSM" in row.text("token_mixing")]
            if ours and with_ssm:
                best = max(with_ssm, key=lambda row: row.number(column))
                found.append(Margin(task, size, ours[0], best, column, model))
    return found


def _as_published(name: str, title: str, source: str) -> PaperTable:
    table = published.load(source)
    rows = [_cells(row, table) for row in table.rows]
    shared = tuple(key for key in ("paper",) if key in table.columns)
    return PaperTable(name, title, Table(_columns(table), rows, _caption(table), [], group_keys=shared))


def _with_ours(name: str, title: str, source: str, task: str, studies: Sequence[OurStudy]) -> PaperTable:
    """The published rows, then those of our arms on the same task, in groups of their own.

    Ours differ from one another in what their study asks about, but from a published row in more than that.
    """
    table, shown = published.load(source), arms_on(task, studies)
    columns = _columns(table)
    model = next(column for column in ("model", "backbone") if column in table.columns)
    rows = [_cells(row, table) for row in table.rows] + rows_beside(task, columns, model, shown)
    caption = _caption(table) + caption_of(shown)
    if shown:
        caption.append(
            "Code and data held out are not those of the published rows, and the recipe need not be: "
            "differences among our rows are controlled, those from published rows are not."
        )
    return PaperTable(name, title, Table(columns, rows, caption, [], group_keys=("group",)))


HEADINGS = {
    "params_M": "params (M)",
    "macs_G": "MACs (G)",
    "flops_G": "MACs (G)",
    "top1": "top-1 (%)",
    "token_mixing": "token mixing",
    "mIoU_SS": "mIoU SS",
    "mIoU_MS": "mIoU MS",
    "coco1x_APb": "COCO box AP",
    "coco1x_APm": "COCO mask AP",
    "ade_SS": "ADE20K SS",
    "ade_MS": "ADE20K MS",
    "OBJ_BG": "OBJ-BG (%)",
    "OBJ_ONLY": "OBJ-ONLY (%)",
    "APb": "box AP",
    "APb50": "box AP50",
    "APb75": "box AP75",
    "APm": "mask AP",
    "APm50": "mask AP50",
    "APm75": "mask AP75",
    "where_else": "where",
}


def _columns(table: PublishedTable) -> list[Column]:
    numeric = {
        column: any(isinstance(row.cells[column], float) for row in table.rows) for column in table.columns
    }
    columns = [
        Column(column, HEADINGS.get(column, column.replace("_", " ")), numeric[column])
        for column in table.columns
    ]
    return [*columns, Column("origin", "row", False)]


def _cells(row: Row, table: PublishedTable) -> dict[str, Cell]:
    cells = {column: _cell(row, column) for column in table.columns}
    return cells | {"origin": Cell(row.origin)}


def _cell(row: Row, column: str) -> Cell:
    value = row.cells[column]
    return Cell(row.text(column), value=value if isinstance(value, float) else None)


def _caption(table: PublishedTable) -> list[str]:
    return [f"{table.source}.", f"{table.convention}."]


def _margin_table() -> Table:
    columns = [
        Column("task", "task", False),
        Column("size", "size", False),
        Column("mambaout", "MambaOut", True),
        Column("best", "best with an SSM", True),
        Column("model", "which", False),
        Column("points", "difference (points)", True),
        Column("origin", "rows", False),
    ]
    rows = [
        {
            "task": Cell(margin.task),
            "size": Cell(margin.size),
            "mambaout": Cell(
                margin.mambaout.text(margin.column), value=margin.mambaout.number(margin.column)
            ),
            "best": Cell(margin.best.text(margin.column), value=margin.best.number(margin.column)),
            "model": Cell(margin.best.text(margin.model_column)),
            "points": Cell(q.signed(margin.points, 1), value=margin.points),
            "origin": Cell(f"{margin.mambaout.origin}, {margin.best.origin.rpartition(':')[2]}"),
        }
        for margin in margins()
    ]
    caption = [
        "MambaOut minus the best model of the same group with an SSM among its mixers, from Tables 1 to 3.",
        f"One published number each, without seeds. {_one_rerun()}",
    ]
    return Table(columns, rows, caption, [])


def _one_rerun() -> str:
    """What is known of noise: one user's numbers for MambaOut-Tiny, beside the margins."""
    found = published.load("discrepancies")
    imagenet, dense = (
        found.find(paper=paper, model="MambaOut-Tiny", quantity=quantity)
        for paper, quantity in (
            ("MambaOut", "ImageNet top-1 (%)"),
            ("MambaOut, Table 3", "mIoU, single scale"),
        )
    )
    points = [margin.points for margin in margins() if margin.task == "ImageNet top-1"]
    least, most = (q.signed(choose(points), 1) for choose in (min, max))
    return (
        f"One user who trained MambaOut-Tiny again, at another batch size, got {imagenet.text('elsewhere')} "
        f"in place of {imagenet.text('quoted')} on ImageNet, where the margins are {least} to {most}, and "
        f"with code of their own {dense.text('elsewhere')} in place of {dense.text('quoted')} mIoU on ADE20K "
        f"({imagenet.origin}, {dense.line}). A single rerun is no measure of noise."
    )


def _long_sequence_table() -> Table:
    keys = ["backbone", "stage", "task", "tokens", "channels", "threshold", "ratio"]
    headings = ["backbone", "stage", "task", "tokens L", "channels D", "threshold 6 D", "L / 6 D"]
    columns = [
        Column(key, heading, key not in ("backbone", "task", "stage"))
        for key, heading in zip(keys, headings, strict=True)
    ]
    columns.append(Column("origin", "row", False))
    rows = []
    for record in long_sequences.analysis():
        cells = {
            key: Cell("" if record[key] is None else f"{record[key]}")
            for key in ("backbone", "task", "stage")
        }
        for key in ("tokens", "channels", "threshold"):
            cells[key] = Cell(f"{record[key]:,.0f}", value=float(str(record[key])))
        cells["ratio"] = Cell(f"{record['ratio']:.3f}", value=float(str(record["ratio"])))
        cells["origin"] = Cell(str(record["origin"] or "D of the ViT paper, 16 x 16 patches"))
        rows.append(cells)
    caption = [
        "Tokens against the length from which attention's quadratic part is the larger one, 24 D² L + 4 D L² "
        "operations in all (MambaOut, eq. 6 and 7). Above 1 a sequence is long.",
        "The paper looks at plain ViTs; in its own hierarchies stage 1 is long on every task, stage 4 on "
        "none.",
    ]
    return Table(columns, rows, caption, [])


def _effect_table(studies: Sequence[OurStudy]) -> Table:
    columns = [
        Column("component", "ingredient", False),
        Column("points", "effect (points)", True),
        Column("verdict", "verdict", False),
        Column("paper", "from", False),
        Column("origin", "rows", False),
    ]
    rows = [
        {
            "component": Cell(effect.component),
            "points": Cell(q.signed(effect.points, 2), value=effect.points),
            "verdict": Cell(""),
            "paper": Cell(effect.paper),
            "origin": Cell(f"{effect.before.origin}, {effect.after.line}"),
        }
        for effect in published.effects()
    ]
    pairs = [
        (ours, comparison)
        for ours in studies
        if ours.in_percent
        for comparison in ours.comparisons
        if math.isfinite(comparison.interval.mean)
    ]
    rows += [_our_effect(ours, comparison) for ours, comparison in pairs]
    caption = [
        "Difference of two rows of one published table, ImageNet top-1 in points unless the ingredient says "
        "otherwise; single trainings without an interval.",
    ]
    if pairs:
        interval = t_interval_of({ours.study.name: ours for ours, _ in pairs}.values())
        caption += [
            f"Ours: mean paired difference with its {interval}, on the study's own task and metric, and the "
            "verdict by the study's own rules: what is undecided or without a verdict is no result, whatever "
            f"its sign.{reservations_of_differences(pairs)}"
        ]
    return Table(columns, rows, caption, [], group_keys=("paper",))


def _our_effect(ours: OurStudy, comparison: Comparison) -> dict[str, Cell]:
    estimate, decimals = comparison.interval, q.decimals_for(ours.study.margin, "%")
    bounds = q.interval(estimate.low, estimate.high, decimals) if math.isfinite(estimate.low) else ""
    return {
        "component": Cell(f"{comparison.arm} in place of {comparison.baseline}"),
        "points": Cell(
            q.signed(estimate.mean, decimals),
            no_spread(estimate) if estimate.without_spread else bounds,
            estimate.mean,
        ),
        "verdict": Cell(comparison.label),
        "paper": Cell(f"{ours.label} ({ours.compared(comparison.arm)})"),
        "origin": Cell(f"studies/{ours.study.name}.csv"),
    }
