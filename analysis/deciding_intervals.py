"""The intervals that decide: those of a comparison at the levels at which Holm's adjustment judged it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.comparison import Comparison
from analysis.records import Study
from analysis.statistics import Estimate, holm_levels, t_interval


@dataclass(frozen=True)
class DecidingIntervals:
    """`interval` leaves out zero just where the verdict may be "helps" or "hurts"; `inner` lies inside the
    equivalence zone just where it may be "equivalent". Each at the level of its own test.
    """

    interval: Estimate
    inner: Estimate


def deciding_intervals(study: Study, comparisons: Sequence[Comparison]) -> list[DecidingIntervals]:
    """The deciding intervals of all comparisons of a study, in the order of the plan."""
    found = {}
    for family in study.families:
        members = [comparisons[index] for index in family]
        levels = (
            holm_levels([getattr(c, name) for c in members], study.alpha) for name in ("p", "p_equivalence")
        )
        for index, difference, equivalence in zip(family, *levels, strict=True):
            values = comparisons[index].differences
            found[index] = DecidingIntervals(
                t_interval(values, difference), t_interval(values, 2 * equivalence)
            )
    return [found[index] for index in range(len(comparisons))]
