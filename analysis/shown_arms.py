"""What the figures of a study share: which arms fit, how they look, and what captions say of them."""

from __future__ import annotations

import math
from typing import TypeVar

from analysis import quantities as q
from analysis.drawing import colour_and_marker, cut_note, legend_label, line_style
from analysis.records import Json, Study
from analysis.summary import ArmSummary

Item = TypeVar("Item")

STEPS = [1, 2, 2.5, 5, 10]  # tick distances people count in

# Beyond these a figure no longer fits a page, or can be read; the caption says how many are drawn, the CSV
# beside it has all.
MOST_ROWS, MOST_LINES = 25, 14
FEW = 3  # by which a figure may exceed these rather than leave out the rest of a case


def looks_of(study: Study, arms: list[ArmSummary]) -> dict[str, Json]:
    """Colour, marker and line by arm, the same in every figure of a study.

    Arms of one label have one colour in all cases. Where the models of a second case are others than those
    of the first, their markers are open; those of a third are filled again and of another shape.
    """
    labels = list(dict.fromkeys(arm.arm.label for arm in arms))
    first = study.first_cases
    distinct = list(dict.fromkeys(first.values()))
    looks = {}
    for arm in arms:
        place, models = labels.index(arm.arm.label), distinct.index(first[arm.arm.case])
        shape = colour_and_marker(place + models // 2)["marker"]
        look = colour_and_marker(place) | {"marker": shape, "linestyle": line_style(place + models)}
        looks[arm.name] = look | ({"markerfacecolor": "white"} if models % 2 else {})
    return looks


def by_case(arms: list[ArmSummary]) -> list[list[ArmSummary]]:
    """The arms of every case; all of them in a study without cases."""
    found: dict[str | None, list[ArmSummary]] = {}
    for arm in arms:
        found.setdefault(arm.arm.case, []).append(arm)
    return list(found.values())


def without_repeats(study: Study, arms: list[ArmSummary]) -> tuple[list[ArmSummary], list[str]]:
    """The arms without those whose models an earlier case tests, and the names of such earlier cases."""
    first = study.first_cases
    again = dict.fromkeys(str(first[arm.arm.case]) for arm in arms if first[arm.arm.case] != arm.arm.case)
    return [arm for arm in arms if first[arm.arm.case] == arm.arm.case], list(again)


def shortest_names(arms: list[ArmSummary]) -> dict[str, str]:
    """Arms by their labels, which do not tell the case, where that tells them apart."""
    labels = {arm.name: arm.arm.label for arm in arms}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in labels}


def at_most(limit: int, items: list[Item], cases: list[str | None]) -> tuple[list[Item], str]:
    """About the first `limit` items, and what a caption says of the others.

    Args:
        limit: that a case may exceed by `FEW` to be whole; a longer one is left out, unless it is the first.
        items: case after case.
        cases: of each item.
    """
    ends = [place for place in range(1, len(items)) if cases[place] != cases[place - 1]] + [len(items)]
    n = max((end for end in ends if end <= limit + FEW), default=limit)
    if n == len(items):
        return items, ""
    return items[:n], f" Drawn: the first {n} of {len(items)}; the data file has all."


def far_out(reaches: list[float], least: float) -> set[int]:
    """Rows that would squeeze all others: beyond 4 times the middle row, and beyond 4 times `least`.

    A ladder begins at a mixer that mixes nothing, far below the rest; drawn to scale, it would hide them.
    """
    known = sorted(reach for reach in reaches if math.isfinite(reach))
    if not known:
        return set()
    limit = 4 * max(known[(len(known) - 1) // 2], least)
    return {row for row, reach in enumerate(reaches) if reach > limit}


def outliers(arms: list[ArmSummary], study: Study) -> dict[str, int]:
    """Arms too far below the best of their case to share a scale with it, and on which side they lie.

    One that reaches no further below what is drawn than that extends itself, with the other cases, stays.
    """
    direction, margin = study.metric.direction, study.margin or 0.0
    means = {arm.name: direction * arm.test.mean for arm in arms if math.isfinite(arm.test.mean)}
    far = [name for rivals in by_case(arms) for name in _far_below(rivals, means, margin)]
    drawn = [mean for name, mean in means.items() if name not in far]
    if not drawn:
        return {}
    lowest = min(drawn) - (max(drawn) - min(drawn))
    return {name: -direction for name in far if means[name] < lowest}


def _far_below(rivals: list[ArmSummary], means: dict[str, float], margin: float) -> list[str]:
    """Names of the arms that would squeeze the others of their case, `means` being better when higher."""
    known = [arm.name for arm in rivals if arm.name in means]
    best = max((means[name] for name in known), default=math.nan)
    far = far_out([best - means[name] for name in known], least=margin)
    near = [means[name] for row, name in enumerate(known) if row not in far]
    if not near or max(near) - min(near) <= margin:  # nothing would be squeezed
        return []
    return [known[row] for row in sorted(far)]


def legend_room(names: list[str], least: float) -> float:
    """Height in inches at which the legend of all names fits beside the panels."""
    lines = sum(legend_label(name).count("\n") + 1 for name in names)
    return max(least, 0.12 * lines + 0.05 * len(names) + 0.2)


def compared_by(study: Study, arms: list[ArmSummary]) -> str:
    """What some arms are compared by, in words."""
    return study.compared_by(arm.arm for arm in arms)


def n_seeds(counts: list[int], noun: str = "seed") -> str:
    """``n = 5 seeds.`` or ``n = 3 to 5 seeds.``"""
    fewest, most = min(counts), max(counts)
    return f"n = {q.plural(most, noun)}." if fewest == most else f"n = {fewest} to {q.plural(most, noun)}."


def arms_cut_note(study: Study, arms: list[ArmSummary]) -> str:
    return cut_note((bound for arm in arms for bound in (arm.test.low, arm.test.high)), study.metric.unit)
