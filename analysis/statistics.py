"""Statistics of paired comparisons: pure functions on arrays with their formulas, and known methods' sources.

Words: one *pair* is one seed trained with both arms on the same split, order and augmentation; ``d_i`` is the
difference (arm minus baseline) of pair ``i``; ``n`` pairs have mean ``m`` and standard deviation ``s =
sqrt(sum (d_i - m)^2 / (n - 1))``. Where the data cannot support a number (n < 2, or no spread at all) the
answer is NaN, or None for a number of seeds, and never an exception; those named under Raises are for
arguments that make no sense.

Why Student-t and not the bootstrap or a rank test: with the 3 to 10 seeds that people can afford, percentile
and BCa intervals cover 70 to 90 % instead of 95 %, and the signed-rank test cannot reach p < 0.05 below 6
pairs. The t interval covers its nominal level for normal differences at every n
(`tests/analysis/test_calibration.py` holds this).

What the interval is about: further seeds. A seed draws initial values, order and augmentation and, in tasks
that have one pool of examples, how it is split. Its spread then holds only part of what other examples would
change, and seeds that share training examples are closer to one another than new data would be (Nadeau and
Bengio 2003). `pooled_sampling_error` says how large the test set's part is.

Only `scipy.special` is imported: `scipy.stats` costs a second of start-up and serves as the oracle in the
tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

# Relative size below which a difference of two recorded metrics is rounding noise of the arithmetic, not a
# result.
ROUNDING = 1e-10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values, their standard deviation, a t interval for the mean. NaN where `n` is too small."""

    n: int
    mean: float
    sd: float
    low: float
    high: float

    @property
    def without_spread(self) -> bool:
        """Whether all of several values are equal: the interval is degenerate and says nothing."""
        return self.n > 1 and self.sd == 0


def paired_differences(arm: ArrayLike, baseline: ArrayLike) -> Floats:
    """``d_i = arm_i - baseline_i`` over the pairs in which both values are finite.

    Differences at the level of floating-point rounding (1e-10 of the values) become exactly zero, so that
    identical results are recognised as identical.

    Raises:
        ValueError: the two arrays differ in length, so they cannot be paired.
    """
    a, b = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"paired values must be two vectors of one length, got shapes {a.shape} and {b.shape}"
        )
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    difference = a - b
    difference[np.abs(difference) <= ROUNDING * np.maximum(np.abs(a), np.abs(b))] = 0.0
    return np.asarray(difference, dtype=float)


def standard_deviation(values: ArrayLike) -> float:
    """Sample standard deviation (divisor n - 1); NaN for n < 2; exactly 0 if equal up to rounding."""
    x = np.asarray(values, dtype=float)
    if x.size < 2:
        return math.nan
    sd = float(x.std(ddof=1))
    return 0.0 if sd <= ROUNDING * float(np.abs(x).max()) else sd


def t_interval(values: ArrayLike, alpha: float = 0.05) -> Estimate:
    """Student's interval for the mean: ``m ± t(1 - alpha/2, n - 1) s / sqrt(n)`` (Student 1908).

    Needs n >= 2; with n = 1 only the mean is known. When all values are equal the interval is degenerate
    (zero width), which says nothing about further seeds: callers must say so.
    """
    x = np.asarray(values, dtype=float)
    n, sd = x.size, standard_deviation(x)
    mean = float(x.mean()) if n else math.nan
    if n < 2:
        return Estimate(n, mean, sd, math.nan, math.nan)
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def t_test(values: ArrayLike) -> float:
    """Two-sided p of ``mean = 0``: ``2 F(-|m| sqrt(n) / s; n - 1)`` (Student 1908). NaN if n < 2 or s = 0."""
    return _two_sided(values, 0.0)


def equivalence_test(values: ArrayLike, margin: float) -> float:
    """Two one-sided t tests of ``|mean| >= margin``: the larger p value (TOST; Schuirmann 1987, Lakens 2017).

    ``p = max(F(-(m + margin) sqrt(n) / s), F((m - margin) sqrt(n) / s))`` with n - 1 degrees of freedom.
    Rejecting at alpha is the same as the (1 - 2 alpha) t interval lying inside (-margin, margin). NaN for n <
    2 or s = 0.

    Raises:
        ValueError: the margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"the equivalence margin must be positive, got {margin}")
    x = np.asarray(values, dtype=float)
    sd = standard_deviation(x)
    if not sd > 0:
        return math.nan
    error, df = sd / math.sqrt(x.size), x.size - 1
    return float(max(stdtr(df, -(x.mean() + margin) / error), stdtr(df, (x.mean() - margin) / error)))


def minimum_effect_test(values: ArrayLike, margin: float) -> float:
    """Two-sided t test of ``|mean| <= margin``: ``2 F(-(|m| - margin) sqrt(n) / s; n - 1)``, at most 1.

    Rejecting at alpha is the same as the (1 - alpha) t interval lying beyond the margin on one side (a
    minimum-effect test; Murphy and Myors 1999). NaN for n < 2 or s = 0.

    Raises:
        ValueError: the margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"the margin must be positive, got {margin}")
    return _two_sided(values, margin)


def _two_sided(values: ArrayLike, margin: float) -> float:
    x = np.asarray(values, dtype=float)
    sd = standard_deviation(x)
    if not sd > 0:
        return math.nan
    beyond = abs(float(x.mean())) - margin
    return min(1.0, float(2 * stdtr(x.size - 1, -beyond * math.sqrt(x.size) / sd)))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment: ``p~_(i) = max_{j <= i} min(1, (k - j + 1) p_(j))``, sorted p (Holm 1979).

    Undefined p values (NaN) stay NaN but count in k: the family is what was planned, not what happened to
    finish.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")  # NaN last
    scaled = np.minimum(1.0, p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    adjusted[np.isnan(p)] = math.nan
    return adjusted


def holm_levels(p_values: ArrayLike, alpha: float = 0.05) -> Floats:
    """The level at which Holm's method judges each p value: ``alpha / (k - i + 1)`` for the i-th smallest.

    It stops at the first that is not rejected, and all that follow are held to the level of that step (Holm
    1979). So a p value is rejected if and only if it is at most its level, and intervals at these levels
    decide as the adjusted p values do. They show the decision; all of them together need not cover at
    1 - alpha (regions that do: Guilbaud 2008).
    """
    p = np.asarray(p_values, dtype=float)
    rejected = np.count_nonzero(holm(p) <= alpha)
    levels = np.empty_like(p)
    levels[np.argsort(p, kind="stable")] = alpha / (p.size - np.minimum(np.arange(p.size), rejected))
    return levels


def minimum_detectable_difference(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest true difference that the two-sided paired t test finds with probability `power`, unit of `sd`.

    ``delta sd / sqrt(n)`` where the non-central t distribution with non-centrality ``delta`` and n - 1
    degrees of freedom puts `power` beyond the critical value (Cohen 1988, ch. 2). The chance of rejecting in
    the wrong direction, below 1e-5 at 80 % power from n = 3 on, is left out. NaN for n < 2 or sd = 0.
    """
    if n < 2 or not sd > 0:
        return math.nan
    critical = stdtrit(n - 1, 1 - alpha / 2)
    return float(nctdtrinc(n - 1, 1 - power, critical)) * sd / math.sqrt(n)


def share_that_may_differ(n: int, alpha: float) -> float:
    """The largest share of seeds that can differ when none of `n` did, with confidence 1 - alpha.

    Clopper and Pearson's (1934) upper bound for no event in n, ``1 - alpha^(1/n)``: about 3 / n at 95 %. NaN
    for n < 1.
    """
    if n < 1:
        return math.nan
    return 1.0 - float(alpha ** (1.0 / n))


def seeds_to_decide(
    mean: float, sd: float, margin: float | None, alpha: float, more_than: int, limit: int
) -> int | None:
    """Smallest n at which the observed mean and sd would decide, either way.

    Looked for from the first n above `more_than`, the seeds that there are and that did not decide, but at
    least 3, up to `limit`; None if none of these would, or if there is no spread.

    Decided means that the (1 - alpha) interval excludes zero, ``|m| > t(1 - alpha/2, n - 1) s / sqrt(n)``, or
    that the equivalence test succeeds, ``margin - |m| > t(1 - alpha, n - 1) s / sqrt(n)``. This is a plug-in
    estimate, so it has about even odds of being enough: it says whether more seeds are worth their cost, not
    how many to promise.
    """
    if not (math.isfinite(mean) and sd > 0):
        return None
    n = np.arange(max(more_than + 1, 3), limit + 1)
    error = sd / np.sqrt(n)
    decided = abs(mean) > stdtrit(n - 1, 1 - alpha / 2) * error
    if margin is not None:
        decided |= margin - abs(mean) > stdtrit(n - 1, 1 - alpha) * error
    return int(n[np.argmax(decided)]) if decided.any() else None


@dataclass(frozen=True, eq=False)
class Scored:
    """The targets of a test split that are scored, laid out once for all models that answered it.

    Attributes:
        example: identity of each test example, (N,).
        targets: scored targets per example, (N,); 1 for classification.
        places: of each scored target among all, (K,).
        values: the class of each scored target, (K,).
        rows: of each scored target its example's place in `example`, (K,).
        size: targets in all, scored or not.
    """

    example: NDArray[np.int64]
    targets: Floats
    places: NDArray[np.intp]
    values: NDArray[np.int64]
    rows: NDArray[np.intp]
    size: int

    @classmethod
    def of(cls, example: ArrayLike, target: ArrayLike, ignore_index: int = -100) -> Scored:
        """Class indices of shape (N,) or (N, L); those equal to `ignore_index` are not scored."""
        t = np.asarray(target)
        t = t.reshape(t.shape[0], -1)
        places = np.flatnonzero(t != ignore_index)
        rows = places // max(t.shape[1], 1)
        targets = np.bincount(rows, minlength=len(t)).astype(float)
        return cls(np.asarray(example, dtype=np.int64), targets, places, t.ravel()[places], rows, t.size)

    def right(self, prediction: ArrayLike) -> Floats:
        """How many targets of each example a model got right, (N,).

        Raises:
            ValueError: these are not predictions of these targets.
        """
        p = np.asarray(prediction)
        if p.size != self.size:
            raise ValueError(f"{p.size} predictions do not answer {self.size} targets")
        right = p.ravel()[self.places] == self.values
        return np.bincount(self.rows[right], minlength=len(self.targets)).astype(float)


@dataclass(frozen=True)
class ExampleScores:
    """Per-example comparison of two models on one test split, the input of the sampling error.

    Attributes:
        scored: the targets of the split.
        balance: targets that only the arm got right minus those that only the baseline got right, (N,).
    """

    scored: Scored
    balance: Floats

    @property
    def difference(self) -> float:
        """Difference in accuracy, as a fraction: sum of the balances over the number of targets."""
        targets = self.scored.targets.sum()
        return float(self.balance.sum() / targets) if targets else math.nan


def sampling_error(scores: ExampleScores) -> float:
    """Standard error of one seed's accuracy difference that comes from the finite test set, as a fraction.

    ``sqrt(sum_e (b_e - g_e D)^2) / sum_e g_e`` with balance b, targets g and difference D. With one target
    per example this is McNemar's variance, ``sqrt((n10 + n01) / N^2 - (n10 - n01)^2 / N^3)`` (McNemar 1947;
    Agresti 2013, sec. 11.1): agreement between the two models, right or wrong, cancels.
    """
    return pooled_sampling_error([scores])


def pooled_sampling_error(seeds: Sequence[ExampleScores]) -> float:
    """Test-set standard error of the difference averaged over seeds, as a fraction.

    An example that is in the test split of several seeds counts as one draw: its residuals are added over
    seeds before they are squared (cluster-robust variance, Liang and Zeger 1986). Disjoint test sets
    therefore average the error down by sqrt(n); one fixed test set does not average it down at all.
    """
    if not seeds or not all(s.scored.places.size for s in seeds):
        return math.nan
    residual = np.concatenate(
        [(s.balance - s.scored.targets * s.difference) / (s.scored.places.size * len(seeds)) for s in seeds]
    )
    cluster = _clusters(tuple(s.scored for s in seeds))
    return math.sqrt(float((np.bincount(cluster, weights=residual) ** 2).sum()))


@lru_cache(maxsize=256)
def _clusters(splits: tuple[Scored, ...]) -> NDArray[np.intp]:
    """A number for each example of each split, the same where it is the same example.

    Remembered, because all arms of a study that share a baseline share its splits.
    """
    return np.unique(np.concatenate([split.example for split in splits]), return_inverse=True)[1]


def late_window(epochs: int, fraction: float) -> int:
    """How many epochs the last `fraction` of all is: rounded up, at least 2."""
    return max(2, math.ceil(fraction * epochs))


def late_rise(curves: ArrayLike, fraction: float) -> Floats:
    """How much each curve rose at its end: mean of its last `fraction` minus mean of as many epochs before.

    `curves` is (seeds, epochs). With fewer than 4 epochs the answer is NaN: two epochs against two is the
    least that can be called a trend.
    """
    x = np.atleast_2d(np.asarray(curves, dtype=float))
    epochs = x.shape[1]
    if epochs < 4:
        return np.full(x.shape[0], math.nan)
    window = late_window(epochs, fraction)
    return np.asarray(x[:, -window:].mean(axis=1) - x[:, -2 * window : -window].mean(axis=1), dtype=float)
