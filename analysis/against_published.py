"""Our numbers beside those of papers: match, differs, open or not comparable, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis import quantities as q
from analysis.records import PublishedRow, Study
from analysis.summary import ArmSummary
from analysis.table import Cell, Column, Table

MATCH, DIFFERS, OPEN, NOT_COMPARABLE = "match", "differs", "open", "not comparable"


@dataclass(frozen=True)
class Standing:
    """How one of our numbers stands to a published one."""

    word: str
    reason: str


def published_table(study: Study, arms: dict[str, ArmSummary]) -> Table | None:
    """One row per published number that the study names; None if it names none."""
    if not study.published:
        return None
    unit = study.metric.unit
    columns = [
        Column("arm", "arm", False),
        Column("ours", f"ours ({unit})", True),
        Column("published", f"published ({unit})", True),
        Column("difference", f"difference ({study.metric.difference_unit})", True),
        Column("standing", "standing", False),
        Column("source", "source", False),
    ]
    level = q.percent(1 - study.alpha)
    caption = [
        f"Ours: mean with {level} t interval over seeds (n in brackets).",
        "Match: all of the interval lies within the published value ± its tolerance; differs: none of it; "
        "open: a part of it.",
    ]
    return Table(columns, [_row(study, row, arms[row.arm]) for row in study.published], caption, [])


def stand(row: PublishedRow, arm: ArmSummary) -> Standing:
    """Hold an arm against a published number."""
    if row.not_comparable:
        return Standing(NOT_COMPARABLE, row.not_comparable)
    ours = arm.test
    if not ours.n:
        return Standing(NOT_COMPARABLE, "no trial of ours has finished")
    tolerance = f"tolerance {q.amount(row.tolerance)}"
    if not math.isfinite(ours.low):
        return Standing(OPEN, f"{tolerance}; a single seed has no interval")
    least, most = row.value - row.tolerance, row.value + row.tolerance
    if least <= ours.low and ours.high <= most:
        return Standing(MATCH, tolerance)
    return Standing(DIFFERS if ours.high < least or ours.low > most else OPEN, tolerance)


def _row(study: Study, row: PublishedRow, arm: ArmSummary) -> dict[str, Cell]:
    decimals = q.decimals_for(study.margin, study.metric.unit)
    ours, standing = arm.test, stand(row, arm)
    bounds = f"[{q.number(ours.low, decimals)}, {q.number(ours.high, decimals)}] ({arm.spread})"
    return {
        "arm": Cell(arm.name),
        "ours": Cell(q.number(ours.mean, decimals), bounds if ours.n > 1 else f"({arm.spread})", ours.mean),
        "published": Cell(q.number(row.value, decimals), value=row.value),
        "difference": Cell(q.signed(ours.mean - row.value, decimals), value=ours.mean - row.value),
        "standing": Cell(standing.word, f"({standing.reason})"),
        "source": Cell(row.source, f"({row.convention})"),
    }
