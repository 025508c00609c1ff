"""A verdict in words, and the sentences on when its rules were settled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis import quantities as q
from analysis.comparison import (
    EQUIVALENT,
    HELPS,
    HURTS,
    LESS,
    NO_VERDICT,
    POWER,
    SEED_LIMIT,
    UNDECIDED,
    Comparison,
)
from analysis.records import Arm, Study
from analysis.statistics import share_that_may_differ
from analysis.summary import ArmSummary
from experiments.trial import LEAST_SEEDS


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
        but = "but " if c.qualifier == LESS else ""
        how = f", {but}{c.qualifier} of {margin}" if c.qualifier else ""
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
        return f"because the two arms saw different data on {q.seeds_listed(c.mismatched)}"
    if c.n < LEAST_SEEDS:
        return f"because {q.plural(c.n, 'paired seed')} finished and a verdict takes at least {LEAST_SEEDS}"
    same = "results are identical" if c.identical else "difference is the same"
    return f"because the {same} on all seeds: without any spread there is no test"


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
        tests.append(f"equivalence {q.p_equation(c.p_equivalence_holm, study.alpha)}{family}")
    elif math.isfinite(c.p_holm) and c.word != NO_VERDICT:
        tests.append(f"{q.p_equation(c.p_holm, study.alpha)}{family}")
    if c.word in (HELPS, HURTS, UNDECIDED) and not c.qualifier and study.margin is not None:
        tests.append(f"margin ±{q.amount(study.margin)}")
    return f"{difference} {bounds} ({', '.join(tests)})"


def _consequences(c: Comparison, study: Study) -> list[str]:
    """What follows for the reader: how far a comparison is from a decision, and when it is judged next."""
    looks = [look for look in study.planned_looks if look > c.planned] if c.is_open else []
    following = f"The next look is at {looks[0]}." if looks else ""
    if c.word != UNDECIDED:
        return [following] if following else []
    decimals, unit = q.decimals_for(study.margin, study.metric.unit), study.metric.difference_unit
    seeds = f"about {c.seeds_needed}" if c.seeds_needed else f"more than {SEED_LIMIT}"
    return [
        f"These seeds could detect {q.number(c.minimum_detectable, decimals)} {unit} with "
        f"{q.percent(POWER)} power; {seeds} seeds would decide if the difference and its spread "
        f"stay as they are. {following}".rstrip()
    ]


def _reservations(c: Comparison, study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    found = []
    if c.word in (HELPS, HURTS) and _diverged(c):
        found.append(f"{_diverged(c)}; the difference is between the seeds that survived.")
    if c.interval.without_spread:
        found += _no_spread(c, study)
    if c.unfinished and c.word != NO_VERDICT:
        found.append(f"Provisional: {c.n} of {c.planned} planned pairs are finished.")
    if c.sampling.test_sets == "the same" and math.isfinite(c.sampling.mean):
        decimals = q.decimals_for(study.margin, study.metric.unit)
        found.append(
            f"All seeds share one test set, whose own sampling error ({q.number(c.sampling.mean, decimals)} "
            f"{study.metric.difference_unit}, standard error) is not in the interval."
        )
    if c.word != c.word_at_sampling_error:  # a larger spread only ever undoes a decision
        found.append(_luckily_close(c, study))
    if study.history.margin_after and study.margin is not None:
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


def what_follows(comparisons: Sequence[Comparison], seeds: int, following: int) -> str:
    """Whether the next planned look is taken, and why.

    Args:
        comparisons: as judged.
        seeds: at which they were.
        following: the number of seeds of the next look.
    """
    left = [c for c in comparisons if c.is_open]
    if left:
        word = "Undecided" if any(c.word == UNDECIDED for c in left) else "No verdict"
        return f"{word} at {q.plural(seeds, 'seed')}: on to the look at {following}, as planned."
    without = [f"{c.arm} against {c.baseline}" for c in comparisons if c.word == NO_VERDICT]
    if without:
        return (
            f"The look at {following} is not taken: further seeds would bring no verdict on "
            f"{q.listing(without)}. --seeds {following} takes it all the same."
        )
    return f"Decided at {q.plural(seeds, 'seed')}: no further look is needed."


def planned_looks(study: Study) -> list[str]:
    """Sentences on judging at several numbers of seeds, which the level allows for if planned in time."""
    level = q.percent(study.alpha)
    late = f"when {q.plural(study.history.looks_after, 'trial')} had already finished"
    unheeded = "neither p nor interval allows for what was seen before"
    if not study.planned_looks:
        once = (
            f"To judge once, at {level}, and not at several numbers of seeds as planned before, was decided"
        )
        return [f"{once} {late}: {unheeded}."] if study.history.looks_after else []
    seeds = f"{q.listing([str(look) for look in study.planned_looks])} seeds"
    if study.history.looks_after:
        return [f"To judge at {seeds}, each time at {level}, was planned {late}: {unheeded}."]
    return [f"To be judged at {seeds}, until decided, as planned before the run: each time at {level}."]


def settled_late(comparisons: list[Comparison], study: Study) -> list[str]:
    """Sentences on what was decided of comparisons when there were results: no test here allows for it."""
    found, history = [], study.history
    if history.metric_after:
        found.append(
            f"What is compared was chosen when {q.plural(history.metric_after, 'trial')} had already "
            "finished: neither p nor interval allows for a choice among metrics."
        )
    families = sorted({c.family_size for c in comparisons if c.family_size < history.comparisons_before})
    if families:
        allowed = q.listing([str(size) for size in families], "or")
        found.append(
            f"Asked with results at hand, from among {history.comparisons_before} comparisons: p allows for "
            f"{allowed}."
        )
    seeds = max((c.planned for c in comparisons), default=0)
    looks = [str(look) for look in history.looks if look < seeds]
    if looks:
        found.append(
            f"Seeds were added after a look at {q.listing(looks)}: neither p nor interval allows for that."
        )
    if history.seeds_before > seeds > 0:
        found.append(
            f"There were results of {history.seeds_before} seeds when these {seeds} were asked for: "
            "neither p nor interval allows for leaving any out."
        )
    return found


def margin_set(study: Study) -> str:
    """When the margin was set; a verdict is worth less if it was after there were results."""
    if not study.history.margin_after:
        return "fixed before the run"
    return f"set when {q.plural(study.history.margin_after, 'trial')} had already finished"


def _luckily_close(c: Comparison, study: Study) -> str:
    """What the verdict would be if the seeds had differed as their test sets make expect."""
    if not c.is_luckily_close:  # but what Holm's adjustment takes for granted here is
        return (
            "By Holm's adjustment this rests on other comparisons as well, and seeds of theirs are closer to "
            "one another than test sets of their size make expect; with the latter it would be "
            f"{c.word_at_sampling_error}."
        )
    decimals = q.decimals_for(study.margin, study.metric.unit)
    return (
        f"The seeds are closer to one another ({q.number(c.standard_error, decimals)} "
        f"{study.metric.difference_unit}, standard error) than test sets of this size make expect "
        f"({q.number(c.sampling.mean, decimals)}); with the latter it would be {c.word_at_sampling_error}."
    )


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
