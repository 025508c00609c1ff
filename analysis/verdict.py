"""From paired records to one word and one sentence per comparison. The rules, in the order of application:

1. *No verdict* unless at least 3 seeds finished in both arms, and unless both arms saw the same data on each
   seed.
2. *Diverged trials.* The seeds that survive are not a fair sample of the seeds that were planned, and what is
   missing is worse than any number. So survivors may only ever count against the arm that diverged: if only
   the arm diverged, "hurts" is allowed and nothing else; if only the baseline did, only "helps"; if both did,
   nothing. Otherwise: no verdict, and the sentence says how many diverged. (Worst-rank reasoning for
   informatively missing outcomes: Lachin 1999.)
3. *helps / hurts*: the two-sided paired t test rejects zero at alpha after Holm's adjustment over the family.
   The word follows the sign and the direction of the metric. A qualifier says how the effect compares with
   the margin: *by less than the margin* if the equivalence test rejects as well (both statements are then
   true: a real but small difference), *by more than the margin* if a t test rejects that it lies within
   (alone in its family: if the whole interval lies beyond the margin), nothing if that is open.
4. *equivalent* (either will do): zero is not rejected and the equivalence test at the margin rejects after
   Holm's adjustment. The three tests are adjusted separately, so that each kind of wrong claim (a difference,
   an equivalence, a difference beyond the margin) has probability at most alpha over the family.
5. *undecided*: neither. The sentence carries the difference that these seeds could have detected, and about
   how many seeds would decide; both are computed at alpha over the size of the family, the worst case of
   Holm's adjustment.

*Both guess.* Where neither arm is shown to be better than the best guess of the task by more than the margin,
the sentence says so, and where both are shown not to be, so does the label: whatever the word, it then
compares what was not learned.

*Seeds that are close by luck.* Seeds with test sets of their own differ at least as the sampling error of
these sets predicts. Where they differ by less, the rules are applied a second time to differences that are
spread as much as that. The word stays; where the second one is another, the sentence names it: also where
that is because Holm's adjustment rests on other comparisons of the family, whose seeds are the close ones.

*What was settled late.* Seeds that are added because of what the first ones gave make wrong claims likelier
than alpha, and so do a margin or a choice of comparisons that was made with results at hand. The plan
remembers them and the sentence says so; nothing is corrected. Looks that were planned before the run are
allowed for: alpha is then the share of each.

*No spread.* If all paired differences are the same, there is no test to be had and no verdict. That they are
all zero, as where both arms solve a task, bounds how many further seeds may differ, and the sentence says
it: with few seeds an arm that fails outright now and then is easily missed.

*Unfinished work.* Failed, missing and unreadable trials are work to be done, not results: the verdict is over
the finished pairs and is called provisional.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from analysis import quantities as q
from analysis.comparison import (
    EQUIVALENT,
    HELPS,
    HURTS,
    LESS,
    MORE,
    NO_VERDICT,
    POWER,
    SEED_LIMIT,
    UNDECIDED,
    Comparison,
)
from analysis.records import DIVERGED, OK, Arm, Study, Trial
from analysis.sampling import Baselines, sampling_errors
from analysis.statistics import (
    Floats,
    equivalence_test,
    holm,
    minimum_detectable_difference,
    minimum_effect_test,
    paired_differences,
    seeds_to_decide,
    t_interval,
    t_test,
)
from analysis.summary import ArmSummary
from analysis.verdict_sentence import sentence
from experiments.trial import LEAST_SEEDS


def judge(study: Study, arms: dict[str, ArmSummary]) -> list[Comparison]:
    """Judge every comparison of the plan, in its order."""
    return pronounce(compare(study), study, arms)


def compare(study: Study) -> list[Comparison]:
    """The numbers of every comparison of the plan, in its order, without verdicts."""
    baselines: Baselines = {}
    compared = [_compare(study, *pair, baselines) for pair in study.comparisons]
    stretched = _adjust([_at_sampling_error(c, study) for c in compared], study.families)
    return [
        replace(comparison, word_at_sampling_error=decide(other, study)[0])
        for comparison, other in zip(_adjust(compared, study.families), stretched, strict=True)
    ]


def pronounce(comparisons: list[Comparison], study: Study, arms: dict[str, ArmSummary]) -> list[Comparison]:
    """The comparisons with their verdicts."""
    judged = []
    for comparison in comparisons:
        alpha = study.alpha / comparison.family_size
        estimate = comparison.interval
        word, qualifier = decide(comparison, study)
        guess, guessing = _guess(comparison, study, arms)
        comparison = replace(
            comparison,
            word=word,
            qualifier=qualifier,
            guess=guess,
            guessing=guessing,
            is_open=_is_open(comparison, study, word),
            minimum_detectable=minimum_detectable_difference(estimate.sd, estimate.n, alpha, POWER),
            seeds_needed=seeds_to_decide(
                estimate.mean, estimate.sd, study.margin, alpha, estimate.n, SEED_LIMIT
            ),
        )
        judged.append(replace(comparison, sentence=sentence(comparison, study, arms)))
    return judged


def decide(comparison: Comparison, study: Study) -> tuple[str, str]:
    """The verdict's word and its qualifier, by the rules at the top of this module."""
    word, qualifier = _word_on_finished_pairs(comparison, study)
    allowed = {HELPS, HURTS, EQUIVALENT, UNDECIDED, NO_VERDICT}
    if comparison.diverged_arm:
        allowed &= {HURTS}
    if comparison.diverged_baseline:
        allowed &= {HELPS}
    # The size of a difference between survivors is not the size of the difference: the qualifier goes.
    if comparison.diverged_arm or comparison.diverged_baseline:
        qualifier = ""
    return (word, qualifier) if word in allowed else (NO_VERDICT, "")


def _is_open(comparison: Comparison, study: Study, word: str) -> bool:
    """Whether further seeds could bring the verdict that is not there yet.

    They cannot where the arms saw different data, where no pair survived, or where a trial diverged and the
    survivors show what a divergence does not let anyone claim.
    """
    if word not in (UNDECIDED, NO_VERDICT) or comparison.mismatched or not comparison.n:
        return False
    if comparison.diverged_arm and comparison.diverged_baseline:
        return False
    return _word_on_finished_pairs(comparison, study)[0] in (UNDECIDED, NO_VERDICT)


def _word_on_finished_pairs(comparison: Comparison, study: Study) -> tuple[str, str]:
    estimate = comparison.interval
    if comparison.n < LEAST_SEEDS or comparison.mismatched or estimate.sd == 0:
        return NO_VERDICT, ""
    within = comparison.p_equivalence_holm <= study.alpha
    if comparison.p_holm <= study.alpha:
        beyond = comparison.p_beyond_holm <= study.alpha
        word = HELPS if estimate.mean * study.metric.direction > 0 else HURTS
        return word, LESS if within else MORE if beyond else ""
    return (EQUIVALENT if within else UNDECIDED), ""


def _compare(study: Study, arm_name: str, baseline_name: str, baselines: Baselines) -> Comparison:
    arm, baseline = study.arms[arm_name], study.arms[baseline_name]
    pairs = list(_pairs(arm, baseline))
    finished = [(a, b) for a, b in pairs if a.status == OK and b.status == OK]
    name = study.metric.name
    differences = paired_differences(
        [a.compared(name) for a, _ in finished], [b.compared(name) for _, b in finished]
    )
    p = _p_values(differences, study.margin)
    return Comparison(
        arm=arm_name,
        baseline=baseline_name,
        seeds=tuple(a.seed for a, _ in finished),
        planned=len(pairs),
        differences=tuple(float(d) for d in differences),
        interval=t_interval(differences, study.alpha),
        inner=t_interval(differences, 2 * study.alpha),
        p=p.difference,
        p_equivalence=p.equivalence,
        p_beyond=p.beyond,
        diverged_arm=sum(a.status == DIVERGED for a, _ in pairs),
        diverged_baseline=sum(b.status == DIVERGED for _, b in pairs),
        unfinished=sum(not {a.status, b.status} <= {OK, DIVERGED} for a, b in pairs),
        mismatched=tuple(a.seed for a, b in finished if _fingerprint(a) != _fingerprint(b)),
        sampling=sampling_errors(study, finished, baselines),
    )


class PValues(NamedTuple):
    """p values of the tests against no difference, a difference beyond the margin, and one within it."""

    difference: float
    equivalence: float
    beyond: float


def _p_values(differences: Floats, margin: float | None) -> PValues:
    return PValues(
        difference=t_test(differences),
        equivalence=math.nan if margin is None else equivalence_test(differences, margin),
        beyond=math.nan if margin is None else minimum_effect_test(differences, margin),
    )


def _at_sampling_error(c: Comparison, study: Study) -> Comparison:
    """The tests, if the seeds differed at least as their test sets alone make expect."""
    if not c.is_luckily_close:
        return c
    stretch = c.sampling.mean / c.standard_error
    differences = c.interval.mean + stretch * (np.array(c.differences) - c.interval.mean)
    p = _p_values(differences, study.margin)
    return replace(c, p=p.difference, p_equivalence=p.equivalence, p_beyond=p.beyond)


def _pairs(arm: Arm, baseline: Arm) -> Iterable[tuple[Trial, Trial]]:
    partner = {trial.seed: trial for trial in baseline.trials}
    return ((trial, partner[trial.seed]) for trial in arm.trials if trial.seed in partner)


def _fingerprint(trial: Trial) -> object:
    return (trial.result.get("data") or {}).get("fingerprint")


def _adjust(comparisons: list[Comparison], families: list[list[int]]) -> list[Comparison]:
    adjusted = list(comparisons)
    for family in families:
        members = [comparisons[index] for index in family]
        difference, equivalence, beyond = (
            holm([getattr(c, name) for c in members]) for name in ("p", "p_equivalence", "p_beyond")
        )
        for member, index in enumerate(family):
            adjusted[index] = replace(
                comparisons[index],
                family_size=len(family),
                p_holm=float(difference[member]),
                p_equivalence_holm=float(equivalence[member]),
                p_beyond_holm=float(beyond[member]),
            )
    return adjusted


def _guess(c: Comparison, study: Study, arms: dict[str, ArmSummary]) -> tuple[str, bool]:
    """The best guess, if neither arm is shown to beat it, and whether both are shown not to.

    To beat it is to be better by more than the margin, since less is nothing by the study's own measure. An
    arm is shown to by its interval, or by all its seeds, however far apart they lie. Of the naive baselines
    a task names the best guess first.
    """
    direction, case = study.metric.direction, study.arms[c.arm].case
    naive = next((each for each in study.baselines if each.case in (None, case)), None)
    if naive is None:
        return "", False
    enough = direction * naive.value + (study.margin or 0.0)
    pair = [arms[name] for name in (c.arm, c.baseline)]
    ends = [sorted((direction * arm.test.low, direction * arm.test.high)) for arm in pair]
    if not all(low <= enough for low, _ in ends):  # NaN: of a single seed
        return "", False
    compared = [arm.arm.compared(study.metric.name).values() for arm in pair]
    if any(min(direction * value for value in values) > enough for values in compared):
        return "", False
    value = q.number(naive.value, q.decimals_for(study.margin, study.metric.unit))
    return f"{naive.name} ({value} {study.metric.unit})", all(high <= enough for _, high in ends)
