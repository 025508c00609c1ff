"""The intervals that decide, and the figure that shows them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis import quantities as q
from analysis import row_figures
from analysis.comparison import EQUIVALENT, HELPS, HURTS, NO_VERDICT, UNDECIDED
from analysis.deciding_intervals import deciding_intervals
from analysis.read_records import load_study
from analysis.records import Study
from analysis.statistics import t_interval
from analysis.summary import summarise
from analysis.verdict import judge

ACCURACIES = {
    "conv": [95.0, 96.0, 95.5, 94.5, 95.25],
    "much better": [97.0, 97.5, 97.25, 96.75, 97.5],
    "better": [95.25, 97.0, 96.25, 95.0, 95.75],
    "the same": [95.25, 95.75, 95.5, 94.75, 95.0],
    "close": [94.5, 97.0, 96.0, 94.0, 95.0],
    "shifted": [96.0, 97.0, 96.5, 95.5, 96.25],
}


@pytest.fixture
def study(write_records: Any) -> Study:
    records = write_records(ACCURACIES)
    return load_study(records.study, records.trials)


def test_they_decide_as_the_verdict_does(study: Study) -> None:
    assert study.margin is not None
    comparisons = judge(study, summarise(study))
    words = set()
    for comparison, deciding in zip(comparisons, deciding_intervals(study, comparisons), strict=True):
        if comparison.word == NO_VERDICT:
            assert comparison.interval.without_spread
            continue
        differs = deciding.interval.low > 0 or deciding.interval.high < 0
        within = max(abs(deciding.inner.low), abs(deciding.inner.high)) < study.margin
        expected = (HELPS, HURTS) if differs else (EQUIVALENT,) if within else (UNDECIDED,)
        assert comparison.word in expected
        words.add(comparison.word)
    assert words == {HELPS, EQUIVALENT, UNDECIDED}


def test_of_a_single_comparison_they_are_the_usual_ones(write_records: Any) -> None:
    records = write_records({name: ACCURACIES[name] for name in ("conv", "close")})
    study = load_study(records.study, records.trials)
    (comparison,) = judge(study, summarise(study))
    (deciding,) = deciding_intervals(study, [comparison])
    assert (deciding.interval, deciding.inner) == (comparison.interval, comparison.inner)
    drawing = row_figures.differences(study, list(summarise(study).values()), [comparison])
    assert drawing is not None
    assert "hiskers" not in drawing.caption


def test_each_is_at_the_level_of_its_own_test_in_its_own_family(write_records: Any) -> None:
    """Of two, Holm's method judges the smaller p at half the level, and then the other at the whole.

    `better` has the smaller p of a difference, `close` that of an equivalence.
    """
    records = write_records(
        {name: ACCURACIES[name] for name in ("conv", "much better", "better", "close")},
        families=[[2, 1], [0]],
    )
    study = load_study(records.study, records.trials)
    comparisons = judge(study, summarise(study))
    levels = [(0.05, 0.05), (0.025, 0.05), (0.05, 0.025)]
    for comparison, deciding, (difference, equivalence) in zip(
        comparisons, deciding_intervals(study, comparisons), levels, strict=True
    ):
        assert deciding.interval == t_interval(comparison.differences, difference)
        assert deciding.inner == t_interval(comparison.differences, 2 * equivalence)


def test_the_figure_says_what_decides(study: Study) -> None:
    arms = summarise(study)
    drawing = row_figures.differences(study, list(arms.values()), judge(study, arms))
    assert drawing is not None
    for part in (
        "mean with 95 % t interval (thin) and, below, 90 % t interval (thick)",
        "Whiskers: the same intervals at the level at which Holm's adjustment",
        "helps or hurts when the thin interval with its whiskers leaves out zero",
        "equivalent when the thick one with its whiskers lies inside the zone",
    ):
        assert part in drawing.caption


def test_a_row_off_the_scale_has_the_interval_that_decides(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are declared too far out: what they print is what the verdict rests on."""
    monkeypatch.setattr(row_figures, "far_out", lambda reaches, least: set(range(len(reaches))))
    arms = summarise(study)
    comparisons = judge(study, arms)
    drawing = row_figures.differences(study, list(arms.values()), comparisons)
    assert drawing is not None
    said = drawing.files["svg"].decode()
    for comparison, deciding in zip(comparisons, deciding_intervals(study, comparisons), strict=True):
        decides, alone = (
            q.interval(each.low, each.high, 2) for each in (deciding.interval, comparison.interval)
        )
        assert decides in said
        assert decides == alone or alone not in said
    assert "the mean, and the interval that decides" in drawing.caption


def test_trials_that_are_missing_have_no_interval(write_records: Any) -> None:
    records = write_records({name: ACCURACIES[name] for name in ("conv", "close", "better")})
    for seed in range(5):
        (records.folder("close", seed) / "result.json").unlink()
    study = load_study(records.study, records.trials)
    missing, better = deciding_intervals(study, judge(study, summarise(study)))
    assert math.isnan(missing.interval.low)
    assert math.isfinite(better.interval.low)
