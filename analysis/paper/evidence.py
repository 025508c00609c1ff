"""What a number of ours is not shown without: its interval, its verdict, and whether training was done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import quantities as q
from analysis.drawing import COLOURS, INK
from analysis.paper.ours import OurStudy
from analysis.records import Json
from analysis.statistics import Estimate
from analysis.summary import ArmSummary, differing
from analysis.verdict import NO_VERDICT, UNDECIDED, Comparison

PUBLISHED = "published"
DECIDED = "ours, decided"
OPEN = "ours, undecided or no verdict"
NO_SPREAD = "ours, the same on all seeds"
HOLLOW: Json = {"markerfacecolor": "white"}
LOOKS: dict[str, Json] = {
    PUBLISHED: {"marker": "D", "color": COLOURS[0], "markersize": 3.5, **HOLLOW},
    DECIDED: {"marker": "o", "color": INK, "markersize": 3.5},
    OPEN: {"marker": "o", "color": INK, "markersize": 3.5, **HOLLOW},
    NO_SPREAD: {"marker": "x", "color": INK, "markersize": 4},
}
"""How a difference is drawn, by what the legend calls it."""


def kind(comparison: Comparison) -> str:
    """What the legend calls a difference of ours: a key of `LOOKS`."""
    if comparison.interval.without_spread:
        return NO_SPREAD
    return OPEN if comparison.word in (UNDECIDED, NO_VERDICT) else DECIDED


def bounds(estimate: Estimate) -> tuple[float | None, float | None]:
    """The interval; None and None where all values are equal, which says nothing about further seeds."""
    return (None, None) if estimate.without_spread else (estimate.low, estimate.high)


def no_spread(estimate: Estimate) -> str:
    """``no spread over 5 seeds``, in place of a degenerate interval."""
    return f"no spread over {q.plural(estimate.n, 'seed')}"


def t_interval_of(studies: Iterable[OurStudy]) -> str:
    """``95 % t interval over seeds``; where studies have different levels, which of them has which."""
    by_level: dict[str, list[str]] = {}
    for ours in studies:
        by_level.setdefault(q.percent(1 - ours.study.alpha), []).append(ours.study.name)
    if len(by_level) == 1:
        return f"{next(iter(by_level))} t interval over seeds"
    levels = "; ".join(f"{level}: {q.listing(names)}" for level, names in by_level.items())
    return f"t interval over seeds at the level of each study ({levels})"


def evidence(ours: OurStudy, comparison: Comparison) -> Json:
    """The columns of a data file that say how sure a difference of ours is, and where it comes from."""
    low, high = bounds(comparison.interval)
    pair = [ours.arms[name] for name in (comparison.arm, comparison.baseline)]
    return {
        "low": low,
        "high": high,
        "seeds": comparison.n,
        "verdict": comparison.label,
        "under_trained": "; ".join(arm.name for arm in pair if arm.under_trained),
        "origin": f"studies/{ours.study.name}.csv",
    }


def reservations(shown: Sequence[tuple[OurStudy, Collection[str]]]) -> str:
    """What a caption must say of studies and of those of their arms that it shows; empty if there is nothing.

    Arms that were still improving when training stopped, and what differs between trials.
    """
    found = ""
    for ours, names in shown:
        stopped = still_improving(arm for name, arm in ours.arms.items() if name in names)
        if stopped:
            found += f" {ours.study.name}: still improving when training stopped: {'; '.join(stopped)}."
        if said := differing(ours.study):
            found += f" {ours.study.name}: t{said.removeprefix(' T')}"
    return found


def still_improving(arms: Iterable[ArmSummary]) -> list[str]:
    """The under-trained among some arms, once where several cases are read off the same models."""
    names = (arm.arm.label if arm.arm.metric else arm.name for arm in arms if arm.under_trained)
    return list(dict.fromkeys(names))


def arms_of(comparisons: Iterable[Comparison]) -> set[str]:
    """The arms that some comparisons are about."""
    return {name for each in comparisons for name in (each.arm, each.baseline)}


def draw_difference(axes: Axes, place: int, what: str, row: Json, column: str) -> None:
    """One row of a figure: a marker that says how sure it is, and the interval if there is one.

    Args:
        axes: where to.
        place: height of the row.
        what: a key of `LOOKS`.
        row: with `low` and `high`, None where there is no interval.
        column: the key of the difference in the row.
    """
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=0.9, zorder=2)
    axes.plot([row[column]], [place], linestyle="", zorder=3, **LOOKS[what])


def legend_of(kinds: Iterable[str]) -> list[Line2D]:
    """Legend handles of the kinds of differences that a figure has, in the order of `LOOKS`."""
    present = set(kinds)
    return [Line2D([], [], linestyle="", label=what, **LOOKS[what]) for what in LOOKS if what in present]
