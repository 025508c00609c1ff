"""The verdict's rules, case by case, on stored records: what a reader of the sentence would believe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from analysis.comparison import Comparison
from analysis.read_records import load_study
from analysis.summary import summarise, training_rise
from analysis.verdict import judge
from analysis.verdict_sentence import what_follows

Write = Callable[..., Any]
BASE = [95.0, 96.0, 95.5, 96.25, 94.75]


def plus(*differences: float) -> list[float]:
    return [base + difference for base, difference in zip(BASE, differences, strict=True)]


def judged(records: Any) -> list[Comparison]:
    study = load_study(records.study, records.trials)
    return judge(study, summarise(study))


@pytest.mark.parametrize(
    ("differences", "word", "qualifier"),
    [
        ((1.25, 1.5, 1.0, 1.75, 1.25), "helps", ""),
        ((-1.25, -1.5, -1.0, -1.75, -1.25), "hurts", ""),
        ((0.25, 0.5, 0.25, 0.5, 0.25), "helps", "by less than the margin"),
        ((-0.25, -0.5, -0.25, -0.5, -0.25), "hurts", "by less than the margin"),
        ((2.25, 2.5, 2.0, 2.75, 2.25), "helps", "by more than the margin"),
        ((0.0, 0.25, -0.25, 0.0, 0.25), "equivalent", ""),
        ((2.0, -2.0, 1.0, -1.5, 0.5), "undecided", ""),
    ],
)
def test_word_and_qualifier(
    write_records: Write, differences: tuple[float, ...], word: str, qualifier: str
) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(*differences)}))
    assert (c.word, c.qualifier) == (word, qualifier)
    assert qualifier in c.sentence
    assert ("but by" in c.sentence) == (qualifier == "by less than the margin")
    assert c.sentence.count("±1") == 1, "the margin is named, and once"


@pytest.mark.parametrize("word", ["helps", "hurts"])
def test_lower_is_better_turns_the_words_around(write_records: Write, word: str) -> None:
    shift = -1.5 if word == "helps" else 1.5
    metric = {
        "name": "bpb",
        "unit": "bits per byte",
        "difference_unit": "bits per byte",
        "higher_is_better": False,
    }
    records = write_records(
        {"conv": BASE, "ssm": plus(*(shift + d for d in (0, 0.25, -0.25, 0.5, 0)))}, metric=metric
    )
    for arm, seed in records.ids:
        accuracy = (BASE if arm == "conv" else plus(*(shift + d for d in (0, 0.25, -0.25, 0.5, 0))))[seed]
        records.edit(arm, seed, metrics={"test": {"bpb": accuracy}})
    (c,) = judged(records)
    assert c.word == word
    assert c.interval.mean * shift > 0  # the difference itself keeps its sign


def test_the_sentence_carries_everything(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(1.25, 1.5, 1.0, 1.75, 1.25)}))
    expected = (
        r"On digits in mambaout-nano, ssm helps over conv: \+1\.35 points \[\+1\.00, \+1\.70\] "
        r"\(95 % t interval, 5 paired seeds, p < 0\.001, margin ±1\), "
        r"at 20 epochs of 1,077 images, batch 64\. The seeds are closer to one another \(0\.13 points, "
        r"standard error\) than test sets of this size make expect \(0\.58\); "
        r"with the latter it would be undecided\."
    )
    assert re.fullmatch(expected, c.sentence)


def test_a_luckily_small_spread_is_told_only_where_it_decides(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(1.75, 2.0, 1.5, 2.25, 1.75)}))
    assert c.interval.sd / c.n**0.5 < c.sampling.mean
    assert c.word == c.word_at_sampling_error == "helps"
    assert "closer to one another" not in c.sentence


def test_an_equivalence_by_luck_is_told(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(0.0, 0.25, -0.25, 0.0, 0.25)}))
    assert (c.word, c.word_at_sampling_error) == ("equivalent", "undecided")
    assert "with the latter it would be undecided." in c.sentence


@pytest.mark.parametrize(
    ("values", "guess", "guessing"),
    [
        ([1.5, 1.52, 1.49, 1.51, 1.5], "", False),
        ([1.98, 1.985, 1.975, 1.98, 1.985], "zlib -9 (2.0000 bits per byte)", True),
        ([2.5, 2.52, 2.49, 2.51, 2.5], "zlib -9 (2.0000 bits per byte)", True),
    ],
)
def test_where_less_is_better_a_guess_is_beaten_from_below(
    write_records: Write, values: list[float], guess: str, guessing: bool
) -> None:
    unit = "bits per byte"
    metric = {"name": "bpb", "unit": unit, "difference_unit": unit, "higher_is_better": False}
    baselines = [{"case": None, "name": "zlib -9", "value": 2.0}]
    pair = {"conv": values, "ssm": values[::-1]}
    records = write_records(pair, metric=metric, margin=0.03, baselines=baselines)
    for arm, seed in records.ids:
        records.edit(arm, seed, metrics={"test": {"bpb": pair[arm][seed]}})
    (c,) = judged(records)
    assert (c.guess, c.guessing) == (guess, guessing)


def test_one_arm_that_beats_the_guess_is_enough_though_a_seed_of_it_does_not(write_records: Write) -> None:
    pair = {"conv": [50.0, 51.0, 49.0, 50.5, 49.5], "ssm": [97.0, 99.0, 99.0, 99.0, 99.0]}
    records = write_records(pair, baselines=[{"case": None, "name": "a guess", "value": 96.25}])
    (c,) = judged(records)
    assert (c.word, c.guess) == ("helps", "")


def test_a_verdict_that_rests_on_the_luck_of_another_comparison_says_whose_seeds_are_close(
    write_records: Write,
) -> None:
    """`wide` is judged at 5 %, and not at 2.5 %, because `close` is told from `conv`."""
    wide, close = plus(0.75, 3.5, 2.0, 0.5, 3.0), plus(1.5, 1.75, 1.25, 1.5, 1.5)
    c, other = judged(write_records({"conv": BASE, "wide": wide, "close": close}))
    assert c.p > 0.025
    assert other.is_luckily_close
    assert not c.is_luckily_close
    assert (c.word, c.word_at_sampling_error) == ("helps", "undecided")
    assert "The seeds are closer" not in c.sentence
    assert "other comparisons as well, and seeds of theirs are closer to one another" in c.sentence
    assert "with the latter it would be undecided." in c.sentence


def test_undecided_says_what_could_be_seen_and_how_many_seeds_would_decide(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(2.0, -1.0, 1.0, -0.5, 1.5)}))
    assert c.word == "undecided"
    assert c.seeds_needed is not None
    assert c.seeds_needed > 5
    assert f"about {c.seeds_needed} seeds would decide" in c.sentence
    assert f"could detect {c.minimum_detectable:.2f} points" in c.sentence


def test_undecided_near_the_margin_does_not_promise(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(1.0, 0.5, -0.5, 0.0, -1.0)}, margin=0.05))
    assert c.word == "undecided"
    assert c.seeds_needed is None
    assert "more than 200 seeds" in c.sentence


@pytest.mark.parametrize("seeds", [1, 2])
def test_no_verdict_below_three_seeds(write_records: Write, seeds: int) -> None:
    (c,) = judged(write_records({"conv": BASE[:seeds], "ssm": plus(3, 3.25, 3, 3, 3)[:seeds]}))
    assert c.word == "no verdict"
    noun = "seed" if seeds == 1 else "seeds"
    assert f"{seeds} paired {noun} finished and a verdict takes at least 3" in c.sentence
    assert (" (1 paired seed)" if seeds == 1 else "] (95 % t interval, 2 paired seeds)") in c.sentence


def test_no_seeds_at_all(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": BASE})
    for seed in range(5):
        (records.folder("ssm", seed) / "result.json").unlink()
    (c,) = judged(records)
    assert (c.word, c.n) == ("no verdict", 0)
    assert "0 paired seeds" in c.sentence
    assert "Provisional" not in c.sentence, "there is no verdict that it could be said of"


HELPING, HURTING = plus(2.25, 2.5, 2.0, 2.75, 2.25), plus(-2.25, -2.5, -2.0, -2.75, -2.25)


@pytest.mark.parametrize(
    ("values", "diverged", "word"),
    [
        (HELPING, ["ssm"], "no verdict"),  # survivors must not win
        (HURTING, ["ssm"], "hurts"),  # worse even without the diverged one
        (BASE, ["ssm"], "no verdict"),  # nor be called equivalent
        (HELPING, ["conv"], "helps"),
        (HURTING, ["conv"], "no verdict"),
        (HELPING, ["ssm", "conv"], "no verdict"),
        (HURTING, ["ssm", "conv"], "no verdict"),
    ],
)
def test_survivors_only_count_against_the_arm_that_diverged(
    write_records: Write, values: list[float], diverged: list[str], word: str
) -> None:
    records = write_records({"conv": BASE, "ssm": values})
    for arm in diverged:
        records.edit(arm, 4, status="diverged", error="loss is NaN", metrics={})
    (c,) = judged(records)
    assert (c.word, c.qualifier, c.unfinished) == (word, "", 0)
    assert bool(re.search(r"\bp [<=]", c.sentence)) == (word != "no verdict")
    for arm in diverged:
        assert c.sentence.count(f"1 of 5 {arm} trials diverged") == 1


NEAR = plus(2.0, -2.0, 1.0, -1.5, 0.5)
ANOTHER_LOOK = "Undecided at 5 seeds: on to the look at 9, as planned."
NO_VERDICT_YET = "No verdict at 5 seeds: on to the look at 9, as planned."
DECIDED = "Decided at 5 seeds: no further look is needed."
IN_VAIN = (
    "The look at 9 is not taken: further seeds would bring no verdict on ssm against conv. "
    "--seeds 9 takes it all the same."
)


@pytest.mark.parametrize(
    ("values", "diverged", "said"),
    [
        (NEAR, {}, ANOTHER_LOOK),
        (HURTING, {}, DECIDED),
        (BASE, {}, NO_VERDICT_YET),  # a tie on all seeds, which the sixth may break
        (NEAR, {"ssm": [4]}, NO_VERDICT_YET),  # survivors that may yet show that it hurts
        (HURTING, {"ssm": [4]}, DECIDED),
        (HELPING, {"ssm": [4]}, IN_VAIN),  # survivors that have shown the opposite
        (NEAR, {"ssm": [4], "conv": [3]}, IN_VAIN),
        (NEAR, {"ssm": [0, 1, 2]}, NO_VERDICT_YET),  # two survivors: too few seeds
        (NEAR, {"ssm": range(5)}, IN_VAIN),
    ],
)
def test_looks_go_on_where_further_seeds_could_decide(
    write_records: Write, values: list[float], diverged: dict[str, list[int]], said: str
) -> None:
    records = write_records({"conv": BASE, "ssm": values}, planned_looks=[5, 9, 20])
    for arm, seeds in diverged.items():
        for seed in seeds:
            records.edit(arm, seed, status="diverged", error="loss is NaN", metrics={})
    (c,) = judged(records)
    assert what_follows([c], 5, 9) == said
    assert ("The next look is at 9." in c.sentence) == c.is_open == (said in (ANOTHER_LOOK, NO_VERDICT_YET))
    assert ("To be judged at 5, 9 and 20 seeds" in c.sentence) == (c.word != "no verdict")


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"near": NEAR, "tied": BASE}, ANOTHER_LOOK),
        ({"tied": BASE, "worse": HURTING}, NO_VERDICT_YET),
        ({"worse": HURTING, "better": HELPING}, DECIDED),
    ],
)
def test_a_look_is_taken_while_any_comparison_is_open(
    write_records: Write, arms: dict[str, list[float]], said: str
) -> None:
    comparisons = judged(write_records({"conv": BASE, **arms}, planned_looks=[5, 9]))
    assert what_follows(comparisons, 5, 9) == said
    assert what_follows(comparisons[::-1], 5, 9) == said


def test_the_difference_between_survivors_is_called_that(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    for seed in (3, 4):
        records.edit("ssm", seed, status="diverged", metrics={})
    (c,) = judged(records)
    assert "2 of 5 ssm trials diverged" in c.sentence
    assert "3 paired seeds" in c.sentence
    assert "survived" in c.sentence


def test_an_unfinished_study_has_a_provisional_verdict(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    records.edit("ssm", 1, status="failed", error="out of memory", metrics={})
    (records.folder("conv", 2) / "result.json").unlink()
    (c,) = judged(records)
    assert (c.word, c.n, c.unfinished) == ("helps", 3, 2)
    assert "Provisional: 3 of 5 planned pairs are finished." in c.sentence


def test_pairs_that_saw_different_data_are_no_pairs(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    records.edit("ssm", 3, data={"fingerprint": "another split"})
    (c,) = judged(records)
    assert c.word == "no verdict"
    assert "different data on seed 3" in c.sentence
    assert not c.is_open


def test_identical_results_are_called_identical(write_records: Write) -> None:
    """And no more: five ties do not show that a sixth seed ties."""
    (c,) = judged(write_records({"conv": BASE, "ssm": BASE}))
    assert (c.word, c.interval.low, c.interval.high) == ("no verdict", 0.0, 0.0)
    assert c.label == "no verdict (identical)"
    assert "identical on all seeds: without any spread there is no test" in c.sentence
    assert "Up to 45 % of further seeds may differ (95 % confidence)." in c.sentence
    assert "check that the switch" not in c.sentence  # the same score from different predictions
    (three,) = judged(write_records({"conv": BASE[:3], "ssm": BASE[:3]}))
    (two,) = judged(write_records({"conv": BASE[:2], "ssm": BASE[:2]}))
    records = write_records({"conv": BASE, "ssm": BASE})
    (records.folder("ssm", 4) / "result.json").unlink()
    assert "Up to 53 % of further seeds may differ" in judged(records)[0].sentence, "of four, not of five"
    (once,) = judged(write_records({"conv": BASE, "ssm": plus(0.0, 0.25, -0.25, 0.5, -0.5)}))
    assert [each.identical for each in (three, two, once)] == [True, False, False]
    assert [dataclasses.replace(each, guessing=True).label for each in (three, two)] == [
        "no verdict (identical)",
        "no verdict",
    ], "both guess is said of a verdict"


def test_survivors_that_tie_are_not_called_identical(write_records: Write) -> None:
    """One seed did differ, so nothing is known of the share of further ones that may."""
    records = write_records({"conv": BASE, "ssm": BASE})
    records.edit("ssm", 4, status="diverged", error="loss is NaN", metrics={})
    (c,) = judged(records)
    assert c.label == "no verdict"
    assert "further seeds may differ" not in c.sentence
    assert "1 of 5 ssm trials diverged" in c.sentence


def test_identical_predictions_raise_suspicion(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": BASE})
    for seed in range(5):
        source = records.folder("conv", seed) / "predictions.npz"
        (records.folder("ssm", seed) / "predictions.npz").write_bytes(source.read_bytes())
    (c,) = judged(records)
    assert c.word == "no verdict"
    assert "check that the switch reached the model" in c.sentence


def test_a_constant_difference_cannot_be_tested(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(1, 1, 1, 1, 1)}))
    assert c.word == "no verdict"
    assert "the same on all seeds" in c.sentence
    assert "degenerate" in c.sentence


def test_without_a_margin_nothing_is_equivalent(write_records: Write) -> None:
    (c,) = judged(write_records({"conv": BASE, "ssm": plus(0.0, 0.25, -0.25, 0.0, 0.25)}, margin=None))
    assert c.word == "undecided"


def test_holm_over_the_family_can_take_a_verdict_back(write_records: Write) -> None:
    weak = plus(2.0, 0.25, 1.0, 0.25, 2.0)
    noise = plus(2.0, -2.0, 1.0, -1.5, 0.5)
    (alone,) = judged(write_records({"conv": BASE, "ssm": weak}))
    many = judged(write_records({"conv": BASE, "ssm": weak, "b": noise, "c": noise}))
    apart = judged(write_records({"conv": BASE, "ssm": weak, "b": noise, "c": noise}, families=[[0], [1, 2]]))
    assert alone.word == "helps"
    assert many[0].word == "undecided"
    assert many[0].interval.low > 0  # the interval is not adjusted: the sentence has to say what is
    assert "after Holm over 3 comparisons" in many[0].sentence
    assert apart[0].word == "helps"


def test_holm_over_the_family_can_take_an_equivalence_and_a_qualifier_back(write_records: Write) -> None:
    noise = {"b": plus(2.0, -2.0, 1.0, -1.5, 0.5), "c": plus(-2.0, 2.0, -1.5, 1.0, 0.5)}
    for differences, alone, among_three in (
        ((0.75, -1.0, 0.75, 0.25, -0.5), "equivalent", "undecided"),
        ((1.5, 2.5, 1.25, 2.75, 1.75), "helps (> margin)", "helps"),
    ):
        arms = {"conv": BASE, "ssm": plus(*differences)}
        (one,), (first, *_) = judged(write_records(arms)), judged(write_records(arms | noise))
        assert (one.label, first.label) == (alone, among_three)


def test_what_could_be_seen_is_less_among_several_comparisons(write_records: Write) -> None:
    """Both numbers are at the level over the size of the family."""
    noise = plus(2.0, -1.0, 1.0, -0.5, 1.5)
    (alone,) = judged(write_records({"conv": BASE, "ssm": noise}))
    several = judged(write_records({"conv": BASE, "ssm": noise, "b": NEAR, "c": NEAR}))[0]
    (at_a_third,) = judged(write_records({"conv": BASE, "ssm": noise}, alpha=0.05 / 3))
    assert alone.minimum_detectable < several.minimum_detectable == at_a_third.minimum_detectable
    assert alone.seeds_needed < several.seeds_needed == at_a_third.seeds_needed


def test_the_p_that_is_said_is_the_adjusted_one(write_records: Write) -> None:
    """Of two comparisons, Holm's method doubles the smaller p."""
    close, closer = plus(0.25, 0.5, -0.75, 0.75, -0.25), plus(0.25, 0.25, -0.5, 0.75, -0.25)
    pair = judged(write_records({"conv": BASE, "close": close, "closer": closer}))
    weak, weaker = plus(2.0, 0.5, 1.25, 0.5, 2.0), plus(2.0, 0.25, 1.0, 0.25, 2.0)
    other, _ = judged(write_records({"conv": BASE, "weak": weak, "weaker": weaker}))
    assert [each.word for each in (*pair, other)] == ["equivalent", "equivalent", "helps"]
    for c, p, said in ((pair[1], pair[1].p_equivalence, "equivalence p"), (other, other.p, "seeds, p")):
        assert f"{said} = {2 * p:.3f} after Holm over 2 comparisons" in c.sentence
        assert f"{p:.3f}" not in c.sentence


def test_seeds_are_paired_by_number_not_by_position(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    study = load_study(records.study, records.trials)
    study.arms["ssm"].trials.reverse()
    (c,) = judge(study, summarise(study))
    assert sorted(c.differences) == pytest.approx([2.0, 2.25, 2.25, 2.5, 2.75])
    study.arms["conv"].trials.pop(0)
    (c,) = judge(study, summarise(study))
    assert (c.planned, sorted(c.seeds)) == (4, [1, 2, 3, 4]), "a seed of one arm alone makes no pair"


def test_under_training_is_part_of_the_verdict(write_records: Write) -> None:
    flat, rising = (
        judged(write_records({"conv": BASE, "ssm": HELPING}, rising=names))[0].sentence
        for names in ((), ("conv",))
    )
    assert "under-trained" not in flat
    assert "conv was still improving when training stopped (under-trained)" in rising


@pytest.mark.parametrize(
    ("last", "direction", "flagged"), [(0.6, 1, True), (0.2, 1, False), (-0.6, 1, False), (-0.6, -1, True)]
)
def test_a_rise_is_flagged_above_a_quarter_of_the_margin(last: float, direction: int, flagged: bool) -> None:
    curves = np.full((3, 20), 90.0) + np.arange(3.0)[:, None]
    curves[:, -3:] += last
    rise = training_rise(curves, direction, margin=1.0)
    assert rise is not None
    assert rise.gain == pytest.approx(last * direction)
    assert rise.flagged == flagged


def test_a_rise_within_the_noise_of_the_seeds_is_not_flagged() -> None:
    curves = np.full((4, 20), 90.0)
    curves[:, -3:] += np.array([[3.0], [-2.0], [2.0], [-1.0]])
    rise = training_rise(curves, 1, margin=1.0)
    assert rise is not None
    assert rise.gain > 0.25
    assert not rise.flagged


def test_curves_too_short_for_a_trend_are_not_judged() -> None:
    assert training_rise(np.ones((3, 3)), 1, 1.0) is None
    assert training_rise(np.empty((0, 0)), 1, 1.0) is None


def test_test_set_error_is_reported_only_where_predictions_support_it(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    (c,) = judged(records)
    assert 0 < c.sampling.mean < c.sampling.one_seed
    records.edit("ssm", 0, metrics={"test": {"accuracy": 12.0}})  # no longer what the predictions say
    (c,) = judged(records)
    assert np.isnan(c.sampling.one_seed)


def test_damaged_predictions_are_said(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    path = records.folder("ssm", 1) / "predictions.npz"
    path.write_bytes(path.read_bytes()[:100])
    (c,) = judged(records)
    assert np.isnan(c.sampling.one_seed)
    assert f"{path} cannot be read" in c.sentence
    assert c.word == "helps"
    path.unlink()
    (c,) = judged(records)
    assert f"{path} cannot be read" in c.sentence, "the others have theirs"
    for other in records.trials.glob("*/predictions.npz"):
        other.unlink()
    (c,) = judged(records)
    assert "cannot be read" not in c.sentence, "of a task that stores none"


def test_one_test_set_for_all_seeds_is_said_to_be_outside_the_interval(write_records: Write) -> None:
    records = write_records({"conv": BASE, "ssm": HELPING})
    for arm, seed in records.ids:
        path = records.folder(arm, seed) / "predictions.npz"
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"example": np.arange(400)}))
    (c,) = judged(records)
    assert c.sampling.test_sets == "the same"
    assert c.sampling.mean < c.sampling.one_seed
    own = f"whose own sampling error ({c.sampling.mean:.2f} points, standard error) is not in the interval"
    assert f"All seeds share one test set, {own}." in c.sentence
