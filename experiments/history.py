"""What of a study was settled when there were results already, from its stored plans. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from experiments.trial import canonical_json

Stored = Mapping[str, Any]
"""A plan in the form in which it is stored."""


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

    @classmethod
    def of(cls, content: Stored) -> History:
        """What a stored plan says; nothing, if it was stored by code that did not count."""
        names = [each.name for each in fields(cls) if each.name != "looks"]
        looks = tuple(int(look) for look in content.get("looks") or ())
        return cls(**{name: int(content.get(name) or 0) for name in names}, looks=looks)


CountFinished = Callable[[Collection[str]], int]
"""Counts the finished among trials, by their ids."""
Asked = set[tuple[str, frozenset[str]]]
"""Cases, and the two arms that are compared there: either way round, it is one comparison."""


def trace(
    now: Stored,
    own: Stored | None,
    whole: Stored | None,
    parts: Sequence[Stored],
    finished: CountFinished,
    *,
    fixed: Collection[str],
) -> History:
    """The history of a plan that is about to be stored.

    Args:
        now: the plan, its learning rates chosen as far as they can be.
        own: what is stored in its place, if anything is.
        whole: the stored plan of its study file as it is, of which it may be a part.
        parts: what else was asked of that file and stored.
        finished: counts trials.
        fixed: which of "margin", "metric", "looks" and "comparisons" are those of a file that is not
            this user's to change; "comparisons" also if they are those of the user's own file as it is.
    """
    others = [each for each in (whole, *parts) if each and _has_the_same_arms(now, each)]
    if own is not None and not _has_the_same_arms(now, own):
        own = None
    in_place = [each for each in (own, whole) if each and (each is own or each in others)]
    alike = others if own is None else [own, *others]
    asked_alike = [each for each in alike if _asked(now) & _asked(each)]
    if not now["planned_looks"] and not any(
        each.get("planned_looks") and _has_results(each, finished) for each in asked_alike
    ):
        fixed = {*fixed, "looks"}  # as of any study that says nothing of looks

    # of all seeds that any plan has: those that are not asked for now may have been seen, too
    plans = [_trials(each) for each in (now, *alike)]
    trials = {name: set().union(*(plan.get(name, ()) for plan in plans)) for name in _trials(now)}

    def set_after(what: str, is_same: Callable[[Stored, Stored], bool]) -> int:
        """How many trials were finished of arms that no stored plan with the same setting had before."""
        after = f"{what}_after"
        same_in_place = [each for each in in_place if is_same(now, each)]
        known = next((getattr(History.of(each), after) for each in same_in_place), 0)
        if known or (what in fixed and len(same_in_place) == len(in_place)):
            return known
        early = [each for each in alike if is_same(now, each) and not getattr(History.of(each), after)]
        early_arms = trials.keys() & {name for each in early for name in _trials(each)}
        return finished(set().union(*trials.values()).difference(*(trials[name] for name in early_arms)))

    looks_after = set_after("looks", _has_the_same_looks)
    if own is not None and _asks_for_the_same_seeds(now, own):  # before what there is by now
        looks, seeds_before = History.of(own).looks, History.of(own).seeds_before
    else:
        looks = _looks(now, asked_alike, finished, in_time=not looks_after)
        seeds_before = _seeds_before(now, asked_alike, finished)
    return History(
        margin_after=set_after("margin", _has_the_same_margin),
        metric_after=set_after("metric", _is_measured_alike),
        comparisons_before=_comparisons_before(now, own, [] if "comparisons" in fixed else others, finished),
        looks=looks,
        looks_after=looks_after,
        seeds_before=seeds_before,
    )


def _trials(content: Stored) -> dict[str, list[str]]:
    """The trials of each arm by their ids, seed by seed."""
    return {arm["name"]: [trial["trial_id"] for trial in arm["trials"]] for arm in content["arms"]}


def _trial_ids(content: Stored) -> set[str]:
    return set().union(*_trials(content).values())


def _asked(content: Stored) -> Asked:
    cases = {arm["name"]: arm.get("case") or "" for arm in content["arms"]}
    return {
        (cases[pair["arm"]], frozenset((pair["arm"], pair["baseline"]))) for pair in content["comparisons"]
    }


def _in_common(now: Stored, content: Stored, part: Callable[[Stored], Any]) -> list[tuple[Any, Any]]:
    """A part of every arm that both have, as it is in each."""
    one, other = ({arm["name"]: part(arm) for arm in each["arms"]} for each in (now, content))
    return [(one[name], other[name]) for name in one.keys() & other.keys()]


def _has_the_same_arms(now: Stored, content: Stored) -> bool:
    """Whether the arms that both have are the same but for their learning rates, which are chosen later."""
    common = _in_common(now, content, lambda arm: _without_rate(arm["template"]))
    return bool(common) and all(one == other for one, other in common)


def _without_rate(template: Mapping[str, Any]) -> str:
    return canonical_json({**template, "train": {**template["train"], "lr": None}})


def _has_the_same_margin(now: Stored, content: Stored) -> bool:
    return bool(content.get("margin") == now["margin"])


def _has_the_same_looks(now: Stored, content: Stored) -> bool:
    return bool(content.get("planned_looks", []) == now["planned_looks"])


def _asks_for_the_same_seeds(now: Stored, content: Stored) -> bool:
    """Whether a stored plan asks for as many of all comparisons, to be judged at the same looks."""
    one, other = ({len(trials) for trials in _trials(each).values()} for each in (now, content))
    return one == other and _asked(now) <= _asked(content) and _has_the_same_looks(now, content)


def _is_measured_alike(now: Stored, content: Stored) -> bool:
    """Whether the same number is compared in every arm that both have."""
    common = _in_common(now, content, lambda arm: arm.get("metric"))
    return content["metric"]["name"] == now["metric"]["name"] and all(one == other for one, other in common)


def _has_results(content: Stored, finished: CountFinished) -> bool:
    """Whether any difference can be told; a baseline alone, which many plans have in common, tells none."""
    known = {name for name, ids in _trials(content).items() if any(finished([trial]) for trial in ids)}
    return any(pair <= known for _, pair in _asked(content))


def _are_finished(trials: Collection[str], finished: CountFinished) -> bool:
    return finished(set(trials)) == len(set(trials))


def _comparisons_before(
    now: Stored, own: Stored | None, others: Sequence[Stored], finished: CountFinished
) -> int:
    """As in `History`; what was asked before there were results of more was not chosen, and stays so."""
    asked = _asked(now)
    before = [each for each in (own, *others) if each is not None]
    for content in before:
        if _asked(content) == asked:
            return History.of(content).comparisons_before
    # What a file asks in another's place may be the same under a new name: of its own, only more counts.
    counted = [each for each in before if each is not own or _asked(each) > asked]
    results = (_asked(each) for each in counted if _has_results(each, finished))
    cases = Counter(case for case, _ in asked.union(*results))
    largest = max((cases[case] for case, _ in asked), default=0)
    family = max(map(len, now["families"]), default=0)
    stored = 0 if own is None else History.of(own).comparisons_before
    return max(stored, largest) if largest > family else stored


def _looks(now: Stored, stored: list[Stored], finished: CountFinished, *, in_time: bool) -> tuple[int, ...]:
    """Those known, and the seeds of a plan of fewer that is finished where this one is not.

    The level of looks that were planned in time allows for each of them, whichever plan has its seeds.
    """
    allowed = set(now["planned_looks"]) if in_time else set()
    known = [History.of(content) for content in stored]
    looks = {look for each in known for look in (*each.looks, each.seeds_before) if look} - allowed
    if _are_finished(_trial_ids(now), finished):
        return tuple(sorted(looks))
    arms = _trials(now)
    for content in stored:
        before = [ids for name, ids in _trials(content).items() if name in arms]
        seeds = len(before[0])
        expected = _looks_as_planned(now, content) and seeds in now["planned_looks"]
        fewer = seeds < max(map(len, arms.values())) and seeds not in allowed and not expected
        if fewer and _are_finished(set().union(*before), finished):
            looks.add(seeds)
    return tuple(sorted(looks))


def _looks_as_planned(now: Stored, content: Stored) -> bool:
    """Whether a stored plan is to be judged at the same numbers of seeds: the level allows for all."""
    return bool(now["planned_looks"]) and _has_the_same_looks(now, content)


def _seeds_before(now: Stored, stored: list[Stored], finished: CountFinished) -> int:
    """As in `History`: whoever leaves seeds out may leave out those that he would rather not have."""
    asked = max(map(len, _trials(now).values()))
    found = [History.of(content).seeds_before for content in stored]
    for content in stored:
        trials = _trials(content)
        if _looks_as_planned(now, content):
            continue
        for pair in (pair for _, pair in _asked(now) if pair <= trials.keys()):
            by_seed = zip(*(trials[name] for name in pair), strict=True)
            found += [n for n, both in enumerate(by_seed, 1) if n > asked and _are_finished(both, finished)]
    return max((seeds for seeds in found if seeds > asked), default=0)
