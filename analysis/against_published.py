"""Our numbers beside those of papers: match, differs, open or not comparable, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from analysis import quantities as q
from analysis.records import DIVERGED, PublishedRow, Study
from analysis.summary import ArmSummary
from analysis.table import Cell, Column, Table
from experiments.trial import LEAST_SEEDS

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
        "open: a part of it, or, as the reason says, there is none to go by.",
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
    why_open = _no_interval(arm)
    if why_open:
        return Standing(OPEN, f"{tolerance}; {why_open}")
    least, most = row.value - row.tolerance, row.value + row.tolerance
    if least <= ours.low and ours.high <= most:
        return Standing(MATCH, tolerance)
    return Standing(DIFFERS if ours.high < least or ours.low > most else OPEN, tolerance)


def _no_interval(arm: ArmSummary) -> str:
    """Why the interval of an arm decides nothing, by the rules that hold for verdicts; empty if it may."""
    ours, diverged = arm.test, len(arm.arm.with_status(DIVERGED))
    if diverged:
        trials = q.plural(len(arm.arm.trials), "trial")
        return f"{diverged} of {trials} diverged, and the others are no fair sample"
    if ours.n < LEAST_SEEDS:
        return f"{q.plural(ours.n, 'seed')} finished, and this takes at least {LEAST_SEEDS}"
    if ours.without_spread:
        return "the seeds do not vary, so the interval says nothing about further ones"
    return ""


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
