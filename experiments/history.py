"""What of a study was settled when there were results already, from its stored plans. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.trial import canonical_json

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


Stored = Mapping[str, Any]
"""A stored plan."""
CountFinished = Callable[[Collection[str]], int]
"""Counts the finished among trials, by their ids."""


def trace(
    planned: Plan, own: Stored | None, whole: Stored | None, finished: CountFinished, *, margin_is_fixed: bool
) -> History:
    """The history of a plan that is about to be stored.

    Args:
        planned: the plan, its learning rates chosen as far as they can be.
        own: what is stored in its place, if anything is.
        whole: the stored plan of its study file as it is, of which it may be a part.
        finished: counts trials.
        margin_is_fixed: whether the margin is that of a file which is not this user's to change.
    """
    if whole is not None and not _is_of_the_same_trials(planned, whole):
        whole = None
    stored = [content for content in (own, whole) if content is not None]
    same = [content for content in stored if content.get("margin") == planned.study.margin]
    if same:
        margin_after = int(same[0].get("margin_after", 0))
    elif margin_is_fixed and not stored:
        margin_after = 0
    else:
        margin_after = finished([trial.id for trial in planned.trials()])
    stored = [content for content in stored if _is_of_the_same_trials(planned, content)]
    return History(
        margin_after, _comparisons_before(planned, stored, finished), _looks(planned, stored, finished)
    )


def _is_of_the_same_trials(planned: Plan, content: Stored) -> bool:
    """Whether the arms that both have are the same but for their learning rates, which are chosen later."""
    before = {arm["name"]: _without_rate(arm["template"]) for arm in content["arms"]}
    now = {arm.name: _without_rate(arm.template.to_dict()) for arm in planned.arms}
    common = before.keys() & now.keys()
    return bool(common) and all(before[name] == now[name] for name in common)


def _without_rate(template: Mapping[str, Any]) -> str:
    return canonical_json({**template, "train": {**template["train"], "lr": None}})


def _comparisons_before(planned: Plan, stored: list[Stored], finished: CountFinished) -> int:
    now = _pairs(planned.comparisons()[0])
    for content in stored:
        if _pairs(content["comparisons"]) == now:
            return int(content.get("comparisons_before", 0))
    larger = [
        max(map(len, content["families"]))
        for content in stored
        if _pairs(content["comparisons"]) > now and finished(_trial_ids(content["arms"]))
    ]
    return max(larger, default=0)


def _pairs(comparisons: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(pair["arm"], pair["baseline"]) for pair in comparisons}


def _looks(planned: Plan, stored: list[Stored], finished: CountFinished) -> tuple[int, ...]:
    """Those known, and the seeds of a plan that is finished where this one is not."""
    looks = {int(look) for content in stored for look in content.get("looks", ())}
    trials = {trial.id for trial in planned.trials()}
    if finished(trials) == len(trials):
        return tuple(sorted(looks))
    names = {arm.name for arm in planned.arms}
    for content in stored:
        arms = [arm for arm in content["arms"] if arm["name"] in names]
        before = _trial_ids(arms)
        if finished(before) == len(before):
            looks.add(max(len(arm["trials"]) for arm in arms))
    return tuple(sorted(looks))


def _trial_ids(arms: list[dict[str, Any]]) -> set[str]:
    return {trial["trial_id"] for arm in arms for trial in arm["trials"]}
