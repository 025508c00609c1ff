"""A comparison of two arms: the paired evidence, and the words for what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.sampling import SamplingErrors
from analysis.statistics import Estimate
from experiments.trial import LEAST_SEEDS

HELPS, HURTS, EQUIVALENT, UNDECIDED, NO_VERDICT = "helps", "hurts", "equivalent", "undecided", "no verdict"
LESS, MORE = "by less than the margin", "by more than the margin"

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
    # The word if the seeds spread as much as the test sets' sampling error predicts.
    word_at_sampling_error: str = NO_VERDICT
    minimum_detectable: float = math.nan
    seeds_needed: int | None = None
    word: str = NO_VERDICT
    qualifier: str = ""
    guess: str = ""  # the best one and its value, where neither arm is shown to be better than it
    guessing: bool = False  # both arms are shown to be no better than `guess`
    is_open: bool = False  # nothing is decided, and further seeds could decide it
    sentence: str = ""

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def standard_error(self) -> float:
        """That of the mean difference, by the spread of the seeds; NaN for fewer than two."""
        return self.interval.sd / math.sqrt(self.n) if self.n else math.nan

    @property
    def is_luckily_close(self) -> bool:
        """Whether the seeds are closer to one another than their test sets alone make expect.

        Test sets that are not the same make seeds differ, so a spread below the sets' sampling error is luck.
        """
        return self.sampling.test_sets != "the same" and 0 < self.standard_error < self.sampling.mean

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
        """Whether the arms have the same result on every seed, of enough seeds for a verdict.

        A seed on which one of them diverged is one on which they differ.
        """
        diverged = self.diverged_arm or self.diverged_baseline
        return self.n >= LEAST_SEEDS and not diverged and not any(self.differences)
