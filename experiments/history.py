"""What of a study was settled when there were results already, from its stored plans. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
        comparisons_before: how many comparisons of a case had been asked, these among them, when there were
            results of more than these; 0 if there were none.
        looks: numbers of seeds that were asked for, and finished, before there were more, but for those at
            which the study was to be judged from the start.
        looks_after: as `margin_after`, of the numbers of seeds at which it is to be judged.
    """

    margin_after: int = 0
    comparisons_before: int = 0
    looks: tuple[int, ...] = ()
    looks_after: int = 0


Stored = Mapping[str, Any]
"""A stored plan."""
CountFinished = Callable[[Collection[str]], int]
"""Counts the finished among trials, by their ids."""


def trace(
    planned: Plan,
    own: Stored | None,
    whole: Stored | None,
    parts: Sequence[Stored],
    finished: CountFinished,
    *,
    fixed: Collection[str],
) -> History:
    """The history of a plan that is about to be stored.

    Args:
        planned: the plan, its learning rates chosen as far as they can be.
        own: what is stored in its place, if anything is.
        whole: the stored plan of its study file as it is, of which it may be a part.
        parts: what else was asked of that file and stored; empty for the file as it is.
        finished: counts trials.
        fixed: which of "margin" and "planned_looks" are those of a file that is not this user's to change.
    """
    if whole is not None and not _is_of_the_same_trials(planned, whole):
        whole = None
    stored = [content for content in (own, whole) if content is not None]

    def set_after(key: str, value: Any, after: str) -> int:
        same = [content for content in stored if (content.get(key) or None) == value]
        if same:
            return int(same[0].get(after, 0))
        if key in fixed and not stored:
            return 0
        return finished([trial.id for trial in planned.trials()])

    if own is not None and not _is_of_the_same_trials(planned, own):
        own = None
    others = [content for content in (whole, *parts) if content and _is_of_the_same_trials(planned, content)]
    return History(
        set_after("margin", planned.study.margin, "margin_after"),
        _comparisons_before(planned, own, others, finished),
        _looks(planned, [content for content in (own, whole) if content is not None], finished),
        set_after("planned_looks", list(planned.study.looks) or None, "looks_after"),
    )


def _is_of_the_same_trials(planned: Plan, content: Stored) -> bool:
    """Whether the arms that both have are the same but for their learning rates, which are chosen later."""
    before = {arm["name"]: _without_rate(arm["template"]) for arm in content["arms"]}
    now = {arm.name: _without_rate(arm.template.to_dict()) for arm in planned.arms}
    common = before.keys() & now.keys()
    return bool(common) and all(before[name] == now[name] for name in common)


def _without_rate(template: Mapping[str, Any]) -> str:
    return canonical_json({**template, "train": {**template["train"], "lr": None}})


def _comparisons_before(
    planned: Plan, own: Stored | None, others: Sequence[Stored], finished: CountFinished
) -> int:
    """As in `History`; what was asked before there were results of more was not chosen, and stays so."""
    pairs, families = planned.comparisons()
    now = _asked(pairs, {arm.name: arm.case for arm in planned.arms})
    before = [content for content in (own, *others) if content is not None]
    for content in before:
        if _asked_in(content) == now:
            return int(content.get("comparisons_before", 0))
    # What a file asks in another's place may be the same under a new name: of its own, only more counts.
    counted = [content for content in before if content is not own or _asked_in(content) > now]
    results = (_asked_in(content) for content in counted if _has_results(content, finished))
    cases = Counter(case for case, _ in now.union(*results))
    largest = max((cases[case] for case, _ in now), default=0)
    family = max(map(len, families), default=0)
    stored = 0 if own is None else int(own.get("comparisons_before", 0))
    return max(stored, largest) if largest > family else stored


Asked = set[tuple[str, frozenset[str]]]
"""Cases, and the two arms that are compared there: either way round, it is one comparison."""


def _asked(comparisons: Iterable[Mapping[str, str]], cases: Mapping[str, str]) -> Asked:
    """What is compared, given the case of each arm."""
    return {(cases[pair["arm"]], frozenset((pair["arm"], pair["baseline"]))) for pair in comparisons}


def _asked_in(content: Stored) -> Asked:
    return _asked(content["comparisons"], {arm["name"]: arm.get("case") or "" for arm in content["arms"]})


def _has_results(content: Stored, finished: CountFinished) -> bool:
    """Whether any difference can be told; a baseline alone, which many plans have in common, tells none."""
    trials = {arm["name"]: [trial["trial_id"] for trial in arm["trials"]] for arm in content["arms"]}
    known = {name for name, ids in trials.items() if any(finished([trial]) for trial in ids)}
    return any({pair["arm"], pair["baseline"]} <= known for pair in content["comparisons"])


def _looks(planned: Plan, stored: list[Stored], finished: CountFinished) -> tuple[int, ...]:
    """Those known, and the seeds of a plan that is finished where this one is not."""
    looks = {int(look) for content in stored for look in content.get("looks", ())}
    trials = {trial.id for trial in planned.trials()}
    if finished(trials) == len(trials):
        return tuple(sorted(looks))
    names = {arm.name for arm in planned.arms}
    for content in stored:
        arms = [arm for arm in content["arms"] if arm["name"] in names]
        before, seeds = _trial_ids(arms), max(len(arm["trials"]) for arm in arms)
        expected = seeds in planned.study.looks and content.get("planned_looks") == list(planned.study.looks)
        if finished(before) == len(before) and not expected:
            looks.add(seeds)
    return tuple(sorted(looks))


def _trial_ids(arms: list[dict[str, Any]]) -> set[str]:
    return {trial["trial_id"] for arm in arms for trial in arm["trials"]}
