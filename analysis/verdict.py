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
from dataclasses import dataclass, replace

import numpy as np

from analysis import quantities as q
from analysis.records import DIVERGED, OK, Arm, Json, Study, Trial
from analysis.sampling import Baselines, SamplingErrors, sampling_errors
from analysis.statistics import (
    Estimate,
    Floats,
    equivalence_test,
    holm,
    minimum_detectable_difference,
    minimum_effect_test,
    paired_differences,
    seeds_to_decide,
    share_that_may_differ,
    t_interval,
    t_test,
)
from analysis.summary import ArmSummary

HELPS, HURTS, EQUIVALENT, UNDECIDED, NO_VERDICT = "helps", "hurts", "equivalent", "undecided", "no verdict"
LESS, MORE = "by less than the margin", "by more than the margin"

MINIMUM_SEEDS = 3
POWER = 0.8
SEED_LIMIT = 200  # beyond this the answer to "how many seeds?" is "too many"


@dataclass(frozen=True)
class Comparison:
    """An arm against its baseline: the paired evidence, the tests, and what follows from them.

    Differences are arm minus baseline in the unit of the metric, whatever direction is better. `interval` is
    at 1 - alpha, `inner` at 1 - 2 alpha, the one that the equivalence test compares with the margin; neither
    is adjusted for the family.
    """

    arm: str
    baseline: str
    seeds: tuple[int, ...]  # finished in both arms
    planned: int  # seeds planned for both arms
    differences: tuple[float, ...]
    interval: Estimate
    inner: Estimate
    p: float
    p_equivalence: float
    p_beyond: float  # that the difference lies within the margin
    diverged_arm: int
    diverged_baseline: int
    unfinished: int  # pairs with a failed, missing or unreadable trial
    mismatched: tuple[int, ...]  # seeds on which the two arms saw different data
    sampling: SamplingErrors
    family_size: int = 1
    p_holm: float = math.nan
    p_equivalence_holm: float = math.nan
    p_beyond_holm: float = math.nan
    word_at_sampling_error: str = NO_VERDICT  # the word, did the seeds differ as their test sets make expect
    minimum_detectable: float = math.nan
    seeds_needed: int | None = None
    word: str = NO_VERDICT
    qualifier: str = ""
    guess: str = ""  # the best one and its value, where neither arm is shown to be better than it
    guessing: bool = False  # both arms are shown not to be
    sentence: str = ""

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def label(self) -> str:
        """The verdict in a table cell."""
        if self.guessing and self.word != NO_VERDICT:
            return f"{self.word} (both guess)"  # however large: a difference of guesses has no size
        if self.identical:
            return f"{self.word} (identical)"
        return {LESS: f"{self.word} (< margin)", MORE: f"{self.word} (> margin)"}.get(
            self.qualifier, self.word
        )

    @property
    def identical(self) -> bool:
        """Whether the arms have the same result on every seed, of enough seeds for a verdict."""
        return self.n >= MINIMUM_SEEDS and not any(self.differences)


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


def _word_on_finished_pairs(comparison: Comparison, study: Study) -> tuple[str, str]:
    estimate = comparison.interval
    if comparison.n < MINIMUM_SEEDS or comparison.mismatched or estimate.sd == 0:
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
    return Comparison(
        arm=arm_name,
        baseline=baseline_name,
        seeds=tuple(a.seed for a, _ in finished),
        planned=len(pairs),
        differences=tuple(float(d) for d in differences),
        interval=t_interval(differences, study.alpha),
        inner=t_interval(differences, 2 * study.alpha),
        **_p_values(differences, study.margin),
        diverged_arm=sum(a.status == DIVERGED for a, _ in pairs),
        diverged_baseline=sum(b.status == DIVERGED for _, b in pairs),
        unfinished=sum(not {a.status, b.status} <= {OK, DIVERGED} for a, b in pairs),
        mismatched=tuple(a.seed for a, b in finished if _fingerprint(a) != _fingerprint(b)),
        sampling=sampling_errors(study, finished, baselines),
    )


def _p_values(differences: Floats, margin: float | None) -> Json:
    return {
        "p": t_test(differences),
        "p_equivalence": math.nan if margin is None else equivalence_test(differences, margin),
        "p_beyond": math.nan if margin is None else minimum_effect_test(differences, margin),
    }


def _at_sampling_error(c: Comparison, study: Study) -> Comparison:
    """The tests, if the seeds differed at least as their test sets alone make expect.

    Test sets that are not the same make seeds differ, so a spread below the sets' sampling error is luck.
    """
    spread = c.interval.sd / math.sqrt(c.n) if c.n else math.nan
    if c.sampling.test_sets == "the same" or not 0 < spread < c.sampling.mean:
        return c
    stretch = c.sampling.mean / spread
    differences = c.interval.mean + stretch * (np.array(c.differences) - c.interval.mean)
    return replace(c, **_p_values(differences, study.margin))


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


def sentence(comparison: Comparison, study: Study, arms: dict[str, ArmSummary]) -> str:
    """The verdict in words: where, what, how much, how sure, at which budget, and what to hold against it."""
    claim = f"{_claim(comparison, study)}{_evidence(comparison, study)}{_budget(comparison, study)}"
    parts = [f"{_where(study, study.arms[comparison.arm])}, {claim}."]
    parts += _consequences(comparison, study)
    parts += _reservations(comparison, study, arms)
    return " ".join(parts)


def _where(study: Study, arm: Arm) -> str:
    """``On digits(canvas=12) in isotropic-nano``, with the metric where that is the case's own."""
    by = f", by {arm.metric}," if arm.metric else ""
    return f"On {study.where(arm)}{by} in {study.skeleton_of(arm)}"


def _budget(comparison: Comparison, study: Study) -> str:
    arm, baseline = (study.arms[name] for name in (comparison.arm, comparison.baseline))
    if arm.budget == baseline.budget:
        return f", at {arm.budget}" if arm.budget else ""
    return f", {arm.label} at {arm.budget} and {baseline.label} at {baseline.budget}"


def _claim(comparison: Comparison, study: Study) -> str:
    c = comparison
    margin = "" if study.margin is None else f"±{q.with_unit(study.margin, study.metric.difference_unit)}"
    if c.word in (HELPS, HURTS):
        preposition = "over" if c.word == HELPS else "relative to"
        how = (
            f", but {c.qualifier} of {margin}"
            if c.qualifier == LESS
            else f", {c.qualifier} of {margin}"
            if c.qualifier
            else ""
        )
        return f"{c.arm} {c.word} {preposition} {c.baseline}{how}"
    if c.word == EQUIVALENT:
        follows = "" if c.guessing else ", so either will do"
        return f"{c.arm} is equivalent to {c.baseline} within {margin}{follows}"
    if c.word == UNDECIDED:
        return f"it is undecided whether {c.arm} helps over {c.baseline}"
    return f"no verdict on {c.arm} against {c.baseline} {_why_none(c)}"


def _why_none(c: Comparison) -> str:
    diverged = _diverged(c)
    if diverged:
        return f"because {diverged} and the seeds that survived are not a fair sample"
    if c.mismatched:
        seeds = q.listing([str(seed) for seed in c.mismatched])
        noun = "seed" if len(c.mismatched) == 1 else "seeds"
        return f"because the two arms saw different data on {noun} {seeds}"
    if c.n < MINIMUM_SEEDS:
        return f"because {q.plural(c.n, 'paired seed')} finished and a verdict takes at least {MINIMUM_SEEDS}"
    if c.identical:
        return "because the results are identical on all seeds: without any spread there is no test"
    return "because the difference is the same on all seeds: without any spread there is no test"


def _diverged(c: Comparison) -> str:
    """``2 of 5 ssm trials diverged``, with the baseline's count where it has one too."""
    planned = c.planned
    counts = [(c.diverged_arm, c.arm), (c.diverged_baseline, c.baseline)]
    return q.listing([f"{n} of {planned} {name} trials diverged" for n, name in counts if n])


def _evidence(c: Comparison, study: Study) -> str:
    """``: +1.32 points [+0.40, +2.24] (95 % t interval, 5 paired seeds, p = 0.012)``."""
    decimals = q.decimals_for(study.margin, study.metric.unit)
    if not c.n:
        return ""
    difference = f": {q.signed(c.interval.mean, decimals)} {study.metric.difference_unit}"
    if c.n < 2:
        return f"{difference} (1 paired seed)"
    bounds = q.interval(c.interval.low, c.interval.high, decimals)
    family = f" after Holm over {c.family_size} comparisons" if c.family_size > 1 else ""
    tests = [f"{q.percent(1 - study.alpha)} t interval", q.plural(c.n, "paired seed")]
    if c.word == EQUIVALENT:
        tests.append(f"equivalence {q.p_equation(c.p_equivalence_holm)}{family}")
    elif math.isfinite(c.p_holm) and c.word != NO_VERDICT:
        tests.append(f"{q.p_equation(c.p_holm)}{family}")
    if c.word in (HELPS, HURTS, UNDECIDED) and not c.qualifier and study.margin is not None:
        tests.append(f"margin ±{q.amount(study.margin)}")
    return f"{difference} {bounds} ({', '.join(tests)})"


def _consequences(c: Comparison, study: Study) -> list[str]:
    """What follows for the reader: how far an undecided comparison is from a decision."""
    if c.word != UNDECIDED:
        return []
    decimals, unit = q.decimals_for(study.margin, study.metric.unit), study.metric.difference_unit
    seeds = f"about {c.seeds_needed}" if c.seeds_needed else f"more than {SEED_LIMIT}"
    following = next(
        (f" The next look is at {look}." for look in study.planned_looks if look > c.planned), ""
    )
    return [
        f"These seeds could detect {q.number(c.minimum_detectable, decimals)} {unit} with "
        f"{q.percent(POWER)} power; {seeds} seeds would decide if the difference and its spread "
        f"stay as they are.{following}"
    ]


def _reservations(c: Comparison, study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    found = []
    if c.word in (HELPS, HURTS) and _diverged(c):
        found.append(f"{_diverged(c)}; the difference is between the seeds that survived.")
    if c.n >= 2 and c.interval.sd == 0:
        found += _no_spread(c, study)
    if c.unfinished and c.word != NO_VERDICT:
        found.append(f"Provisional: {c.n} of {c.planned} planned pairs are finished.")
    if c.sampling.test_sets == "the same" and math.isfinite(c.sampling.mean):
        decimals = q.decimals_for(study.margin, study.metric.unit)
        found.append(
            f"All seeds share one test set, whose own sampling error ({q.number(c.sampling.mean, decimals)} "
            f"{study.metric.difference_unit}, standard error) is not in the interval."
        )
    if c.word in (HELPS, HURTS, EQUIVALENT) and c.word != c.word_at_sampling_error:
        found.append(_luckily_close(c, study))
    if study.margin_after and study.margin is not None:
        found.append(f"The margin was {margin_set(study)}.")
    if c.word != NO_VERDICT:
        found += planned_looks(study) + settled_late([c], study)
    if c.sampling.unreadable:
        found.append(
            f"{c.sampling.unreadable} cannot be read: what the finite test set adds to the error is unknown."
        )
    if c.guess:
        reliably, so = ("", ", so this compares what was not learned") if c.guessing else ("reliably ", "")
        by = "" if study.margin is None else " by more than the margin"
        found.append(f"Neither is {reliably}better than {c.guess}{by}{so}.")
    stopped = [name for name in (c.arm, c.baseline) if arms[name].under_trained]
    if stopped:
        verb = "was" if len(stopped) == 1 else "were"
        found.append(f"{q.listing(stopped)} {verb} still improving when training stopped (under-trained).")
    return found


def planned_looks(study: Study) -> list[str]:
    """That a study is judged more than once, which its level allows for if that was planned in time."""
    if not study.planned_looks:
        return []
    numbers = [str(look) for look in study.planned_looks]
    seeds = f"{', '.join(numbers[:-1])} and {numbers[-1]} seeds"
    level = q.percent(study.alpha)
    if study.looks_after:
        finished = q.plural(study.looks_after, "trial")
        return [
            f"To judge at {seeds}, each time at {level}, was planned when {finished} had already finished: "
            "neither p nor interval allows for what was seen before."
        ]
    return [f"To be judged at {seeds}, until decided, as planned before the run: each time at {level}."]


def settled_late(comparisons: list[Comparison], study: Study) -> list[str]:
    """What was decided of some comparisons when there were results, and no test here allows for."""
    found = []
    families = sorted({c.family_size for c in comparisons if c.family_size < study.comparisons_before})
    if families:
        allowed = q.listing([str(size) for size in families], "or")
        found.append(
            f"Asked with results at hand, from among {study.comparisons_before} comparisons: p allows for "
            f"{allowed}."
        )
    seeds = max((c.planned for c in comparisons), default=0)
    looks = [str(look) for look in study.looks if look < seeds]
    if looks:
        found.append(
            f"Seeds were added after a look at {q.listing(looks)}: neither p nor interval allows for that."
        )
    return found


def margin_set(study: Study) -> str:
    """When the margin was set; a verdict is worth less if it was after there were results."""
    if not study.margin_after:
        return "fixed before the run"
    return f"set when {q.plural(study.margin_after, 'trial')} had already finished"


def _luckily_close(c: Comparison, study: Study) -> str:
    """What the verdict would be if the seeds had differed as their test sets make expect."""
    decimals = q.decimals_for(study.margin, study.metric.unit)
    spread = q.number(c.interval.sd / math.sqrt(c.n), decimals)
    sampling = q.number(c.sampling.mean, decimals)
    return (
        f"The seeds are closer to one another ({spread} {study.metric.difference_unit}, standard error) than "
        f"test sets of this size make expect ({sampling}); with the latter it would be "
        f"{c.word_at_sampling_error}."
    )


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


def _no_spread(c: Comparison, study: Study) -> list[str]:
    """Say what an interval of zero width is worth, and when to suspect that the switch did nothing."""
    found = [
        "The paired results do not vary: the interval is degenerate and says nothing about further seeds."
    ]
    if c.identical:
        level, share = q.percent(1 - study.alpha), share_that_may_differ(c.n, study.alpha)
        found = [f"Up to {100 * share:.0f} % of further seeds may differ ({level} confidence)."]
        if c.sampling.identical_predictions:
            found.append(
                "Both arms predict the same on every example: check that the switch reached the model."
            )
    return found
