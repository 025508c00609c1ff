"""A task from the user's own file: held to the contract before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import run_ablation
from experiments.build import create_task
from experiments.tasks import TASKS, contract
from experiments.tasks.base import Classification
from mixers.registry import InputError

GOOD = '''
import torch

from experiments.interface import TaskSpec
from experiments.tasks.base import Classification, TokenClassification
from experiments.tasks.generated import GeneratedData


class Majority(Classification):
    """Are most of the bits ones?"""

    spec = TaskSpec("tokens", channels=2, grid=(17,), classes=2, causal=True)
    sizes = {"train": 64, "validation": 20, "test": 20}

    def load(self, seed):
        return GeneratedData("majority", self.draw, self.sizes, seed)

    def draw(self, count, random):
        bits = torch.randint(2, (count, 17), generator=random)
        return bits, (2 * bits.sum(1) > 17).long()
'''
PER_TOKEN = 'classes=2, output="per-token", causal=True'
IMAGE = 'TaskSpec("image", channels=1, grid=(8, 8), classes=2)'
TOKENS = 'TaskSpec("tokens", channels=2, grid=(17,), classes=2, causal=True)'
BITS = "bits = torch.randint(2, (count, 17), generator=random)"
ANSWER = "return bits, (2 * bits.sum(1) > 17).long()"


@pytest.fixture
def write_task(write_module: Callable[[str], str]) -> Callable[[str], str]:
    """Write the source of a module into the working directory and give the name of its task."""
    return lambda source: f"{write_module(source)}:Majority"


def examined(name: str) -> None:
    contract.check(name, create_task(TASKS.resolve(TASKS.parse(name))))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (TOKENS, "None", "its spec is None, not a TaskSpec"),
        ('"tokens"', '"token"', "input='token', which is neither 'image' nor 'tokens'"),
        ("(17,), ", "17, ", r"grid=17: it is \(H, W\) of an image and \(L,\) of tokens"),
        ("classes=2", "classes=1", "channels=2 and classes=1: at least 1 and 2 make sense"),
        ("causal=True", 'output="instances"', "output='instances': a class per example is 'one'"),
        ("    spec", '    metric = "accuracy"\n    spec', "its metric is 'accuracy', not a Metric"),
        ("def load", "def lead", r"has no load\(seed\)"),
        ("return Gen", "return None and Gen", "fails: AttributeError: 'NoneType'"),
        ("return Gen", "raise SystemExit(4) or Gen", "fails: SystemExit: 4"),
        ('"test": 20', '"test": 0', "no test examples: sizes are"),
        (', "test": 20', "", "no test examples: sizes are"),
        (BITS, BITS.replace("random)", "None)"), "other examples when a seed is loaded again, in train"),
        (ANSWER, ANSWER + " + 1", "targets from 1 to 2, where 2 classes are 0 to 1, in train"),
        (ANSWER, ANSWER + " - 1", "targets from -1 to 0, where 2 classes are 0 to 1"),
        (ANSWER, ANSWER.replace("long", "float"), "targets that are float32: they must be class ids, int64"),
        (ANSWER, ANSWER + "[:, None]", r"shape \(64, 1\), where output='one' takes \(64,\), in train"),
        (ANSWER, ANSWER.replace("bits,", "bits + 1,"), "tokens from 1 to 2, where 2 channels are 0 to 1"),
        (ANSWER, ANSWER.replace("bits,", "bits.float(),"), "tokens of float32: they must be int64"),
        (
            ANSWER,
            ANSWER.replace("bits,", "bits[:, 1:],"),
            r"\(20, 16\), where its spec says \(n, 17\), in vali",
        ),
        (ANSWER, "return bits", "fails: ValueError: too many values to unpack"),
        ("classes=2, causal=True", PER_TOKEN, r"where output='per-token' takes \(64, 17\)"),
        (TOKENS, IMAGE, r"shape \(64, 17\), where its spec says \(n, 1, 8, 8\)"),
    ],
)
def test_it_is_held_to_the_contract(
    write_task: Callable[[str], str], before: str, after: str, message: str
) -> None:
    assert before in GOOD
    name = write_task(GOOD.replace(before, after))
    with pytest.raises(InputError, match=message):
        examined(name)


def test_answers_per_token_want_a_loss_of_their_own(write_task: Callable[[str], str]) -> None:
    per_token = GOOD.replace("classes=2, causal=True", PER_TOKEN).replace(ANSWER, "return bits, bits")
    name = write_task(per_token)
    with pytest.raises(InputError, match="a task with answers per token derives from TokenClassification"):
        examined(name)
    derived = per_token.replace("Majority(Classification)", "Majority(TokenClassification)")
    write_task(derived)
    examined(name)
    write_task(derived.replace("return bits, bits", "return bits, torch.full_like(bits, -100)"))
    with pytest.raises(InputError, match="an example that asks nothing: all of its targets are -100"):
        examined(name)


def test_an_epoch_goes_on_where_it_was_interrupted(write_task: Callable[[str], str]) -> None:
    again = "class Again(GeneratedData):\n    def train_batches(self, epoch, size, start=0):\n"
    again += "        return super().train_batches(epoch, size)\n\n\nclass Majority("
    name = write_task(GOOD.replace("class Majority(", again).replace("return Gen", "return Again and Gen"))
    examined(name)
    write_task(GOOD.replace("class Majority(", again).replace("return GeneratedData", "return Again"))
    with pytest.raises(InputError, match="does not go on where a trial was interrupted"):
        examined(name)


def test_images_may_be_drawn_by_a_rule(write_task: Callable[[str], str]) -> None:
    """Pixels between 0 and 1 are as different as they are."""
    pixels = "bits = torch.rand((count, 1, 8, 8), generator=random)"
    drawn = GOOD.replace(TOKENS, IMAGE).replace(BITS, pixels)
    name = write_task(drawn.replace("bits.sum(1) > 17", "bits.mean((1, 2, 3)) > 1"))
    examined(name)
    write_task(
        drawn.replace(pixels, "bits = torch.zeros((count, 1, 8, 8))").replace("sum(1)", "sum((1, 2, 3))")
    )
    with pytest.raises(InputError, match=r"too few different examples .* of shape \(1, 8, 8\)"):
        examined(name)


@pytest.mark.parametrize(
    "name", ["digits", "sequential-digits", "mqar(train=1000)", "parity", "induction", "mad-recall"]
)
def test_tasks_of_the_project_keep_the_same_contract(name: str) -> None:
    task = create_task(TASKS.resolve(TASKS.parse(name)))
    assert isinstance(task, Classification)
    contract.check(name, task)


def test_the_command_line_refuses_it_and_lists_it(
    write_task: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_task(GOOD.replace(ANSWER, ANSWER + " + 1"))
    options = "--skeleton causal-lm(dim=16,depth=1) --mixer gru --baseline causal-conv --runs"
    assert run_ablation.main(["plan", "--task", name, *options.split(), str(tmp_path)]) == 2
    assert "has targets from 1 to 2" in capsys.readouterr().err
    assert run_ablation.main(["list", name]) == 0
    assert "Are most of the bits ones?" in capsys.readouterr().out


def test_the_task_of_the_contributing_guide_is_learned_from_the_command_line(
    write_task: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands there; its file is part of the trial, as a mixer's is."""
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"```python\n(# majority\.py.*?)```", guide, re.DOTALL)
    name = write_task(source)
    options = "--skeleton causal-lm(dim=16,depth=1) --mixer gru --baseline causal-conv --seeds 1"
    small = "--task.train 640 --train.epochs 1 --train.warmup-epochs 0 --match none --workers 1"
    command = ["--task", f"{name}(length=9)", *options.split(), *small.split()]
    assert run_ablation.main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 trials to run" in said
    assert "naive baselines: a random answer 50.0" in said
    write_task(f"{source}\n# another rule\n")
    assert run_ablation.main(["plan", *command]) == 0
    assert "2 trials, 0 finished, 2 to run" in capsys.readouterr().out


def test_planning_loads_it_once_more_than_cases_ask_it(
    write_task: Callable[[str], str], tmp_path: Path
) -> None:
    """To see that a seed gives the same again; and no more, since it may take minutes."""
    counted = 'with open("loads", "a") as loads:\n            loads.write("x")'
    name = write_task(GOOD.replace("        return Gen", f"        {counted}\n        return Gen"))
    narrow, wide = (f'name = "{dim}"\nskeleton.dim = {dim}\n' for dim in (16, 24))
    (tmp_path / "own.toml").write_text(
        'question = "?"\nvaried = "?"\nfixed = "?"\ncost = "?"\nanswer = "?"\nmargin = 1\nseeds = 3\n'
        f'task = "{name}"\nskeleton = "causal-lm(depth=1)"\nbaseline = "causal-conv"\n'
        f'mixers = ["causal-conv", "gru"]\nmatch = "none"\n[[cases]]\n{narrow}[[cases]]\n{wide}'
    )
    assert run_ablation.main(["plan", "--study", "own.toml"]) == 0
    assert (tmp_path / "loads").read_text() == "xxx"
