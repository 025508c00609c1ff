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
        metric_after: as `margin_after`, of what is compared.
        comparisons_before: how many comparisons of a case had been asked, these among them, when there were
            results of more than these; 0 if there were none.
        looks: numbers of seeds that were asked for, and finished, before there were more, but for those at
            which the study was to be judged from the start.
        looks_after: as `margin_after`, of the numbers of seeds at which it is to be judged; where that is one
            number only, 0 unless it was to be judged at several before.
        seeds_before: of how many seeds there were results when fewer were asked for; 0 if of no more.
    """

    margin_after: int = 0
    metric_after: int = 0
    comparisons_before: int = 0
    looks: tuple[int, ...] = ()
    looks_after: int = 0
    seeds_before: int = 0


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
        parts: what else was asked of that file and stored.
        finished: counts trials.
        fixed: which of "margin", "metric", "looks" and "comparisons" are those of a file that is not
            this user's to change; "comparisons" also if they are those of the user's own file as it is.
    """
    others = [content for content in (whole, *parts) if content and _is_of_the_same_trials(planned, content)]
    if own is not None and not _is_of_the_same_trials(planned, own):
        own = None
    in_place = [content for content in (own, whole) if content and (content is own or content in others)]
    alike = others if own is None else [own, *others]
    asked_alike = [content for content in alike if _asked_of(planned) & _asked_in(content)]
    looks = list(planned.study.looks)
    several = [content for content in asked_alike if content.get("planned_looks")]
    if not looks and not any(_has_results(content, finished) for content in several):
        fixed = {*fixed, "looks"}  # as of any study that says nothing of looks

    most_seeds = max([planned.study.seeds, *(len(arm["trials"]) for each in alike for arm in each["arms"])])
    trials = {arm.name: {arm.trial(seed).id for seed in range(most_seeds)} for arm in planned.arms}

    def set_after(key: str, after: str, is_same: Callable[[Stored], bool]) -> int:
        """How many trials were finished of arms that no stored plan with the same setting had before."""
        same_in_place = [content for content in in_place if is_same(content)]
        known = next((int(content.get(after, 0)) for content in same_in_place), 0)
        if known or (key in fixed and len(same_in_place) == len(in_place)):
            return known
        early = [content for content in alike if is_same(content) and not content.get(after)]
        early_arms = {arm["name"] for content in early for arm in content["arms"]} & trials.keys()
        return finished(set().union(*trials.values()).difference(*(trials[name] for name in early_arms)))

    return History(
        set_after("margin", "margin_after", lambda content: content.get("margin") == planned.study.margin),
        set_after("metric", "metric_after", lambda content: _is_measured_alike(planned, content)),
        _comparisons_before(planned, own, [] if "comparisons" in fixed else others, finished),
        _looks(planned, asked_alike, finished),
        set_after("looks", "looks_after", lambda content: content.get("planned_looks", []) == looks),
        _seeds_before(planned, asked_alike, finished),
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
    now, family = _asked_of(planned), len(planned.study.all_comparisons())
    before = [content for content in (own, *others) if content is not None]
    for content in before:
        if _asked_in(content) == now:
            return int(content.get("comparisons_before", 0))
    # What a file asks in another's place may be the same under a new name: of its own, only more counts.
    counted = [content for content in before if content is not own or _asked_in(content) > now]
    results = (_asked_in(content) for content in counted if _has_results(content, finished))
    cases = Counter(case for case, _ in now.union(*results))
    largest = max((cases[case] for case, _ in now), default=0)
    stored = 0 if own is None else int(own.get("comparisons_before", 0))
    return max(stored, largest) if largest > family else stored


Asked = set[tuple[str, frozenset[str]]]
"""Cases, and the two arms that are compared there: either way round, it is one comparison."""


def _asked(comparisons: Iterable[Mapping[str, str]], cases: Mapping[str, str]) -> Asked:
    """What is compared, given the case of each arm."""
    return {(cases[pair["arm"]], frozenset((pair["arm"], pair["baseline"]))) for pair in comparisons}


def _asked_of(planned: Plan) -> Asked:
    return _asked(planned.comparisons()[0], {arm.name: arm.case for arm in planned.arms})


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
    looks |= {int(content.get("seeds_before", 0)) for content in stored} - {0}
    trials = {trial.id for trial in planned.trials()}
    if finished(trials) == len(trials):
        return tuple(sorted(looks))
    names = {arm.name for arm in planned.arms}
    for content in stored:
        arms = [arm for arm in content["arms"] if arm["name"] in names]
        before, seeds = _trial_ids(arms), len(arms[0]["trials"])
        expected = _looks_as_planned(planned, content) and seeds in planned.study.looks
        if finished(before) == len(before) and not expected:
            looks.add(seeds)
    return tuple(sorted(looks))


def _looks_as_planned(planned: Plan, content: Stored) -> bool:
    """Whether a stored plan is to be judged at the same numbers of seeds: the level allows for all."""
    return bool(planned.study.looks) and content.get("planned_looks") == list(planned.study.looks)


def _seeds_before(planned: Plan, stored: list[Stored], finished: CountFinished) -> int:
    """As in `History`: whoever leaves seeds out may leave out those that he would rather not have."""
    pairs = {frozenset((pair["arm"], pair["baseline"])) for pair in planned.comparisons()[0]}
    asked = planned.study.seeds
    found = [int(content.get("seeds_before", 0)) for content in stored]
    for content in stored:
        trials = {arm["name"]: [trial["trial_id"] for trial in arm["trials"]] for arm in content["arms"]}
        found += [
            seed + 1
            for pair in pairs
            if pair <= trials.keys() and not _looks_as_planned(planned, content)
            for seed, both in enumerate(zip(*(trials[name] for name in pair), strict=True))
            if seed >= asked and all(finished([trial]) for trial in both)
        ]
    return max((seeds for seeds in found if seeds > asked), default=0)


def _trial_ids(arms: list[dict[str, Any]]) -> set[str]:
    return {trial["trial_id"] for arm in arms for trial in arm["trials"]}


def _is_measured_alike(planned: Plan, content: Stored) -> bool:
    """Whether the same number is compared in every arm that both have."""
    own = {arm["name"]: arm.get("metric") for arm in content["arms"]}
    return content["metric"]["name"] == planned.details["metric"]["name"] and all(
        own[arm.name] == arm.metric for arm in planned.arms if arm.name in own
    )
