"""A mixer from the user's own file: found, held to the contract, and part of what a trial is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import run_ablation
from experiments import plan, stored_plan, study
from experiments.build import count_params, resolve
from experiments.trial import Recipe
from mixers import MIXERS, InputError, contract
from mixers.registry import is_own

GOOD = '''
import torch
from mixers.base import TokenMixer, raster_causal_mask

class Shift(TokenMixer):
    """Every token becomes its predecessor, times a learned scale."""

    causal = True

    def __init__(self, dim: int, grid_rank: int, *, steps: int = 1) -> None:
        super().__init__(dim, grid_rank)
        self.steps = steps
        self.scale = torch.nn.Parameter(torch.ones(dim))

    def forward(self, x):
        tokens = x.flatten(1, -2)
        moved = torch.nn.functional.pad(tokens, (0, 0, self.steps, 0))[:, : tokens.shape[1]]
        return (moved * self.scale).view_as(x)

    def dependency_mask(self, grid):
        length = 1
        for size in grid:
            length *= size
        return torch.diag(torch.ones(max(0, length - self.steps)), -self.steps).bool()[:length, :length]

    def macs(self, grid):
        return self.dim
'''


@pytest.fixture
def write_mixer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Write the source of a module into the working directory and give its name, new in every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "own_" + "".join(c if c.isalnum() else "_" for c in request.node.name)

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    sys.modules.pop(name, None)


def resolved(text: str):
    component = MIXERS.parse_pattern(text)
    from experiments.skeletons import SKELETONS
    from experiments.tasks import TASKS

    return resolve(component, SKELETONS.parse("isotropic-nano"), TASKS.parse("digits"), Recipe(), 0)


def test_the_mixer_of_the_readme_keeps_its_word(write_mixer) -> None:
    """As it stands there, imports and all."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (source,) = re.findall(r"```python\n(# shift\.py.*?)```", readme, re.DOTALL)
    module = write_mixer(source)
    contract.check("Shift", MIXERS.load(f"{module}:Shift"), {}, grid_rank=1)


def test_it_is_resolved_with_the_hash_of_its_file(write_mixer) -> None:
    module = write_mixer(GOOD)
    trial = resolved(f"{module}:Shift(steps=2)")
    (mixer,) = trial.mixer
    name, _, digest = mixer.name.partition("@")
    assert name == f"{module}:Shift"
    assert len(digest) == 12
    assert mixer.options == {"steps": 2}
    (read_back,) = MIXERS.parse_pattern(trial.mixer_text)
    assert MIXERS.resolve(read_back) == mixer


def test_another_source_is_another_trial_and_an_old_name_is_refused(write_mixer) -> None:
    module = write_mixer(GOOD)
    before = resolved(f"{module}:Shift")
    write_mixer(GOOD + "\n# a change\n")
    after = resolved(f"{module}:Shift")
    assert before.id != after.id
    with pytest.raises(InputError, match="has changed since this trial was planned"):
        MIXERS.load(before.mixer[0].name)


def test_a_changed_file_makes_another_plan(write_mixer, tmp_path: Path) -> None:
    module = write_mixer(GOOD)
    wanted = study.Study(
        question="", varied="", fixed="", cost="", answer="", task="digits", skeleton="isotropic-nano",
        baseline="conv", mixers=("conv", f"{module}:Shift"), seeds=3, match="none", margin=1.0,
    )  # fmt: skip
    stored = tmp_path / "plan.json"
    first = stored_plan.make("own", wanted, stored)
    stored_plan.write(first, stored, plan.Origin("command"))
    assert stored_plan.make("own", wanted, stored).arms == first.arms
    write_mixer(GOOD + "\n# a change\n")
    second = stored_plan.make("own", wanted, stored)
    assert second.arms[1].template.id != first.arms[1].template.id
    assert second.arms[0].template.id == first.arms[0].template.id


RETURN = "return (moved * self.scale).view_as(x)"
STEPS = "self.steps = steps"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (RETURN, f"{RETURN} + x", "token 0 depends on token 0, but its dependency_mask says otherwise"),
        (RETURN, "return moved * self.scale", "turns .* into"),
        (RETURN, "raise RuntimeError('no')", "fails on a .* grid of 16 channels: no"),
        (STEPS, f"{STEPS}; self.idle = torch.nn.Parameter(torch.ones(1))", "idle gets no gradient"),
        ("-self.steps).bool()", "self.steps).bool()", "dependency_mask says otherwise"),
        ("return self.dim", "return -1", "counts -1 MACs"),
        ("return self.dim", "return 'many'", "counts 'many' MACs"),
        (RETURN, "return 3", "returns int, not a tensor"),
        (RETURN, f"{RETURN} * torch.nan", "gives numbers that are not finite"),
        (RETURN, f"{RETURN} * torch.rand(())", "gives another output when it is asked again"),
        (RETURN, "raise SystemExit", "fails on a .* grid of 16 channels: SystemExit"),
        (".bool()", ".bool()[:2]", r"dependency_mask that is no \(12, 12\) tensor on a grid of 3, 4"),
        ("steps: int = 1", "steps: int", "steps: Field required"),
        ("*, steps", "steps", r"'steps' cannot be set: .* __init__\(self, dim, grid_rank, \*, steps=...\)"),
        (STEPS, f"{STEPS}; float(torch.ones(()))", "cannot be built on torch's meta device, .* Tensor.item"),
        (RETURN, "return (moved * self.scale).view_as(x)[:, : 2 if self.training else None]", "in training"),
        (RETURN, f"assert x.shape[1] == 3; {RETURN}", r"fails on a \(1, 1\) grid"),
    ],
)
def test_it_is_held_to_the_contract(write_mixer, before: str, after: str, message: str) -> None:
    assert before in GOOD
    module = write_mixer(GOOD.replace(before, after))
    with pytest.raises(InputError, match=message):
        resolved(f"{module}:Shift")


STEP = """
    def state_size(self, length):
        return {size}

    def init_state(self, batch_size, device=None):
        return (torch.zeros(batch_size, self.dim, device=device),)

    def step(self, x, state):
        return {first} * self.scale, (x,)
"""


@pytest.mark.parametrize(
    ("size", "first", "message"),
    [
        ("self.dim", "state[0]", None),
        ("self.dim", "x", "gives something else by step than by forward, first at token 0"),
        ("1", "state[0]", "carries 16 numbers, but its state_size says 1"),
    ],
)
def test_its_steps_are_held_to_its_forward(write_mixer, size: str, first: str, message: str | None) -> None:
    mixer_class = MIXERS.load(f"{write_mixer(GOOD + STEP.format(size=size, first=first))}:Shift")
    if message is None:
        contract.check("Shift", mixer_class, {}, grid_rank=1)
        return
    with pytest.raises(InputError, match=message):
        contract.check("Shift", mixer_class, {}, grid_rank=1)


def test_a_mixer_of_the_checkout_that_reads_a_value_is_told_in_a_sentence(
    write_mixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_mixer(GOOD.replace(STEPS, f"{STEPS}; float(torch.ones(()))"))
    monkeypatch.syspath_prepend(Path.cwd())  # as the checkout is
    monkeypatch.setitem(MIXERS._entries, "shift", f"{module}:Shift")
    with pytest.raises(InputError, match="mixer shift cannot be built on torch's meta device"):
        count_params(resolved("shift"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere_at_all:Mixer", "no module 'nowhere_at_all'"),
        ("mixers.conv:Nothing", "mixers.conv has no Nothing"),
        ("pathlib:Path", "is not a subclass of mixers.base:TokenMixer"),
        ("json:loads", "is not a subclass"),
        ("mixers.conv:DepthwiseConv(kernel=3)", "has no option 'kernel'"),
    ],
)
def test_what_is_no_mixer_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolved(text)


def test_a_file_that_cannot_be_imported(write_mixer) -> None:
    module = write_mixer("raise KeyError('oops')\n")
    with pytest.raises(InputError, match="cannot be imported: KeyError: 'oops'"):
        resolved(f"{module}:Shift")


def test_skeletons_take_none() -> None:
    from experiments.skeletons import SKELETONS

    assert is_own("a:B")
    with pytest.raises(InputError, match="unknown skeleton"):
        SKELETONS.parse("my_skeleton:Skeleton")


def test_the_task_of_the_contributing_guide_is_learned_from_the_command_line(
    write_mixer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands there; its file is part of the trial, as a mixer's is."""
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"```python\n(# majority\.py.*?)```", guide, re.DOTALL)
    module = write_mixer(source)
    options = "--skeleton causal-lm(dim=16,depth=1) --mixer gru --baseline causal-conv --seeds 1"
    small = "--task.train 640 --train.epochs 1 --train.warmup-epochs 0 --match none --workers 1"
    command = ["--task", f"{module}:Majority(length=9)", *options.split(), *small.split()]
    assert run_ablation.main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 trials to run" in said
    assert "naive baselines: a random answer 50.0" in said
    write_mixer(f"{source}\n# another rule\n")
    assert run_ablation.main(["plan", *command]) == 0
    assert "2 trials, 0 finished, 2 to run" in capsys.readouterr().out


def test_it_runs_from_the_command_line(write_mixer, capsys: pytest.CaptureFixture[str]) -> None:
    module = write_mixer(GOOD)
    options = "--seeds 1 --train.epochs 1 --train.warmup-epochs 0 --match none --workers 1"
    command = ["--mixer", f"{module}:Shift", *options.split()]
    assert run_ablation.main(command) == 0
    said = capsys.readouterr().out
    assert f"{module}:Shift" in said
    assert "2 of 2 trials to run" in said
    assert run_ablation.main(command) == 0
    assert "0 of 2 trials to run" in capsys.readouterr().out
