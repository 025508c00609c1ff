"""Studies with cases, searches for learning rates, published numbers and naive baselines."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import panel_figures, row_figures, shown_arms, sweep
from analysis.against_published import DIFFERS, MATCH, NOT_COMPARABLE, OPEN, published_table, stand
from analysis.comparison import EQUIVALENT, HURTS, MORE, Comparison
from analysis.notes import selection_rule
from analysis.read_records import load_study
from analysis.record_rows import trial_row
from analysis.records import FAILED, OK, NaiveBaseline, PublishedRow, Study
from analysis.report import verdict_lines, verdicts_by_case, write_study
from analysis.summary import summarise
from analysis.tables import comparison_table
from analysis.verdict import judge
from analysis.verdict_sentence import sentence, settled_late
from experiments.history import History

ARMS = {
    "conv @ 64": [90.0, 91.0, 90.4],
    "ssm @ 64": [95.0, 96.2, 95.5],
    "conv @ 1024": [50.0, 51.0, 49.5],
    "ssm @ 1024": [95.2, 96.0, 95.1],
}
CASES = {
    "axis": "length, in tokens",
    "log": True,
    "entries": [
        {"name": "64", "at": 64.0, "series": None, "about": "induction(length=64)"},
        {"name": "1024", "at": 1024.0, "series": None, "about": "induction(length=1024)"},
    ],
}
PUBLISHED = [
    {"value": 95.5, "tolerance": 2.0, "not_comparable": None},
    {"value": 80.0, "tolerance": 1.0, "not_comparable": None},
    {"value": 96.5, "tolerance": 1.0, "not_comparable": None},
    {"value": 96.0, "tolerance": 1.0, "not_comparable": "another length"},
]


def search_of(arm: str, ids: Any, at_edge: str | None = None) -> dict[str, Any]:
    """A search whose points are the reported trials, whose validation values are known."""
    points = [{"lr": 10.0**-power, "trials": [ids[arm, seed]]} for seed, power in enumerate((3, 2, 1))]
    return {"name": arm, "chosen": 0.01, "at_edge": at_edge, "points": points}


@pytest.fixture
def records(write_records: Any) -> Any:
    written = write_records(
        ARMS,
        cases=CASES,
        comparisons=[
            {"arm": "ssm @ 64", "baseline": "conv @ 64"},
            {"arm": "ssm @ 1024", "baseline": "conv @ 1024"},
        ],
        families=[[0], [1]],
        published=[
            {"entry": "ssm @ 64", "source": "A, Table 1", "convention": "c", **row} for row in PUBLISHED
        ],
        baselines=[{"case": "64", "name": "zlib -9", "value": 12.5}],
    )
    path = written.study / "plan.json"
    plan = json.loads(path.read_text())
    for arm in plan["arms"]:
        arm["arm"], _, arm["case"] = arm["name"].partition(" @ ")
    plan["search"] = {
        "metric": "accuracy",
        "seeds": [1000],
        "arms": [search_of(arm, written.ids, "high" if arm == "ssm @ 64" else None) for arm in ARMS],
    }
    path.write_text(json.dumps(plan))
    return written


def study_of(records: Any) -> Study:
    return load_study(records.study, records.trials)


def test_cases_are_read(records: Any) -> None:
    study = study_of(records)
    arm = study.arms["ssm @ 1024"]
    assert (arm.label, arm.case) == ("ssm", "1024")
    assert study.where(arm) == "induction(length=1024)"
    assert study.searches["ssm @ 64"].at_edge == "high"
    values = [point.values for point in study.searches["ssm @ 64"].points]
    assert values == [[pytest.approx(value + 0.3)] for value in ARMS["ssm @ 64"]], "validation, not test"


def test_verdicts_by_case(records: Any) -> None:
    study = study_of(records)
    comparisons = judge(study, summarise(study))
    assert [comparison.family_size for comparison in comparisons] == [1, 1]
    assert verdicts_by_case(study, comparisons) == {("ssm", "conv"): "helps (> margin) at 64 and 1024"}
    assert verdict_lines(study, comparisons)[:-1] == ["ssm against conv: helps (> margin) at 64 and 1024."]
    assert comparisons[1].sentence.startswith("On induction(length=1024) in")


def test_published_numbers_match_differ_or_cannot_be_compared(records: Any) -> None:
    study = study_of(records)
    arms = summarise(study)
    words = [stand(row, arms[row.arm]).word for row in study.published]
    assert words == [MATCH, DIFFERS, OPEN, NOT_COMPARABLE]
    table = published_table(study, arms)
    assert table is not None
    assert table.rows[3]["standing"].line == "not comparable (another length)"
    assert table.rows[0]["ours"].text == "95.57"


def test_survivors_too_few_seeds_and_seeds_without_spread_match_nothing(write_records: Any) -> None:
    """A t interval of them lies within the tolerance, and says nothing."""
    values = {"good": [95.0, 95.25, 95.5, 95.25], "diverged": [95.0, 95.25, 95.5, 0], "tied": [95.25] * 4}
    records = write_records({**values, "two": [95.25, 95.26]})
    records.edit("diverged", 3, status="diverged", metrics={})
    arms = summarise(study_of(records))
    row = PublishedRow("", 95.25, "A, Table 1", "as here", 2.0, None)
    found = {name: stand(row, arm) for name, arm in arms.items()}
    assert {name: each.word for name, each in found.items()} == {
        "good": MATCH,
        **dict.fromkeys(("diverged", "tied", "two"), OPEN),
    }
    assert "1 of 4 trials diverged, and the others are no fair sample" in found["diverged"].reason
    assert "the seeds do not vary" in found["tied"].reason
    assert "2 seeds finished, and this takes at least 3" in found["two"].reason


def test_naive_baselines_have_a_row(records: Any) -> None:
    study = study_of(records)
    arms = summarise(study)
    table = comparison_table(study, arms, judge(study, arms))
    assert table.naive_rows[-1]["arm"].text == "zlib -9 @ 64"
    assert table.naive_rows[-1]["metric"].text == "12.50"


def test_two_arms_that_guess_are_said_to(records: Any) -> None:
    """conv @ 1024 is no better than 60 %, ssm is; at 64 both are no better than 99 %."""
    naive = [NaiveBaseline("a guess", 99.0, "64"), NaiveBaseline("a guess", 60.0, "1024")]
    study = replace(study_of(records), baselines=naive)
    at_64, at_1024 = judge(study, summarise(study))
    said = "Neither is better than a guess (99.00 %) by more than the margin, so this compares"
    assert said in at_64.sentence
    assert "than a guess" not in at_1024.sentence
    same = replace(at_64, word=EQUIVALENT, qualifier="")
    assert same.label == "equivalent (both guess)"
    assert replace(at_64, word=HURTS, qualifier=MORE).label == "hurts (both guess)"
    assert "so either will do" in sentence(replace(same, guessing=False), study, summarise(study))
    assert "so either will do" not in sentence(same, study, summarise(study))
    assert verdict_lines(study, [same, at_1024])[0] == (
        "ssm against conv: equivalent (both guess) at 64; helps (> margin) at 1024."
    )


def test_better_than_a_guess_by_less_than_the_margin_is_guessing(records: Any) -> None:
    """Of the better arm at 64: below its interval a guess is beaten, within it that is open."""
    study = study_of(records)
    arms = summarise(study)
    test = arms["ssm @ 64"].test
    seeds = list(study.arms["ssm @ 64"].compared(study.metric.name).values())
    assert study.margin == 1.0

    def judged_against(guess: float) -> Comparison:
        return judge(replace(study, baselines=[NaiveBaseline("a guess", guess, "64")]), arms)[0]

    beaten = judged_against(test.low - 1.5)
    assert not beaten.guess
    open_question = judged_against(min(seeds) - 0.5)
    assert test.low < min(seeds) + 0.5 < test.high
    assert open_question.guess
    assert not open_question.guessing
    assert "Neither is reliably better than a guess" in open_question.sentence
    assert "(both guess)" not in open_question.label
    assert judged_against(test.high - 0.5).guessing


def test_arms_whose_every_seed_beats_a_guess_do_not_guess(records: Any) -> None:
    """Far apart as they lie: their interval reaches below the guess all the same."""
    study = study_of(records)
    arms = summarise(study)
    wide = replace(arms["ssm @ 64"].test, low=0.0)
    arms["ssm @ 64"] = replace(arms["ssm @ 64"], test=wide)
    arms["conv @ 64"] = replace(arms["conv @ 64"], test=wide)
    lowest = min(study.arms["ssm @ 64"].compared(study.metric.name).values())
    for guess, said in ((lowest - 1.1, ""), (lowest - 0.9, "a guess")):
        judged = judge(replace(study, baselines=[NaiveBaseline("a guess", guess, "64")]), arms)
        assert judged[0].guess.startswith(said)
        assert bool(judged[0].guess) == bool(said)


def test_the_report_has_it_all(records: Any) -> None:
    report = write_study(records.study, records.trials)
    for name in ("sweep", "learning_rates"):
        assert report.paths[f"figures/{name}.png"].read_bytes()[:4] == b"\x89PNG"
    data = report.paths["figures/sweep.csv"].read_text()
    assert data.count("difference,") == 2
    assert data.count("metric,") == 4
    page = report.paths["report.html"].read_text()
    assert "Beside published numbers" in page
    assert "All 2 comparisons, case by case" in page
    assert "not comparable" in report.paths["published.md"].read_text()
    again = {name: path.read_bytes() for name, path in report.paths.items()}
    assert {
        name: path.read_bytes() for name, path in write_study(records.study, records.trials).paths.items()
    } == again


def test_cases_without_numbers_are_not_joined(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between one head and another there is nothing; names stand side by side."""
    study = study_of(records)
    arms = summarise(study)
    drawn: list[tuple[list[float], str]] = []
    original = Axes.errorbar

    def watch(axes: Axes, x: list[float], *rest: Any, **style: Any) -> Any:
        drawn.append((list(x), style["linestyle"]))
        return original(axes, x, *rest, **style)

    monkeypatch.setattr(Axes, "errorbar", watch)
    sweep.draw_all(study, arms, judge(study, arms))
    assert all(style != "" for _, style in drawn)
    numbers = [x for x, _ in drawn]
    assert numbers[0] == numbers[1]

    drawn.clear()
    named = replace(study, cases=[replace(case, at=None) for case in study.cases])
    sweep.draw_all(named, arms, judge(named, arms))
    assert {style for _, style in drawn} == {""}
    numbers = [x for x, _ in drawn]
    assert numbers[0] != numbers[1]


def change_result(records: Any, arm: str, seed: int, **changes: Any) -> None:
    path: Path = records.trials / records.ids[arm, seed] / "result.json"
    result = json.loads(path.read_text())
    result["metrics"]["test"] |= changes.pop("test", {})
    path.write_text(json.dumps(result | changes))


def test_an_arm_may_have_a_number_of_its_own(records: Any) -> None:
    path = records.study / "plan.json"
    plan = json.loads(path.read_text())
    for arm in plan["arms"]:
        arm["metric"] = f"accuracy_{arm['case']}"
    path.write_text(json.dumps(plan))
    for arm in ARMS:
        for seed in range(3):
            change_result(records, arm, seed, test={f"accuracy_{arm.partition(' @ ')[2]}": 70.0 + seed})
    change_result(
        records, "ssm @ 64", 2, test={"accuracy_64": None}, skipped={"64": "the cache is too large"}
    )
    study = study_of(records)
    assert study.arms["conv @ 64"].compared("accuracy") == {0: 70.0, 1: 71.0, 2: 72.0}
    assert list(study.arms["conv @ 64"].values("test", "accuracy").values()) == ARMS["conv @ 64"]
    missing = study.arms["ssm @ 64"].trials[2]
    assert missing.status == FAILED
    assert missing.error == "no test accuracy_64: the cache is too large"
    assert [trial.status for trial in study.arms["ssm @ 64"].trials] == [OK, OK, FAILED]
    comparisons = judge(study, summarise(study))
    assert math.isnan(comparisons[0].sampling.mean), "stored predictions are those of another test set"
    assert "cannot be read" not in comparisons[0].sentence
    assert comparisons[1].sentence.startswith("On induction(length=1024), by accuracy_1024, in mambaout-nano")
    table = comparison_table(study, summarise(study), comparisons)
    assert "test accuracy (%)" in [column.heading for column in table.columns]
    assert "Compared: accuracy_64 (64); accuracy_1024 (1024)." in " ".join(table.caption)
    row = trial_row(study.arms["conv @ 1024"].trials[0])
    assert (row["compared"], row["test_accuracy"], row["test_accuracy_1024"]) == ("accuracy_1024", 50.0, 70.0)


def test_the_axes_of_a_sweep_say_metric_and_baseline(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each case has a number of its own; what is drawn of an interval is a percentage."""
    test_an_arm_may_have_a_number_of_its_own(records)
    for seed, accuracy in enumerate((100.0, 99.0, 92.0)):
        change_result(records, "ssm @ 1024", seed, test={"accuracy_1024": accuracy})
    study = study_of(records)
    arms = summarise(study)
    assert arms["ssm @ 1024"].test.high > 100
    labels, marks = watch(monkeypatch, "set_ylabel"), watch(monkeypatch, "errorbar")
    drawing = sweep.sweep(study, arms, judge(study, arms))
    assert drawing is not None
    assert [label for (label,), _ in labels] == ["test accuracy (%)", "difference from conv (points)"]
    assert "paired difference from conv (the zero line), with" in drawing.caption
    assert "Intervals are drawn no further than 0 and 100 %." in drawing.caption
    tops = [y + error[1] for (_, y, error), _ in marks[:2]]
    assert max(map(max, tops)) == 100
    assert f"{arms['ssm @ 1024'].test.high:.4f}" in drawing.files["csv"].decode()


@pytest.mark.parametrize(
    ("metric", "own", "said"),
    [
        ("accuracy", ["accuracy_64", "accuracy_1024"], "accuracy"),
        ("key_accuracy", [None, None], "accuracy for the framed digit"),
        ("key_accuracy", ["own_accuracy", "key_accuracy_d1"], "accuracy"),
        ("key_accuracy", ["own_accuracy", "own_accuracy"], "accuracy for a digit itself"),
        ("bits_per_byte", [None, None], "bits per byte"),
        ("box_AP", ["box_AP", "mask_AP"], "AP"),
        ("box_AP", ["box_AP", "mask_AP50"], "metric of the case"),
    ],
)
def test_a_metric_in_words(records: Any, metric: str, own: list[str | None], said: str) -> None:
    study = study_of(records)
    study = replace(study, metric=replace(study.metric, name=metric))
    arms = [replace(arm, metric=name) for arm, name in zip(study.arms.values(), own, strict=False)]
    assert study.compared_by(arms) == said


def test_the_seeds_are_drawn_by_the_number_of_their_case(
    records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_an_arm_may_have_a_number_of_its_own(records)
    drawn: list[float] = []
    original = Axes.plot

    def plot(axes: Axes, x: Any, *rest: Any, **style: Any) -> Any:
        drawn.extend(x if style.get("markersize") == 3.4 else [])
        return original(axes, x, *rest, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    study = study_of(records)
    row_figures.seeds(study, list(summarise(study).values()))
    assert set(drawn) == {70.0, 71.0, 72.0}


def watch(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Any, dict[str, Any]]]:
    """The arguments of every call of a method of Axes from now on: those by place and those by name."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    original = getattr(Axes, method)

    def watched(axes: Axes, *arguments: Any, **style: Any) -> Any:
        calls.append((arguments, style))
        return original(axes, *arguments, **style)

    monkeypatch.setattr(Axes, method, watched)
    return calls


def with_the_same_models(records: Any) -> Study:
    """The study as if the models of the first length had been tested at the other one too."""
    plan = json.loads((records.study / "plan.json").read_text())
    for again, first in zip(plan["arms"][2:], plan["arms"][:2], strict=True):
        again["trials"] = first["trials"]
    records.edit_plan(arms=plan["arms"])
    return study_of(records)


def drawing_of(draw: Any, study: Study) -> Any:
    drawing = draw(study, list(summarise(study).values()))
    assert drawing is not None
    return drawing


def test_every_case_has_a_front_of_its_own(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """conv is cheaper, ssm better, at both lengths; conv @ 1024 is no rival of ssm @ 64."""
    calls = watch(monkeypatch, "plot")
    study = study_of(records)
    drawing = drawing_of(panel_figures.costs, study)
    fronts = [arguments[1] for arguments, style in calls if "drawstyle" in style]
    means = {name: arm.test.mean for name, arm in summarise(study).items()}
    assert fronts[:2] == [
        [means["conv @ 64"], means["ssm @ 64"]],
        [means["conv @ 1024"], means["ssm @ 1024"]],
    ]
    assert "dotted: the arms of each case that no other beats in both" in drawing.caption


def test_models_that_several_cases_test_are_drawn_once(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = with_the_same_models(records)
    assert study.first_cases == {"64": "64", "1024": "64"}
    marks, lines = watch(monkeypatch, "errorbar"), watch(monkeypatch, "plot")
    drawing = drawing_of(panel_figures.costs, study)
    assert {style["label"] for _, style in marks} == {"conv @ 64", "ssm @ 64"}
    assert "have the same costs: drawn is the first of them, 64." in drawing.caption
    assert "of each case" not in drawing.caption
    assert "ssm @ 1024" in drawing.files["csv"].decode()
    lines.clear()
    drawing = drawing_of(panel_figures.curves, study)
    assert [style["label"] for _, style in lines] == 2 * ["conv", "ssm"]  # in both panels
    assert "share their curves" in drawing.caption


def test_the_limit_of_marks_counts_what_is_drawn(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_figures, "MOST_LINES", 2)
    study = with_the_same_models(records)
    assert all(
        "Drawn: the first" not in drawing_of(draw, study).caption
        for draw in (panel_figures.costs, panel_figures.curves)
    )


def test_figures_are_cut_between_cases() -> None:
    cases: list[str | None] = [*"aaaaabbbbbccccc"]
    drawn, said = shown_arms.at_most(12, list(range(15)), cases)
    assert (len(drawn), said) == (15, ""), "the rest of a case that is nearly whole"
    drawn, said = shown_arms.at_most(9, list(range(15)), cases)
    assert (len(drawn), said) == (10, " Drawn: the first 10 of 15; the data file has all.")
    assert len(shown_arms.at_most(11, list(range(15)), cases)[0]) == 10
    assert len(shown_arms.at_most(11, list(range(15)), [None] * 15)[0]) == 11, "no case is whole"


def test_two_comparisons_of_an_arm_are_told_apart(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((records.study / "plan.json").read_text())
    again = [{**arm, "name": arm["name"].replace("conv", "conv2"), "arm": "conv2"} for arm in plan["arms"]]
    again = [arm for arm in again if "conv2" in arm["name"]]
    second = [{**each, "baseline": each["baseline"].replace("conv", "conv2")} for each in plan["comparisons"]]
    comparisons = plan["comparisons"] + second
    records.edit_plan(arms=plan["arms"] + again, comparisons=comparisons, families=[[0, 2], [1, 3]])
    study = study_of(records)
    arms = summarise(study)
    marks, labels = watch(monkeypatch, "errorbar"), watch(monkeypatch, "set_ylabel")
    drawing, *_ = sweep.draw_all(study, arms, judge(study, arms))
    looks = {style["label"]: (style["marker"], style.get("markerfacecolor")) for _, style in marks}
    assert looks["ssm \N{MINUS SIGN} conv"] == looks["ssm"] != looks["ssm \N{MINUS SIGN} conv2"]
    assert looks["ssm \N{MINUS SIGN} conv2"][1] == "white"
    assert labels[1][0][0] == "paired difference (points)"
    assert ">ssm \N{MINUS SIGN} conv2<" in drawing.files["svg"].decode()


def test_rates_are_ticks_and_nothing_else_is(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = watch(monkeypatch, "set_xticks")
    axes = Figure().add_subplot()
    sweep._rate_axis(axes, [3e-3, 1e-2, 3e-2], upright=True)
    assert ticks[-1][0] == ([3e-3, 1e-2, 3e-2],)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.003", "0.01", "0.03"]
    assert not len(axes.xaxis.get_minorticklocs())


def test_an_arm_has_its_colour_in_every_case(records: Any) -> None:
    looks = shown_arms.looks_of(study_of(records), list(summarise(study_of(records)).values()))
    assert looks["conv @ 64"]["color"] == looks["conv @ 1024"]["color"] != looks["ssm @ 64"]["color"]
    distinct = {tuple(map(str, look.values())) for look in looks.values()}
    assert len(distinct) == len(ARMS)
    shared = with_the_same_models(records)
    looks = shown_arms.looks_of(shared, list(summarise(shared).values()))
    assert looks["conv @ 64"] == looks["conv @ 1024"]


def test_no_line_joins_the_seeds_of_two_cases(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collections = watch(monkeypatch, "add_collection")
    drawing = drawing_of(row_figures.seeds, study_of(records))
    (joined,), _ = collections[0]
    rows = [sorted({round(y) for _, y in line}) for line in joined.get_segments()]
    assert sorted(rows) == 3 * [[0, 1]] + 3 * [[2, 3]]
    assert "joining the same seed within a case" in drawing.caption


def test_a_hard_case_is_not_far_out(records: Any) -> None:
    """All arms of one case are far below those of the other, and none is far below its rivals."""
    hard = {"conv @ 1024": 50.0, "ssm @ 1024": 52.0, "conv @ 64": 96.0, "ssm @ 64": 98.0}
    for arm, accuracy in hard.items():
        for seed in range(3):
            change_result(records, arm, seed, test={"accuracy": accuracy + seed})
    for draw in (panel_figures.costs, panel_figures.curves, row_figures.seeds):
        assert "oo far out" not in drawing_of(draw, study_of(records)).caption, draw


def test_each_case_has_its_skeleton_and_each_arm_its_budget(records: Any) -> None:
    path = records.study / "plan.json"
    plan = json.loads(path.read_text())
    plan["cases"]["entries"][1]["skeleton"] = "causal-lm(depth=4)"
    for arm in plan["arms"]:
        if arm["name"] == "ssm @ 64":
            arm["budget"] = "99 epochs"
    path.write_text(json.dumps(plan))
    study = study_of(records)
    arms = summarise(study)
    at_64, at_1024 = comparisons = judge(study, arms)
    assert at_64.sentence.startswith("On induction(length=64) in mambaout-nano")
    assert "ssm at 99 epochs and conv at 20 epochs of 1,077 images, batch 64." in at_64.sentence
    assert at_1024.sentence.startswith("On induction(length=1024) in causal-lm(depth=4)")
    assert ", at 20 epochs of 1,077 images, batch 64." in at_1024.sentence
    caption = " ".join(comparison_table(study, arms, comparisons).caption)
    assert "mambaout-nano and causal-lm(depth=4)" in caption
    assert "20 epochs of 1,077 images, batch 64; and 99 epochs" in caption


def test_last_epochs_may_differ_between_cases(records: Any) -> None:
    """And are not taken for a choice on validation."""
    for arm in ("conv @ 64", "ssm @ 64"):
        for seed in range(3):
            change_result(records, arm, seed, selected_epoch=10, trial={"train": {"epochs": 10}})
            path = records.trials / records.ids[arm, seed] / "curve.csv"
            path.write_text("\n".join(path.read_text().splitlines()[:11]))
    study = study_of(records)
    assert "of the last epoch (10 to 20)" in selection_rule(study, summarise(study).values())
    said = selection_rule(study, summarise(study).values())
    assert "among 3, the same for every arm of a case, on seed 1000, which is not reported; still" in said
    assert said.endswith("still best at an edge of its grid: ssm @ 64.")
    change_result(records, "ssm @ 1024", 0, selected_epoch=15)
    study = study_of(records)
    assert "of the epoch chosen on validation (10 to 20)" in selection_rule(study, summarise(study).values())
    path = records.study / "plan.json"
    plan = json.loads(path.read_text())
    plan["search"]["seeds"].append(1001)
    plan["search"]["arms"][0]["points"].pop()
    path.write_text(json.dumps(plan))
    study = study_of(records)
    said = selection_rule(study, summarise(study).values())
    assert "among 2 to 3, the same" in said
    assert "on seeds 1000 and 1001, which are not reported" in said


def test_what_was_settled_late_is_said(records: Any) -> None:
    """With each verdict and below the table, in the same words."""
    history = History(comparisons_before=5, looks=(2, 3), seeds_before=8, metric_after=6, margin_after=4)
    late = replace(study_of(records), history=history)
    arms = summarise(late)
    comparisons = judge(late, arms)
    table = comparison_table(late, arms, comparisons)
    for text in (comparisons[0].sentence, " ".join(table.caption)):
        assert "Asked with results at hand, from among 5 comparisons: p allows for 1." in text
        assert "Seeds were added after a look at 2: neither" in text, "and not at the seeds there are"
        assert "There were results of 8 seeds when these 3 were asked for: neither" in text
        assert "What is compared was chosen when 6 trials had already finished: neither" in text
    begun = settled_late([replace(comparisons[0], seeds=(0, 1))], late)
    assert any("after a look at 2: neither" in said for said in begun), "also while the third is on its way"
    assert "The margin was set when 4 trials had already finished." in comparisons[0].sentence
    assert "margin ±1 point, set when 4 trials had already finished" in " ".join(table.caption)
    assert "The margin" not in judge(replace(late, margin=None), arms)[0].sentence, "there is none"


def test_planned_looks_are_said_with_their_level(records: Any) -> None:
    study = replace(study_of(records), planned_looks=[3, 6], alpha=0.025)
    arms = summarise(study)
    comparisons = judge(study, arms)
    table = comparison_table(study, arms, comparisons)
    for text in (comparisons[0].sentence, " ".join(table.caption)):
        assert "To be judged at 3 and 6 seeds, until decided, as planned before the run: each time at" in text
        assert "97.5 %" in text
    late = replace(study, history=History(looks_after=4))
    assert "was planned when 4 trials had already finished: neither" in judge(late, arms)[0].sentence
    once = judge(replace(late, planned_looks=[], alpha=0.05), arms)[0].sentence
    assert "To judge once, at 5 %, and not at several numbers of seeds as planned before, was decided" in once


def test_what_the_tests_allow_for_is_not_said(records: Any) -> None:
    study = replace(study_of(records), history=History(comparisons_before=2, looks=(3,), seeds_before=3))
    first, second = judge(study, summarise(study))
    assert settled_late([replace(first, family_size=2)], study) == []
    assert settled_late([], study) == []
    several = replace(study, history=replace(study.history, comparisons_before=5))
    (said,) = settled_late([replace(first, family_size=3), second], several)
    assert said.endswith("p allows for 1 or 3.")


def test_in_the_terminal_names_stand_whole_under_their_case(write_records: Any) -> None:
    arms = {f"{arm} @ {case}": [95.0, 95.5, 96.0] for case in ("32", "64") for arm in ("conv + ssm", "conv")}
    records = write_records(arms)
    plan = json.loads((records.study / "plan.json").read_text())
    for arm in plan["arms"]:
        arm["arm"], arm["case"] = arm["name"].split(" @ ")
    records.edit_plan(
        arms=plan["arms"],
        cases={"axis": "length", "log": False, "entries": [_case("32"), _case("64")]},
        comparisons=[{"arm": f"conv + ssm @ {case}", "baseline": f"conv @ {case}"} for case in ("32", "64")],
        baselines=[{"name": "a random answer", "value": 10.0, "case": case} for case in ("32", "64")],
    )
    said = write_study(records.study, records.trials).terminal_table
    lines = said.splitlines()
    assert "…" not in said
    assert lines.count("@ 32") == lines.count("@ 64") == 1  # the costs are the same in both
    assert [line.split("  ")[0] for line in lines[lines.index("@ 32") :][:3]] == [
        "@ 32",
        "conv + ssm",
        "conv",
    ]
    assert "naive baselines: a random answer 10.00 at 32 and 64" in lines
    assert "(test split of seed 0)" not in said
    assert "Naive baselines are of the test split of seed 0." in " ".join(said.split())


def _case(name: str) -> dict[str, object]:
    return {"name": name, "at": None, "series": None, "about": "digits"}
