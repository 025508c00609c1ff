"""What of a study was settled when there were results already, from its stored plans. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.plan import Plan


@dataclass(frozen=True)
class History:
    """What the tests of a study do not allow for, and so has to be said.

    Attributes:
        margin_after: how many of its trials were finished when its margin was first stored: 0 if it was fixed
            before the run.
        comparisons_before: how many comparisons a family had in a plan with results of which these are a
            part; 0 if there was none.
        looks: numbers of seeds that were planned, and finished, before there were more.
    """

    margin_after: int = 0
    comparisons_before: int = 0
    looks: tuple[int, ...] = ()


def trace(
    planned: Plan,
    own: Mapping[str, Any] | None,
    whole: Mapping[str, Any] | None,
    finished: Callable[[Collection[str]], int],
    *,
    margin_is_fixed: bool,
) -> History:
    """The history of a plan that is about to be stored.

    Args:
        planned: the plan.
        own: what is stored in its place, if anything is.
        whole: the stored plan of its study file as it is, of which it may be a part.
        finished: counts the finished among trials, by their ids.
        margin_is_fixed: whether the margin is that of a file which is not this user's to change.
    """
    stored = [content for content in (own, whole) if content is not None]
    same = [content for content in stored if content.get("margin") == planned.study.margin]
    if same:
        margin_after = int(same[0].get("margin_after", 0))
    elif margin_is_fixed and not stored:
        margin_after = 0
    else:
        margin_after = finished([trial.id for trial in planned.trials()])
    return History(
        margin_after, _comparisons_before(planned, stored, finished), _looks(planned, own, finished)
    )


def _comparisons_before(
    planned: Plan, stored: list[Mapping[str, Any]], finished: Callable[[Collection[str]], int]
) -> int:
    now = _pairs(planned.comparisons()[0])
    for content in stored:
        if _pairs(content["comparisons"]) == now:
            return int(content.get("comparisons_before", 0))
    larger = [
        max(map(len, content["families"]))
        for content in stored
        if _pairs(content["comparisons"]) > now and finished(_trial_ids(content))
    ]
    return max(larger, default=0)


def _pairs(comparisons: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(pair["arm"], pair["baseline"]) for pair in comparisons}


def _looks(
    planned: Plan, own: Mapping[str, Any] | None, finished: Callable[[Collection[str]], int]
) -> tuple[int, ...]:
    if own is None:
        return ()
    looks = set(own.get("looks", ()))
    trials = _trial_ids(own)
    if finished(trials) == len(trials):
        looks.add(max(len(arm["trials"]) for arm in own["arms"]))
    return tuple(sorted(look for look in looks if look < planned.study.seeds))


def _trial_ids(content: Mapping[str, Any]) -> set[str]:
    return {trial["trial_id"] for arm in content["arms"] for trial in arm["trials"]}
