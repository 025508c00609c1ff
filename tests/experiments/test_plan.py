"""What a stored plan is good for."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import plan, stored_plan
from experiments.history import History, trace
from experiments.study import Arm, Case, Published, Study
from mixers.registry import InputError

STUDY = Study(
    question="?", varied="", fixed="", cost="", answer="", task="digits", skeleton="isotropic-nano",
    baseline="conv", mixers=("conv", "identity", "pooling"), seeds=3, match="none", margin=1.0,
)  # fmt: skip

ORIGIN = plan.Origin("command")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    stored_plan.write(stored_plan.make("words", STUDY, path), path, ORIGIN)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "!", "answer": "yes"},
        {"seeds": 1_000},
        {"comparisons": (("pooling", "identity"),)},
        {"published": (Published("pooling", 99.0, "nowhere", "best of one", 1.0),)},
    ],
)
def test_other_words_seeds_or_comparisons_need_no_models(
    changes: dict[str, Any], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(STUDY, **changes)
    fresh = stored_plan.make("words", wanted, stored.with_name("none"))
    monkeypatch.setattr(stored_plan, "resolve", lambda *_: pytest.fail("models were built"))
    assert stored_plan.make("words", wanted, stored).to_dict(ORIGIN) == fresh.to_dict(ORIGIN)


def test_a_plan_that_cannot_be_stored_is_said(stored: Path) -> None:
    stored.unlink()
    stored.mkdir()
    with pytest.raises(InputError, match=f"no plan can be stored in {stored.parent}: Is a directory"):
        stored_plan.write(stored_plan.make("words", STUDY, stored), stored, ORIGIN)


def test_a_stored_plan_reads_as_it_was_made(stored: Path) -> None:
    """Options come in the same order: the report of today is that of tomorrow."""
    made, read = stored_plan.make("words", STUDY, Path("none")), stored_plan.make("words", STUDY, stored)
    assert [str(arm.template.task) for arm in read.arms] == [str(arm.template.task) for arm in made.arms]
    assert [arm.template.mixer_text for arm in read.arms] == [arm.template.mixer_text for arm in made.arms]
    before = stored.read_bytes()
    stored_plan.write(read, stored, ORIGIN)
    assert stored.read_bytes() == before


def test_a_plan_is_renewed_where_it_is(stored: Path) -> None:
    """Its command, its file and its shards stay; what has not changed is not written again."""
    origin = plan.Origin("command --shard 1/2", "/studies/words.toml", shards=2)
    made = stored_plan.make("words", STUDY, stored)
    stored_plan.write(made, stored, origin)
    of_older_code = stored.read_text().replace(f'"key": "{plan.key_of("words", STUDY)}"', '"key": "older"')
    stored.write_text(of_older_code)
    assert stored_plan.renew(made, stored, origin.history) is None
    assert stored.read_text() == of_older_code

    changed = replace(made, study=replace(STUDY, question="Another?", seeds=4))
    late = History(margin_after=3)
    assert stored_plan.renew(changed, stored, late) is None
    expected = stored.with_name("expected.json")
    stored_plan.write(changed, expected, replace(origin, history=late))
    assert stored.read_bytes() == expected.read_bytes()
    assert stored_plan.stored_seeds(json.loads(stored.read_bytes())) == 4

    before = stored.read_bytes()
    wider = replace(STUDY, mixers=("conv(kernel_size=9)",), arms=(Arm("conv", "conv(kernel_size=3)"),))
    why = stored_plan.renew(stored_plan.make("words", wider, Path("none")), stored, History())
    assert why is not None
    assert "conv, identity, pooling would be other trials today: this is the report of what ran" in why
    assert stored.read_bytes() == before


@pytest.mark.parametrize(
    "damage", ["", "[]", "3", '{"arms": []}', '{"arms": [{"trials": [{}]}]}', "families"]
)
def test_a_plan_that_cannot_be_read_is_none_and_stays(stored: Path, damage: str) -> None:
    made = stored_plan.make("words", STUDY, stored)
    content = stored_plan.load_stored(stored)
    assert content is not None
    without = json.dumps({key: value for key, value in content.items() if key != damage})
    stored.write_text(without if damage in content else damage)
    before = stored.read_bytes()
    assert stored_plan.load_stored(stored) is None
    assert stored_plan.renew(made, stored, History()) is None
    assert stored.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "digits(canvas=8)"},
        {"baseline": "pooling"},
        {"match": "params"},
        {"margin": 2.0},
        {"lr_grid": (1e-3, 2e-3)},
        {"arms": (Arm("wide", "conv(kernel_size=9)"),)},
        {"train": replace(STUDY.train, epochs=3)},
    ],
)
def test_another_model_or_recipe_is_planned_anew(
    changes: dict[str, Any], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Resolved(Exception):
        pass

    def resolve(*_: object) -> None:
        raise Resolved

    monkeypatch.setattr(stored_plan, "resolve", resolve)
    with pytest.raises(Resolved):
        stored_plan.make("words", replace(STUDY, **changes), stored)


INDUCTION = replace(
    STUDY,
    task="induction(length=16, vocabulary=8, test_lengths=8..32, train=64, validation=8, test=8)",
    skeleton="causal-lm(dim=16, depth=1)",
    baseline="identity",
    mixers=("identity", "ssm"),
)


def planned(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return stored_plan.make("p", replace(INDUCTION, **changes), tmp_path / "none").to_dict(ORIGIN)


def test_a_case_may_compare_a_further_test_set(tmp_path: Path) -> None:
    content = planned(tmp_path, cases=(Case("32", metric="accuracy_32"),))
    assert {arm["metric"] for arm in content["arms"]} == {"accuracy_32"}
    assert {row["case"] for row in content["baselines"]} == {"32"}


def test_what_guesses_get_is_of_the_test_set_that_a_case_compares(tmp_path: Path) -> None:
    task = INDUCTION.task.replace("test=8", "test=2000").replace("8..32", "8..1024")
    cases = tuple(Case(name, metric=f"accuracy_{name}") for name in ("8", "1024"))
    content = planned(tmp_path, task=task, cases=(Case("own"), *cases))
    best: dict[str, float] = {}
    for row in content["baselines"]:
        best.setdefault(row["case"], row["value"])
    assert best["8"] > best["own"] > best["1024"]


def test_a_test_longer_than_the_learned_positions_is_refused_before_the_run(tmp_path: Path) -> None:
    learned = "causal-lm(dim=16, depth=1, position=learned)"
    planned(tmp_path, skeleton=learned, cases=(Case("8", metric="accuracy_8"),))
    with pytest.raises(InputError, match="learned 16 positions, 32 tokens came"):
        planned(tmp_path, skeleton=learned, cases=(Case("32", metric="accuracy_32"),))


@pytest.mark.parametrize("metric", ["acuracy_32", "loss_32", "accuracy_64"])
def test_a_number_that_is_not_measured_is_refused_before_the_run(tmp_path: Path, metric: str) -> None:
    with pytest.raises(InputError, match=f"case 32: metric '{metric}' is not measured.*known: accuracy,"):
        planned(tmp_path, cases=(Case("32", metric=metric),))


def test_a_case_compares_in_the_unit_and_direction_of_the_study(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"task": "bytes(length=32, train=64, validation=8, test=8)"}
    changes |= {"cases": (Case("c", metric="accuracy"),)}
    with pytest.raises(InputError, match="in %, higher is better, and not in bits, lower is better"):
        planned(tmp_path, **changes)


def test_cases_that_report_different_numbers_need_a_metric(tmp_path: Path) -> None:
    cases = (Case("a"), Case("b", task="bytes(length=32, train=64, validation=8, test=8)"))
    with pytest.raises(InputError, match="accuracy in a, bits_per_byte in b; metric must name one"):
        planned(tmp_path, cases=cases)
    content = planned(tmp_path, cases=cases, metric="accuracy")
    assert {row["case"] for row in content["baselines"]} == {"a"}, "those of bytes are in bits"


def test_trials_are_named_by_their_first_arm_in_the_order_of_the_arms() -> None:
    arms = (Arm("again", "identity"), Arm("wide", "conv(kernel_size=9)"))
    made = stored_plan.make("words", replace(STUDY, seeds=1, arms=arms), Path("none"))
    assert list(made.labels()) == list(made.arms_by_trial()) == [trial.id for trial in made.trials()]
    assert list(made.arms_by_trial().values()) == ["conv", "identity", "pooling", "wide"]
    assert list(made.labels().values())[1] == "identity seed 0"


def test_what_is_gated_twice_is_said() -> None:
    mixers = ("conv", "gated-conv")
    twice = stored_plan.make("words", replace(STUDY, mixers=mixers), Path("none"))
    (said,) = plan.gated_twice(twice)
    assert "gated-conv projects and gates by itself, and so does the block gated" in said
    for skeleton in ("isotropic-nano(block=metaformer)", "isotropic-nano(gate=false)"):
        once = stored_plan.make("words", replace(STUDY, mixers=mixers, skeleton=skeleton), Path("none"))
        assert plan.gated_twice(once) == []


def test_a_plan_says_each_case_and_each_budget(tmp_path: Path) -> None:
    cases = (Case("short"), Case("deep", skeleton={"depth": 2}))
    arms = (Arm("longer", "identity", train={"epochs": 7}),)
    content = planned(tmp_path, cases=cases, arms=arms)
    assert [entry["skeleton"] for entry in content["cases"]["entries"]] == [
        "causal-lm(dim=16, depth=1)",
        "causal-lm(dim=16, depth=2)",
    ]
    budgets = {arm["arm"]: arm["budget"] for arm in content["arms"]}
    assert budgets["longer"].startswith("7 epochs of 64 examples")
    assert not budgets["ssm"].startswith("7")


# ---- history


def traced(
    study: Study,
    own: dict | None,
    whole: dict | None = None,
    parts: Sequence[dict] = (),
    done: Collection[str] | None = None,
    fixed: Collection[str] = (),
) -> History:
    """With the trials of the stored plans finished, unless it is said which are."""
    if done is None:
        done = trial_ids(*(content for content in (own, whole, *parts) if content))
    return trace(content_of(study), own, whole, parts, lambda ids: len(set(ids) & set(done)), fixed=fixed)


def trial_ids(*plans: dict[str, Any]) -> set[str]:
    return {each["trial_id"] for content in plans for arm in content["arms"] for each in arm["trials"]}


def content_of(study: Study, **late: Any) -> dict[str, Any]:
    made = stored_plan.make("words", study, Path("none"))
    return made.to_dict(plan.Origin("command", history=History(**late)))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The stored plan of a study of two comparisons and three seeds."""
    return content_of(STUDY)


FEWER = replace(STUDY, comparisons=(("pooling", "conv"),))


def test_comparisons_chosen_among_more_with_results_are_remembered(whole: dict[str, Any]) -> None:
    assert traced(FEWER, whole).comparisons_before == 2
    assert traced(FEWER, None, whole).comparisons_before == 2, "also as a study of its own"
    assert traced(FEWER, whole, done=()).comparisons_before == 0
    assert traced(FEWER, None, whole, fixed=("comparisons",)).comparisons_before == 0, "nobody chose"
    stored = content_of(FEWER, comparisons_before=2)
    assert traced(FEWER, stored).comparisons_before == 2, "for ever"
    first = content_of(FEWER)
    assert traced(FEWER, first, whole).comparisons_before == 0, "what was asked first was not chosen"
    assert traced(STUDY, first).comparisons_before == 0, "more are adjusted for"


def of(*mixers: str, **changes: Any) -> Study:
    """What `--mixer` asks of the study: those mixers against its baseline."""
    return replace(STUDY, mixers=("conv", *mixers), **changes)


def test_comparisons_asked_one_at_a_time_are_counted(whole: dict[str, Any]) -> None:
    first = content_of(of("pooling"))
    assert traced(of("identity"), None, None, [first]).comparisons_before == 2
    second = content_of(of("identity"), comparisons_before=2)
    assert traced(of("attention"), None, None, [first, second]).comparisons_before == 3
    assert traced(of("attention"), None, whole, [first]).comparisons_before == 3, "a comparison counts once"
    assert traced(of("attention", "identity"), None, None, [first]).comparisons_before == 3
    assert traced(of("pooling", "identity"), None, None, [first]).comparisons_before == 0, "adjusted for"
    assert traced(of(), None, None, [first]) == History(), "nothing is compared"


def test_what_was_asked_before_the_others_was_not_chosen() -> None:
    first, second = (content_of(of(mixer)) for mixer in ("pooling", "identity"))
    assert traced(of("pooling"), first, None, [second]).comparisons_before == 0
    assert traced(of("pooling", margin=2.0), None, None, [second, first]).comparisons_before == 0
    assert traced(of("pooling"), first | {"comparisons_before": 4}, None, [second]).comparisons_before == 4


def test_a_part_without_a_difference_is_no_result() -> None:
    """Planned beside one that has run, it has the trials of the baseline."""
    other = content_of(of("pooling"))
    baseline = trial_ids(content_of(of()))
    assert baseline < trial_ids(other)
    assert traced(of("identity"), None, None, [other], done=baseline).comparisons_before == 0


def test_one_difference_of_one_seed_is_a_result() -> None:
    """Of all that was asked: whoever has seen it may have gone on to something else."""
    one_seed = trial_ids(content_of(of("pooling", seeds=1)))
    other = content_of(of("identity", "pooling"))
    assert traced(of("attention"), None, None, [other], done=one_seed).comparisons_before == 3


def test_the_other_way_round_is_the_same_comparison() -> None:
    turned = content_of(of("pooling", baseline="pooling"))
    assert traced(of("pooling"), None, None, [turned]).comparisons_before == 0
    assert traced(of("identity"), None, None, [turned]).comparisons_before == 2


def test_each_case_is_a_question_of_its_own() -> None:
    cases = (Case("a"), Case("b", task={"canvas": 9}))
    other = content_of(of("pooling", cases=cases))
    assert traced(of("identity", cases=cases), None, None, [other]).comparisons_before == 2
    of_one = content_of(of("pooling", cases=cases[:1]))
    assert traced(of("identity", cases=cases), None, None, [of_one]).comparisons_before == 2


def test_another_task_is_another_study() -> None:
    other = replace(STUDY, task="digits(canvas=9)")
    assert traced(FEWER, None, content_of(other, margin_after=9)) == History()
    parts = [content_of(replace(other, mixers=("conv", "identity")))]
    assert traced(of("pooling"), None, None, parts) == History()
    late = content_of(replace(other, comparisons=FEWER.comparisons), comparisons_before=2, looks=(2,))
    assert traced(FEWER, late) == History(), "also in the same place"
    without_common_arms = replace(STUDY, baseline="identity", mixers=("identity", "attention"))
    late = content_of(of("pooling"), margin_after=9, comparisons_before=2)
    assert traced(without_common_arms, late) == History()


def test_a_study_is_known_by_its_arms_at_any_learning_rate(whole: dict[str, Any]) -> None:
    """Rates are chosen later, and with results at hand; the mixer behind a name is another study's."""
    at_another_rate = replace(STUDY, train=replace(STUDY.train, lr=9e-4))
    assert traced(STUDY, None, content_of(at_another_rate, margin_after=7)).margin_after == 7
    wide = replace(STUDY, arms=(Arm("wide", "conv(kernel_size=9)"),))
    wider = replace(STUDY, arms=(Arm("wide", "conv(kernel_size=11)"),))
    assert traced(wide, None, content_of(wider, margin_after=7), done=()) == History()


def test_a_comparison_that_took_anothers_place_may_be_the_same_one_renamed() -> None:
    before = content_of(of("pooling"))
    assert traced(of("identity"), before).comparisons_before == 0
    stored = before | {"comparisons_before": 4}
    assert traced(of("identity"), stored).comparisons_before == 4, "it was chosen among others, too"
    third = content_of(of("attention"))
    assert traced(of("identity"), stored, None, [third]).comparisons_before == 4, "of which some may be gone"


def test_seeds_added_after_a_look_are_remembered(whole: dict[str, Any]) -> None:
    more = replace(STUDY, seeds=5)
    assert traced(more, whole).looks == (3,)
    assert traced(more, None, whole).looks == (3,), "also as a study of its own"
    assert traced(more, whole, done=trial_ids(content_of(replace(STUDY, seeds=2)))).looks == ()
    stored = content_of(more, looks=(3,))
    assert traced(replace(STUDY, seeds=8), stored).looks == (3, 5)
    assert traced(more, stored, done=()).looks == (3,)


def test_looks_that_were_planned_are_not_held_against_a_study() -> None:
    """But for those that were planned with results at hand."""
    at_3, at_5 = (replace(STUDY, looks=(3, 5), seeds=seeds) for seeds in (3, 5))
    before = content_of(at_3)
    assert (before["planned_looks"], before["alpha"]) == ([3, 5], 0.025)
    assert traced(at_5, before) == History()
    assert traced(replace(STUDY, seeds=5), before).looks == (3,), "not planned any more"
    assert traced(replace(STUDY, seeds=5), before).looks_after > 0
    unplanned = content_of(STUDY)
    assert traced(at_3, unplanned).looks_after == len(trial_ids(unplanned))
    assert traced(at_5, unplanned).looks == (3,)
    assert traced(at_5, content_of(at_3, looks_after=7)).looks_after == 7, "once known, it stays"
    between = content_of(replace(at_3, seeds=4))
    assert traced(at_5, between).looks == (4,), "a look that was not planned"


def test_looks_planned_in_time_may_be_at_seeds_of_another_plan() -> None:
    """One that was only planned has them as soon as the first look is taken; the level allows for that."""
    only_planned, at_3 = content_of(STUDY), content_of(of("pooling", looks=(3, 5)))
    at_5 = of("pooling", looks=(3, 5), seeds=5)
    assert traced(at_5, at_3, only_planned) == History()
    told = content_of(replace(STUDY, seeds=5), looks=(3,))  # of the same seeds, and not as planned there
    assert traced(at_5, at_3, told, done=trial_ids(at_3)) == History()
    assert traced(at_5, at_3 | {"looks_after": 4}, only_planned).looks == (3,), "too late to allow for it"


def test_seeds_asked_for_before_are_neither_added_nor_left_out(whole: dict[str, Any]) -> None:
    """Whatever there is by now: whoever goes on after an interruption gets the report without one."""
    asked = of("pooling", seeds=5)
    own, half_way = content_of(asked), trial_ids(content_of(of("pooling", seeds=4)))
    assert traced(asked, own, whole, done=half_way).looks == ()
    assert traced(asked, None, whole, done=half_way).looks == (3,), "if it was not"
    assert traced(asked, own | {"looks": [3], "seeds_before": 8}).looks == (3,), "once known, it stays"
    more = content_of(replace(STUDY, seeds=8))
    assert traced(asked, own, more).seeds_before == 0
    assert traced(asked, own | {"seeds_before": 8}, more).seeds_before == 8
    fewer, wider = content_of(of("pooling", seeds=4)), of("pooling", "identity", seeds=5)
    assert traced(asked, fewer, more).seeds_before == 8, "others were asked for"
    assert traced(wider, own, more).seeds_before == 8, "of something else"
    assert traced(asked, content_of(of("pooling", seeds=5, looks=(3, 5))), more).seeds_before == 8


def test_a_report_of_fewer_seeds_is_no_look(whole: dict[str, Any]) -> None:
    """All of the later ones were there."""
    five = content_of(replace(STUDY, seeds=5))
    done = trial_ids(five)
    assert traced(STUDY, five, done=done).looks == ()
    assert traced(replace(STUDY, seeds=5), whole, done=done).looks == ()


def test_seeds_that_are_left_out_are_remembered(whole: dict[str, Any]) -> None:
    five = content_of(replace(STUDY, seeds=5))
    assert traced(STUDY, five).seeds_before == 5
    assert traced(STUDY, five, done=trial_ids(whole)).seeds_before == 0, "the later ones had not run"
    only_conv = trial_ids(whole, content_of(of(seeds=5)))
    assert traced(STUDY, five, done=only_conv).seeds_before == 0, "nor had any pair of theirs"
    assert traced(STUDY, content_of(replace(STUDY, seeds=4))).seeds_before == 4
    again = replace(STUDY, arms=(Arm("again", "conv"),), comparisons=(("again", "conv"),))
    assert traced(again, content_of(replace(again, seeds=5))).seeds_before == 5, "one trial behind both arms"
    fewer = content_of(STUDY, seeds_before=5)
    assert traced(STUDY, fewer).seeds_before == 5, "for ever"
    assert traced(of("pooling"), None, None, [fewer]).seeds_before == 5, "also under another name"
    assert traced(replace(STUDY, seeds=5), fewer, done=trial_ids(five)) == History(looks=(5,)), "all are back"
    assert traced(replace(STUDY, seeds=8), fewer, done=trial_ids(five)).looks == (3, 5)
    at_3, at_5 = (replace(STUDY, looks=(3, 5), seeds=seeds) for seeds in (3, 5))
    assert traced(at_3, content_of(at_5)) == History(), "its level allows for both"


def test_a_look_under_another_name_is_one(whole: dict[str, Any]) -> None:
    more, part = replace(STUDY, seeds=5), content_of(of("pooling"))
    assert traced(more, None, None, [part]).looks == (3,)
    assert traced(of("pooling", "identity", seeds=5), None, None, [part]).looks == (3,)
    assert traced(of("identity", seeds=5), None, None, [part]).looks == (), "at nothing that is asked now"
    assert traced(of("pooling", "identity"), None, None, [part]).looks == (), "at no fewer seeds"
    assert traced(of("pooling", seeds=5), None, whole, done=trial_ids(part)).looks == (3,), (
        "nothing else counts"
    )


@pytest.mark.parametrize("fixed", [(), ("margin", "metric", "comparisons")])
def test_the_share_of_planned_looks_cannot_be_had_back(fixed: tuple[str, ...]) -> None:
    """Undecided at 2.5 %, one might take the looks out of the file, or not ask for them, and judge at 5 %."""
    before = content_of(replace(STUDY, looks=(3, 5)))
    ids = trial_ids(before)

    def after(own: dict | None, parts: Sequence[dict] = (), done: Collection[str] = ids) -> int:
        return traced(STUDY, own, None, parts, done, fixed).looks_after

    assert after(before) == after(None, [before]) == len(ids)
    assert after(before, done=()) == 0, "nothing was seen"
    assert after(content_of(STUDY, looks_after=6)) == 6, "for ever"
    assert after(content_of(STUDY), [before]) == 0, "judged once before there were looks"
    assert after(None) == 0
    elsewhere = trial_ids(content_of(of("attention")))
    part = content_of(of("pooling"))
    assert (
        traced(of("pooling", "attention"), None, None, [part], trial_ids(part) | elsewhere).looks_after == 0
    )


def test_looks_planned_under_another_name_with_results_at_hand_are_late(whole: dict[str, Any]) -> None:
    at_3 = replace(STUDY, looks=(3, 5))
    assert traced(at_3, None, None, [whole]).looks_after == len(trial_ids(whole))


def test_a_margin_that_another_part_had_before_the_run_is_not_late() -> None:
    part, other = content_of(of("pooling")), content_of(of("pooling", margin=3.0))
    assert traced(of("pooling", "identity", seeds=5), None, None, [part]).margin_after == 0
    assert traced(of("pooling"), None, None, [other]).margin_after == len(trial_ids(other))
    empty = content_of(of("identity", "attention"))  # planned at this margin, and never run
    assert traced(of("pooling"), None, None, [other, empty], trial_ids(other)).margin_after > 0


def test_a_late_margin_does_not_become_early_by_being_stored(whole: dict[str, Any]) -> None:
    late = content_of(of("pooling"), margin_after=7, metric_after=5)
    stays = traced(of("pooling"), late)
    assert (stays.margin_after, stays.metric_after) == (7, 5)
    part = traced(of("pooling", "identity"), None, None, [late])
    assert part.margin_after == part.metric_after == len(trial_ids(late)), "also under another name"
    other = content_of(replace(STUDY, margin=3.0), margin_after=7)
    assert traced(STUDY, other, done=()).margin_after == 0, "another margin, before the run"
    early = {key: value for key, value in whole.items() if key not in vars(History())}
    assert traced(STUDY, early) == History(), "stored by code that did not count"


def test_a_margin_that_is_not_the_users_is_late_only_where_another_was_in_place(
    whole: dict[str, Any],
) -> None:
    fixed = ("margin", "metric", "comparisons")
    other = content_of(replace(STUDY, margin=3.0)) | {"metric": whole["metric"] | {"name": "loss"}}
    part = traced(of("pooling"), None, None, [other], fixed=fixed)
    assert part == History(), "the user had no choice"
    assert traced(STUDY, other, fixed=fixed).margin_after == len(trial_ids(other))
    of_the_file = traced(of("pooling"), None, other, fixed=fixed)
    assert of_the_file.margin_after == of_the_file.metric_after > 0
    for key in ("margin", "metric"):
        late = vars(traced(of("pooling"), None, None, [other], fixed=(key,)))
        assert [name for name in ("margin_after", "metric_after") if not late[name]] == [f"{key}_after"]


def test_a_setting_is_as_late_as_its_first_seeds(whole: dict[str, Any]) -> None:
    """Whatever other seeds are there already: with 5 asked for, then 3, then 5 again, nothing was changed."""
    five = replace(STUDY, seeds=5)
    done = trial_ids(content_of(five))
    assert traced(five, whole, done=done).margin_after == 0
    wider = replace(STUDY, margin=2.0)
    later_seeds = done - trial_ids(whole)
    assert traced(wider, content_of(five), done=later_seeds).margin_after == len(later_seeds)
    assert traced(of("identity", "attention"), content_of(of("identity")), done=done).margin_after == 0
    attention = trial_ids(content_of(of("attention"))) - trial_ids(content_of(of()))
    more_arms = traced(of("identity", "attention"), content_of(of("identity")), done=done | attention)
    assert more_arms.margin_after == len(attention), "those of an arm that is new in this study"


def test_another_metric_with_results_at_hand_is_remembered(whole: dict[str, Any]) -> None:
    before = whole | {"metric": whole["metric"] | {"name": "loss"}}
    assert traced(STUDY, before).metric_after == len(trial_ids(whole))
    assert traced(STUDY, before, done=()).metric_after == traced(STUDY, whole).metric_after == 0
    first, *others = whole["arms"]
    own = whole | {"arms": [first | {"metric": "accuracy_1024"}, *others]}
    assert traced(STUDY, own).metric_after == len(trial_ids(whole)), "also of a case"
