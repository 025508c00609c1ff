"""Study files: every checked-in one loads, and whatever is wrong in one is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from experiments import command_line, stored_plan
from experiments import study as studies
from experiments.requested_study import requested_study
from experiments.trial import LEAST_SEEDS
from mixers.registry import InputError

GOOD = """
question = "q"
varied = "v"
fixed = "f"
cost = "c"
answer = "a"
task = "digits"
skeleton = "isotropic-nano"
baseline = "conv"
mixers = ["conv", "ssm"]
margin = 1.0
[train]
epochs = 2
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", studies.names())
def test_checked_in_studies_load(name: str) -> None:
    study = studies.load(studies.find(name))
    header = (study.question, study.varied, study.fixed, study.cost, study.answer)
    assert all(len(words) > 10 for words in header), "a study's header says what it asks and what came out"
    assert study.seeds >= LEAST_SEEDS
    assert study.all_comparisons()


def test_a_good_file(tmp_path: Path) -> None:
    study = studies.load(written(tmp_path, GOOD))
    assert study.all_comparisons() == (("ssm", "conv"),)
    assert study.train.epochs == 2
    (tmp_path / "mine.toml").write_text(GOOD.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert studies.load(tmp_path / "mine.toml") == study, "written by another editor"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", "unknown key 'train.epoch'; did you mean 'epochs'"),
        ("epochs = 2", "epochs = 0", "train.epochs: Input should be greater than or equal to 1 (got 0)"),
        ("epochs = 2", 'epochs = "two"', "train.epochs: Input should be a valid integer"),
        ("margin = 1.0", "margin = 1.0\nlooks = [5]", "looks must be at least two numbers of seeds"),
        ("margin = 1.0", "margin = 1.0\nlooks = [5, 5]", "looks must be at least two numbers of seeds"),
        (
            "margin = 1.0",
            "margin = 1.0\nlooks = [2, 5]",
            "looks.0: Input should be greater than or equal to 3",
        ),
        ("margin = 1.0", "margin = 1.0\nseeds = 5\nlooks = [5, 9]", "seeds and looks: give one of them"),
        ("margin = 1.0", "margn = 1.0", "margn"),
        ("margin = 1.0", "margin = -1.0", "margin: Input should be greater than 0"),
        ("margin = 1.0\n", "", "margin is missing"),
        ('baseline = "conv"', 'baseline = "pooling"', "'pooling' is not one of the arms"),
        ('["conv", "ssm"]', '["conv", "conv"]', "arm 'conv' is named twice"),
        ('["conv", "ssm"]', "[]", "no arms"),
        ('["conv", "ssm"]', '["conv", " "]', "the name of one arm is empty"),
        ("[train]", '[[cases]]\nname = ""\n[train]', "the name of one case is empty"),
        (
            "[train]",
            'log_axis = true\n[[cases]]\nname = "none"\nat = 0\n[train]',
            "case 'none' is at 0, where a logarithmic axis has no place",
        ),
        ("[train]", "lr_seeds = 1000000000000\n[train]", "lr_seeds: Input should be less than or equal to"),
        ('question = "q"', "question = q", "not valid TOML"),
        ("margin = 1.0", 'margin = "1"', "margin: Input should be a valid number"),
        ("margin = 1.0", "margin = 1.0\nseeds = true", "seeds: Input should be a valid integer"),
        (
            "margin = 1.0",
            "margin = 1.0\nseeds = 1000000",
            "seeds: Input should be less than or equal",
        ),
        ("margin = 1.0", 'margin = 1.0\ncomparisons = [["ssm", "ssm"]]', "'ssm' is compared with itself"),
        (
            "margin = 1.0",
            'margin = 1.0\ncomparisons = [["ssm", "conv"], ["conv", "ssm"]]',
            "'conv' and 'ssm' are compared twice",
        ),
        (
            "margin = 1.0",
            'margin = 1.0\nmatch = "flops"',
            "match: Input should be 'params', 'macs' or 'none'",
        ),
        (
            "[train]",
            '[[arms]]\nname = "x"\nmixer = "ssm"\nskelton = {}\n[train]',
            "'arms.0.skelton'; did you mean",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError) as raised:
        studies.load(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_example_of_the_documentation_is_a_study(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    path = written(tmp_path, text.partition("```toml\n")[2].partition("```")[0])
    study = studies.load(path)
    assert [arm.name for arm in study.all_arms()] == ["conv", "ssm", "no selection"]
    assert stored_plan.make("example", study, tmp_path / "plan.json").trials()
    for field in dataclasses.fields(studies.Study):
        assert field.name in text, f"{field.name} is not explained"


def test_what_is_not_known_before_the_run_may_be_left_out(tmp_path: Path) -> None:
    study = studies.load(written(tmp_path, GOOD.replace('cost = "c"\nanswer = "a"\n', "")))
    assert (study.cost, study.answer) == ("", "")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        studies.find(str(tmp_path))
    with pytest.raises(InputError, match="--study is empty"):
        studies.find("")
    with pytest.raises(InputError, match="does not exist"):
        studies.find(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="did you mean 'digits-ladder'"):
        studies.find("digit-ladder")
    with pytest.raises(InputError, match="cannot read study file"):
        studies.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        studies.load(tmp_path / "binary.toml")


def test_a_changed_study_does_not_tell_the_answer_of_the_original() -> None:
    def told(*arguments: str) -> studies.Study:
        return requested_study(command_line.parse(arguments))[1]

    original, seeds = told(), told("--seeds", "9")
    assert original.answer
    assert (seeds.answer, seeds.cost) == (original.answer, original.cost), "the same study, with more seeds"
    arms, rate = told("--mixer", "ssm"), told("--train.lr", "0.01")
    assert arms.varied == "The token mixer: conv, ssm."
    assert rate.varied == original.varied
    for changed in (arms, rate):
        assert (changed.answer, changed.cost) == ("", "")
        assert (changed.question, changed.fixed) == (original.question, original.fixed)
    moved = told("--task", "textures")
    assert moved.question == "Does textures in isotropic-nano need the SSM?"
    assert "6 x 6" not in moved.fixed


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("", r"digits-ladder"),
        ("--seeds 8", r"digits-ladder"),
        ("--mixer ssm", r"digits-ladder-conv-ssm"),
        ("--task.canvas 16", r"digits-ladder-\w{6}"),
        ("--task digits", r"digits-ladder-\w{6}"),
        ("--task textures", r"textures-\w{6}"),
        ("--task mine:Majority(length=17) --mixer ssm", r"majority-conv-ssm-\w{6}"),
        ("--study scan-directions --task textures", r"scan-directions-\w{6}"),
    ],
)
def test_what_the_folder_of_a_study_is_called(asked: str, name: str) -> None:
    assert re.fullmatch(name, requested_study(command_line.parse(asked.split()))[0])


def test_another_baseline_is_another_study() -> None:
    def asked(*arguments: str) -> tuple[str, studies.Study]:
        return requested_study(command_line.parse(arguments))

    name, original = asked()
    assert asked("--baseline", original.baseline) == (name, original)
    others = [asked("--baseline", arm.name) for arm in original.all_arms() if arm.name != original.baseline]
    names = [name, *(other for other, _ in others)]
    assert len(set(names)) == len(names)
    assert all(study.answer == "" for _, study in others)


def test_a_key_of_the_study_below_a_table_is_told_where_it_belongs(tmp_path: Path) -> None:
    file = tmp_path / "late.toml"
    file.write_text(studies.find("digits-ladder").read_text() + "seeds = 4\n")
    with pytest.raises(InputError, match=r"seeds is a key of the study, not of train: put it above"):
        studies.load(file)
