"""Each statistic against an independent implementation, and its edges by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats
from scipy.integrate import quad
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from analysis import statistics as st

SIZES = (2, 3, 5, 12, 40)


def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    baseline = 96 + rng.normal(0, 0.8, n)
    return baseline + 0.4 + rng.normal(0, 0.5, n), baseline


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.01])
def test_t_interval_is_scipys(n: int, alpha: float) -> None:
    arm, baseline = pairs(n)
    ours = st.t_interval(st.paired_differences(arm, baseline), alpha)
    theirs = stats.ttest_rel(arm, baseline).confidence_interval(1 - alpha)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], rel=1e-10)
    assert ours.sd == pytest.approx(np.std(arm - baseline, ddof=1))


@pytest.mark.parametrize("n", SIZES)
def test_t_test_is_scipys(n: int) -> None:
    arm, baseline = pairs(n)
    assert st.t_test(arm - baseline) == pytest.approx(stats.ttest_rel(arm, baseline).pvalue, rel=1e-10)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0, 3.0])
def test_equivalence_test_is_statsmodels(n: int, margin: float) -> None:
    arm, baseline = pairs(n)
    expected = ttost_paired(arm, baseline, -margin, margin)[0]
    assert st.equivalence_test(arm - baseline, margin) == pytest.approx(expected, rel=1e-8, abs=1e-14)


def test_equivalence_is_the_inner_interval_inside_the_margin() -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(300):
        x = rng.normal(rng.uniform(-1, 1), 0.5, 6)
        inner = st.t_interval(x, alpha=0.10)
        inside = inner.low > -1 and inner.high < 1
        assert (st.equivalence_test(x, 1.0) < 0.05) == inside
        outcomes.add(inside)
    assert len(outcomes) == 2  # both happened


def test_a_minimum_effect_is_the_interval_beyond_the_margin() -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(300):
        x = rng.normal(rng.uniform(-3, 3), 0.8, 6)
        interval = st.t_interval(x)
        beyond = interval.low > 1 or interval.high < -1
        assert (st.minimum_effect_test(x, 1.0) < 0.05) == beyond
        outcomes.add(beyond)
    assert len(outcomes) == 2  # both happened
    assert st.minimum_effect_test([0.1, -0.1, 0.2], 1.0) == 1.0


def test_holm_is_statsmodels() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 5, 30):
        p = rng.uniform(0, 0.2, size)
        assert st.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_counts_comparisons_that_have_no_p_value() -> None:
    adjusted = st.holm([0.01, math.nan, 0.02])
    assert adjusted[[0, 2]] == pytest.approx([0.03, 0.04])
    assert math.isnan(adjusted[1])
    assert st.holm([]).size == 0


@pytest.mark.parametrize("n", [5, 10, 30, 200])  # statsmodels' root finder misses the answer at 2 and 3
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_minimum_detectable_difference_is_statsmodels(n: int, alpha: float) -> None:
    expected = TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8, alternative="two-sided")
    assert st.minimum_detectable_difference(2.5, n, alpha) == pytest.approx(2.5 * expected, rel=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_minimum_detectable_difference_has_its_power(n: int, alpha: float, power: float) -> None:
    """P(mean > critical sd / sqrt(n)), integrated over the distribution of the standard deviation."""
    df, critical = n - 1, stats.t.ppf(1 - alpha / 2, n - 1)
    shift = st.minimum_detectable_difference(1.0, n, alpha, power) * math.sqrt(n)

    def density(sd: float) -> Any:
        return stats.norm.sf(critical * sd - shift) * stats.chi.pdf(sd * math.sqrt(df), df) * math.sqrt(df)

    assert quad(density, 0, 10, limit=400, points=[0.5, 1, 2])[0] == pytest.approx(power, abs=1e-4)


@pytest.mark.parametrize(
    ("mean", "sd", "margin"),
    [(0.5, 1.0, None), (0.1, 1.0, 0.5), (-0.3, 0.7, 1.0), (0.9, 2, 1.0), (50.0, 1.0, None)],  # 2 would decide
)
def test_seeds_to_decide_is_the_first_n_that_decides(mean: float, sd: float, margin: float | None) -> None:
    def decides(n: int) -> bool:
        error = sd / math.sqrt(n)
        differs = 2 * stats.t.sf(abs(mean) / error, n - 1) < 0.05
        return differs or (margin is not None and stats.t.sf((margin - abs(mean)) / error, n - 1) < 0.05)

    n = st.seeds_to_decide(mean, sd, margin, 0.05, 1, 200)
    assert n is not None
    assert decides(n)
    assert not any(decides(fewer) for fewer in range(3, n))


def test_seeds_to_decide_gives_up_beyond_the_limit() -> None:
    assert st.seeds_to_decide(0.01, 1.0, None, 0.05, 2, 200) is None
    at_the_margin_and_too_noisy_to_exclude_zero = st.seeds_to_decide(1.0, 1.0, 1.0, 0.05, 2, limit=5)
    assert at_the_margin_and_too_noisy_to_exclude_zero is None
    assert st.seeds_to_decide(0.0, 0.0, 1.0, 0.05, 2, 200) is None
    assert st.seeds_to_decide(math.nan, math.nan, 1.0, 0.05, 2, 200) is None


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_no_spread_means_no_test(values: list[float]) -> None:
    assert math.isnan(st.t_test(values))
    assert math.isnan(st.equivalence_test(values, 1.0))
    assert math.isnan(st.minimum_effect_test(values, 1.0))
    assert math.isnan(st.minimum_detectable_difference(st.standard_deviation(values), len(values)))


def test_interval_of_none_one_and_equal_values() -> None:
    none, one, equal = st.t_interval([]), st.t_interval([1.5]), st.t_interval([2.0, 2.0, 2.0])
    assert none.n == 0
    assert math.isnan(none.mean)
    assert math.isnan(st.share_that_may_differ(0, 0.05))
    assert one.mean == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.sd)
    assert (equal.low, equal.high, equal.sd) == (2.0, 2.0, 0.0)
    assert equal.without_spread
    assert not any(each.without_spread for each in (none, one, st.t_interval([1.5, 1.75])))


def test_paired_differences_drop_pairs_not_values() -> None:
    assert st.paired_differences([1.0, math.nan, 3.0, 5.0], [0.5, 1.0, math.inf, 4.0]) == pytest.approx(
        [0.5, 1.0]
    )


def test_paired_differences_of_equal_results_are_exactly_zero() -> None:
    arm = [100 * 0.07, 7.0, 30.0]
    assert arm[0] != 7.0  # 7.000000000000001
    assert (st.paired_differences(arm, [7.0, 7.0, 30.0]) == 0).all()


def test_rounding_noise_is_not_spread() -> None:
    assert st.standard_deviation([0.5, 0.5 + 1e-14, 0.5]) == 0


def test_unpairable_and_nonsense_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        st.paired_differences([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be positive"):
        st.equivalence_test([1.0, 2.0], 0.0)
    with pytest.raises(ValueError, match="must be positive"):
        st.minimum_effect_test([1.0, 2.0], 0.0)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} predictions do not answer 2 targets"):
            st.Scored.of([0, 1], [1, 1]).right([1] * count)


def compared(example: ArrayLike, target: ArrayLike, arm: ArrayLike, baseline: ArrayLike) -> st.ExampleScores:
    scored = st.Scored.of(example, target)
    return st.ExampleScores(scored, scored.right(arm) - scored.right(baseline))


def test_sampling_error_is_mcnemars() -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(0, 10, 360)
    arm = np.where(rng.random(360) < 0.95, target, 11)
    baseline = np.where(rng.random(360) < 0.92, target, 12)
    n10 = int(((arm == target) & (baseline != target)).sum())
    n01 = int(((arm != target) & (baseline == target)).sum())
    scores = compared(np.arange(360), target, arm, baseline)
    assert scores.difference == pytest.approx((n10 - n01) / 360)
    assert st.sampling_error(scores) == pytest.approx(
        math.sqrt((n10 + n01) / 360**2 - (n10 - n01) ** 2 / 360**3)
    )


def test_pooling_disjoint_test_sets_averages_and_pooling_one_set_does_not() -> None:
    rng = np.random.default_rng(4)
    target = np.zeros(500, dtype=int)
    arm, baseline = rng.integers(0, 2, 500), rng.integers(0, 2, 500)
    single = compared(np.arange(500), target, arm, baseline)
    apart = [compared(np.arange(500) + 500 * s, target, arm, baseline) for s in range(4)]
    assert st.pooled_sampling_error(apart) == pytest.approx(st.sampling_error(single) / 2)
    assert st.pooled_sampling_error([single] * 4) == pytest.approx(st.sampling_error(single))


def test_sampling_error_matches_the_spread_over_resampled_test_sets() -> None:
    rng = np.random.default_rng(5)
    size, differences, errors = 300, [], []
    for _ in range(2_000):
        ability = rng.random(size)  # a hard example is hard for both
        arm, baseline = (
            (rng.random(size) > 0.12 * ability).astype(int),
            (rng.random(size) > 0.2 * ability).astype(int),
        )
        scores = compared(np.arange(size), np.ones(size, dtype=int), arm, baseline)
        differences.append(scores.difference)
        errors.append(st.sampling_error(scores))
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.05)


def test_ignored_targets_are_not_scored() -> None:
    target = np.array([[1, -100, 2], [3, 3, -100]])
    arm, baseline = np.array([[1, 0, 2], [3, 0, 0]]), np.array([[0, 0, 0], [3, 3, -100]])
    scores = compared([7, 8], target, arm, baseline)
    assert scores.scored.targets.tolist() == [2, 2]
    assert scores.balance.tolist() == [2, -1]
    assert scores.difference == 0.25


def test_late_rise_compares_the_last_window_with_the_one_before() -> None:
    curve = np.array([[0.0] * 14 + [5.0] * 3 + [8.0] * 3])
    assert st.late_rise(curve, 0.15) == pytest.approx([3.0])
    assert np.isnan(st.late_rise([[1.0, 2.0, 3.0]], 0.15)).all()
    assert [st.late_window(epochs, 0.15) for epochs in (4, 20, 21)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("p_values", "levels"),
    [
        ([0.04], [0.05]),
        ([0.01, 0.02, 0.03], [0.05 / 3, 0.05 / 2, 0.05]),
        ([0.03, 0.01, 0.04], [0.05 / 2, 0.05 / 3, 0.05 / 2]),  # stops at the second: the third is held to it
        ([0.02, math.nan], [0.025, 0.05]),
    ],
)
def test_levels_of_holms_steps(p_values: list[float], levels: list[float]) -> None:
    assert st.holm_levels(p_values) == pytest.approx(levels)


def test_levels_reject_what_the_adjusted_p_values_reject() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 12):
        for _ in range(50):
            p = rng.beta(0.3, 3, size)
            p[rng.random(size) < 0.1] = math.nan
            assert ((p <= st.holm_levels(p)) == (st.holm(p) <= 0.05)).all()
