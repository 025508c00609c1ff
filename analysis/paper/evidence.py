"""What a number of ours is not shown without: its interval, its verdict, and whether training was done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import quantities as q
from analysis.comparison import NO_VERDICT, UNDECIDED, Comparison
from analysis.deciding_intervals import deciding_intervals
from analysis.drawing import COLOURS, INK
from analysis.notes import differing
from analysis.paper.ours import OurStudy
from analysis.records import Json
from analysis.statistics import Estimate
from analysis.summary import ArmSummary
from analysis.verdict_sentence import margin_set, planned_looks, settled_late

PUBLISHED = "published: one training, no interval"
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
    whiskers = bounds(_deciding(ours, comparison))
    pair = [ours.arms[name] for name in (comparison.arm, comparison.baseline)]
    return {
        "low": low,
        "high": high,
        "low_after_holm": whiskers[0],
        "high_after_holm": whiskers[1],
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


def reservations_of_differences(shown: Sequence[tuple[OurStudy, Comparison]]) -> str:
    """What a caption must say of differences: `reservations`, and what was settled late, or when."""
    by_study: dict[str, list[tuple[OurStudy, Comparison]]] = {}
    for ours, comparison in shown:
        by_study.setdefault(ours.study.name, []).append((ours, comparison))
    found = _margins([pairs[0][0] for pairs in by_study.values()])
    for name, pairs in by_study.items():
        study = pairs[0][0].study
        late = planned_looks(study) + settled_late([comparison for _, comparison in pairs], study)
        found += "".join(f" {name}: {said[0].lower()}{said[1:]}" for said in late)
    return found + reservations([(p[0][0], arms_of(c for _, c in p)) for p in by_study.values()])


def _margins(studies: Sequence[OurStudy]) -> str:
    """The margin of each study, by when it was set."""
    by_time: dict[str, dict[str, list[str]]] = {}
    without = []
    for study in (ours.study for ours in studies):
        if study.margin is None:
            without.append(study.name)
            continue
        margin = f"±{q.with_unit(study.margin, study.metric.difference_unit)}"
        by_time.setdefault(margin_set(study), {}).setdefault(margin, []).append(study.name)
    found = ""
    for when, margins in by_time.items():
        named = "; ".join(f"{margin} ({q.listing(names)})" for margin, names in margins.items())
        found += f" Equivalence margin {when}: {named}."
    return found + (f" Without a margin: {q.listing(without)}." if without else "")


def _deciding(ours: OurStudy, comparison: Comparison) -> Estimate:
    """The interval that tells whether a comparison helps or hurts, after Holm's adjustment."""
    place = next(index for index, each in enumerate(ours.comparisons) if each is comparison)
    return deciding_intervals(ours.study, ours.comparisons)[place].interval


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
        row: with `low` and `high`, None where there is no interval; of ours with those after Holm's
            adjustment, which are drawn as whiskers.
        column: the key of the difference in the row.
    """
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.3, zorder=2)
        whiskers = [row["low_after_holm"], row["high_after_holm"]]
        style: Json = {"marker": "|", "markersize": 3.5, "markeredgewidth": 0.5}
        axes.plot(whiskers, [place, place], color=INK, linewidth=0.5, zorder=1.5, **style)
    axes.plot([row[column]], [place], linestyle="", zorder=3, **LOOKS[what])


def legend_of(kinds: Iterable[str]) -> list[Line2D]:
    """Legend handles of the kinds of differences that a figure has, in the order of `LOOKS`."""
    present = set(kinds)
    return [Line2D([], [], linestyle="", label=what, **LOOKS[what]) for what in LOOKS if what in present]
