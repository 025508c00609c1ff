"""A mixer from the user's own file: found, held to the contract, and part of what a trial is."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import run_ablation
from experiments import plan, stored_plan, study
from experiments.build import count_params, resolve
from experiments.trial import Recipe
from mixers import MIXERS, InputError, contract, own_files
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


def resolved(text: str):
    component = MIXERS.parse_pattern(text)
    from experiments.skeletons import SKELETONS
    from experiments.tasks import TASKS

    return resolve(component, SKELETONS.parse("isotropic-nano"), TASKS.parse("digits"), Recipe(), 0)


def test_the_mixer_of_the_readme_keeps_its_word(write_module) -> None:
    """As it stands there, imports and all."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (source,) = re.findall(r"```python\n(# shift\.py.*?)```", readme, re.DOTALL)
    module = write_module(source)
    contract.check("Shift", MIXERS.load(f"{module}:Shift"), {}, grid_rank=1)


def test_it_is_resolved_with_the_hash_of_its_file(write_module) -> None:
    module = write_module(GOOD)
    sys.path.append(str(Path.cwd()))
    imported = importlib.import_module(module)  # as a notebook may have
    assert MIXERS.load(f"{module}:Shift") is imported.Shift
    trial = resolved(f"{module}:Shift(steps=2)")
    (mixer,) = trial.mixer
    name, _, digest = mixer.name.partition("@")
    assert name == f"{module}:Shift"
    assert len(digest) == 12
    assert mixer.options == {"steps": 2}
    (read_back,) = MIXERS.parse_pattern(trial.mixer_text)
    assert MIXERS.resolve(read_back) == mixer


def test_another_source_is_another_trial_and_an_old_name_is_refused(write_module) -> None:
    module = write_module(GOOD)
    before = resolved(f"{module}:Shift")
    write_module(GOOD + "\n# a change\n")
    after = resolved(f"{module}:Shift")
    assert before.id != after.id
    with pytest.raises(InputError, match="has changed since this trial was planned"):
        MIXERS.load(before.mixer[0].name)


def test_a_changed_file_makes_another_plan(write_module, tmp_path: Path) -> None:
    module = write_module(GOOD)
    wanted = study.Study(
        question="", varied="", fixed="", cost="", answer="", task="digits", skeleton="isotropic-nano",
        baseline="conv", mixers=("conv", f"{module}:Shift"), seeds=3, match="none", margin=1.0,
    )  # fmt: skip
    stored = tmp_path / "plan.json"
    first = stored_plan.make("own", wanted, stored)
    stored_plan.write(first, stored, plan.Origin("command"))
    assert stored_plan.make("own", wanted, stored).arms == first.arms
    write_module(GOOD + "\n# a change\n")
    second = stored_plan.make("own", wanted, stored)
    assert second.arms[1].template.id != first.arms[1].template.id
    assert second.arms[0].template.id == first.arms[0].template.id
    stored_plan.write(first, stored, plan.Origin("command"))  # as at the end of a run that began before
    assert stored_plan.make("own", wanted, stored).arms == second.arms


@pytest.mark.parametrize("importing", ["import {0}", "from {0} import K", "def late():\n    import {0}"])
def test_a_file_that_it_imports_is_part_of_it(write_module, tmp_path: Path, importing: str) -> None:
    module = write_module("")
    beside = f"beside_{module}"
    (tmp_path / f"{beside}.py").write_text("K = 1\n")
    write_module(f"{importing.format(beside)}\n{GOOD}")
    before = resolved(f"{module}:Shift")
    (tmp_path / f"{beside}.py").write_text("K = 2\n")
    assert resolved(f"{module}:Shift").id != before.id
    (tmp_path / f"{beside}.py").write_text("K = 1\n")
    assert resolved(f"{module}:Shift").id == before.id
    (tmp_path / beside).mkdir()
    (tmp_path / beside / "__init__.py").write_text("K = 1\n")  # which Python prefers to a file
    package = resolved(f"{module}:Shift").id
    (tmp_path / f"{beside}.py").write_text("K = 2\n")
    assert resolved(f"{module}:Shift").id == package


def test_so_are_the_files_of_its_package(write_module, tmp_path: Path) -> None:
    package = write_module("")
    (tmp_path / f"{package}.py").rename(tmp_path / package)
    (tmp_path / package).unlink()
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("from .shift import Shift\n")
    (tmp_path / package / "shift.py").write_text(f"from .steps import STEPS\n{GOOD}")
    (tmp_path / package / "steps.py").write_text("STEPS = 1\n")
    ids, ids_within = {resolved(f"{package}:Shift").id}, {resolved(f"{package}.shift:Shift").id}
    for changed in ("shift.py", "steps.py", "__init__.py"):
        file = tmp_path / package / changed
        file.write_text(f"{file.read_text()}\n# a change\n")
        ids.add(resolved(f"{package}:Shift").id)
        ids_within.add(resolved(f"{package}.shift:Shift").id)
    assert len(ids) == len(ids_within) == 4
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        del sys.modules[name]


def test_what_lies_beside_it_and_python_takes_from_elsewhere_is_no_part_of_it(
    write_module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout of torch, say, whose thousands of files would be read, and never run."""
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    module = write_module(f"import made_by_hand\n{GOOD}")
    before = resolved(f"{module}:Shift").id
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise NotImplementedError\n")
    assert resolved(f"{module}:Shift").id == before


def test_the_project_is_no_part_of_a_file_beside_it() -> None:
    """As of a file in the checkout, from where most are run: its trials outlive a refactoring."""
    path = Path(run_ablation.__file__)
    assert own_files.source_hash("run_ablation", path) == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_an_installed_file_is_known_by_itself(
    write_module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module("")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (tmp_path / f"{module}.py").rename(installed / f"{module}.py")
    (installed / f"{module}.py").write_text(f"import beside_{module}\n{GOOD}")
    (installed / f"beside_{module}.py").write_text("K = 1\n")
    monkeypatch.syspath_prepend(str(installed))
    before = resolved(f"{module}:Shift").id
    (installed / f"beside_{module}.py").write_text("K = 2\n")
    assert resolved(f"{module}:Shift").id == before


def test_options_are_those_of_the_file_as_it_is(write_module, tmp_path: Path) -> None:
    """Also where one process, as in a notebook, has seen it otherwise."""
    module = write_module(GOOD)
    assert resolved(f"{module}:Shift").mixer[0].options == {"steps": 1}
    write_module(GOOD.replace("steps: int = 1", "steps: int = 2, turns: int = 3"))
    assert resolved(f"{module}:Shift").mixer[0].options == {"steps": 2, "turns": 3}
    beside = tmp_path / f"beside_{module}.py"
    write_module(f"from {beside.stem} import STEPS\n{GOOD.replace('steps: int = 1', 'steps: int = STEPS')}")
    for steps in (4, 15):
        beside.write_text(f"STEPS = {steps}\n")
        assert resolved(f"{module}:Shift").mixer[0].options == {"steps": steps}


def test_a_single_file_is_known_by_its_bytes(write_module) -> None:
    """As it has been: finished trials keep their names."""
    module = write_module(GOOD)
    source = hashlib.sha256(GOOD.encode()).hexdigest()[:12]
    assert MIXERS.with_source(f"{module}:Shift") == f"{module}:Shift@{source}"


def test_several_files_are_known_by_their_bytes_in_the_order_of_their_names(
    write_module, tmp_path: Path
) -> None:
    """Not in the order in which a process comes across them."""
    module = write_module("")
    sources = {f"beside_{module}": "import json\nfrom mixers.gru import GRU\n", f"zoo_{module}": "K = 2\n"}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    sources[module] = f"import {', '.join(sources)}\n{GOOD}"
    write_module(sources[module])
    digests = [hashlib.sha256(sources[name].encode()).digest() for name in sorted(sources)]
    expected = hashlib.sha256(b"".join(digests)).hexdigest()[:12]
    assert MIXERS.with_source(f"{module}:Shift") == f"{module}:Shift@{expected}"
    assert {"mixers.gru", "mixers.gru.GRU"} <= MIXERS.modules(f"{module}:Shift")
    assert {name.partition(".")[0] for name in MIXERS.modules(f"{module}:Shift")} == {"mixers"}


def test_the_working_directory_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a file that has just been written there is found, though its folder has been looked through."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert own_files.find("just_written") is None
    before = tmp_path.stat()
    for name in ("just_written", "antigravity"):
        (tmp_path / f"{name}.py").write_text("")
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as where its clock is coarse
    assert own_files.find("just_written") == tmp_path / "just_written.py"
    assert own_files.find("antigravity") == own_files.STANDARD_LIBRARY / "antigravity.py"


RETURN = "return (moved * self.scale).view_as(x)"
STEPS = "self.steps = steps"
DECLARED = "torch.diag(torch.ones(max(0, length - self.steps)), -self.steps).bool()[:length, :length]"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (RETURN, f"{RETURN} + x", "token 0 depends on token 0, but its dependency_mask says otherwise"),
        (RETURN, f"y = {RETURN[7:]}; return torch.cat((y[..., 1:], x[..., 5:6]), -1)", "token 0 depends on"),
        (RETURN, f"{RETURN}[:1]", r"turns \(2, 3, 4, 16\) into \(1, 3, 4, 16\)"),
        (RETURN, "return moved * self.scale", "turns .* into"),
        (RETURN, "raise RuntimeError('no\\n way')", r"fails on a .* grid of 16 channels: no way$"),
        (
            "grid_rank: int, *",
            "*",
            r"16 channels: .*__init__\(\) .* \(it is called with dim, grid_rank and, by",
        ),
        (STEPS, f"{STEPS}; self.idle = torch.nn.Parameter(torch.ones(1))", "idle gets no gradient"),
        ("-self.steps).bool()", "self.steps).bool()", "token 0 does not depend on token 1, but its"),
        ("return self.dim", "return -1", "counts -1 MACs"),
        ("return self.dim", "return 'many'", "counts 'many' MACs"),
        (RETURN, "return 3", "returns int, not a tensor"),
        (RETURN, f"{RETURN}.index_fill(-1, torch.tensor(3), torch.nan)", "gives numbers that are not finite"),
        (RETURN, f"{RETURN} * torch.rand(())", "gives another output when it is asked again"),
        (RETURN, f"{RETURN}.float()", "turns torch.float64 into torch.float32: what it computes in another"),
        (RETURN, f"x.mul_(2); {RETURN}", "writes into its input"),
        (RETURN, f"{RETURN} * x.sum((0, 1, 2)).sign()", "another output when no other stands beside it"),
        (
            STEPS,
            f"{STEPS}; self.inner = torch.nn.Identity(); self.inner.parts = (torch.nn.Linear(dim, dim),)",
            "keeps inner.parts where torch does not look",
        ),
        (STEPS, f"{STEPS}; self.parts = {{'a': torch.ones(dim)}}", "keeps parts where torch does not look"),
        (STEPS, f"{STEPS}; self.no_weight_decay = lambda: {{'scales'}}", "has no parameter 'scales'"),
        (
            "causal = True",
            "causal = True; grid_ranks = (2)",
            r"grid_ranks is 2: write a tuple, such as \(1,\)",
        ),
        (RETURN, "raise SystemExit", "fails on a .* grid of 16 channels: SystemExit"),
        (".bool()[:length, :length]", ".bool().tolist()", r"dependency_mask that is no \(12, 12\) tensor on"),
        (".bool()", ".bool()[:2]", r"dependency_mask that is no \(12, 12\) tensor on a grid of 3, 4"),
        ("steps: int = 1", "steps: int", r"option 'steps' has no default and was not given: .*\(steps=...\)"),
        ("steps: int = 1", "steps=1", "option 'steps' has no type: write steps: int or the like"),
        ("steps: int = 1", "steps: 'Steps' = 1", "a type in its __init__ is not known: name 'Steps'"),
        ("steps: int = 1", "steps: torch.Tensor = 1", "an option is of a type that no text stands for"),
        ("steps: int = 1", "steps: int = 'one'", "steps: Input should be a valid integer.*got 'one'"),
        ("steps: int = 1", "steps: float = float('inf')", "steps: Input should be a finite number"),
        ("*, steps", "steps", r"'steps' cannot be set: .* __init__\(self, dim, grid_rank, \*, steps=...\)"),
        (STEPS, f"{STEPS}; float(torch.ones(()))", "cannot be built on torch's meta device, .* Tensor.item"),
        (RETURN, "return (moved * self.scale).view_as(x)[:, : 2 if self.training else None]", "in training"),
        (RETURN, f"assert x.shape[1] == 3; {RETURN}", r"fails on a \(1, 1\) grid"),
        (RETURN, f"assert x.shape[1] != 5; {RETURN}", r"fails on a \(5, 2\) grid"),
    ],
)
def test_it_is_held_to_the_contract(write_module, before: str, after: str, message: str) -> None:
    assert before in GOOD
    module = write_module(GOOD.replace(before, after))
    with pytest.raises(InputError, match=message):
        resolved(f"{module}:Shift")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("torch.ones(dim)", "torch.zeros(dim)"),  # as the last layer of a branch often starts
        (RETURN, f"return torch.nn.functional.dropout({RETURN[7:]}, 0.5, self.training)"),
        (RETURN, f"if tokens.shape[1] == 1: return torch.zeros_like(x)\n        {RETURN}"),
        (STEPS, f"{STEPS}; self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)"),
        ("torch.nn.Parameter(torch.ones(dim))", "1.0"),  # nothing to train
        ("return self.dim", "return 0"),
    ],
)
def test_what_it_may_do(write_module, before: str, after: str) -> None:
    assert before in GOOD
    assert resolved(f"{write_module(GOOD.replace(before, after))}:Shift")


def test_it_is_checked_with_the_same_numbers_whatever_was_drawn_before(write_module) -> None:
    """And what is drawn afterwards does not depend on the check either."""
    module = write_module(GOOD.replace(STEPS, "raise RuntimeError(torch.rand(()))"))
    said = set()
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            with pytest.raises(InputError, match="fails on a") as caught:
                resolved(f"{module}:Shift")
            assert torch.equal(torch.get_rng_state(), before)
        said.add(str(caught.value))
    assert len(said) == 1


def test_it_is_not_causal_if_its_mask_sees_later_tokens(write_module) -> None:
    backwards = GOOD.replace(RETURN, "return (tokens.flip(1) * self.scale).view_as(x)")
    module = write_module(backwards.replace(DECLARED, "torch.eye(length).flip(0).bool()"))
    with pytest.raises(InputError, match="calls itself causal, but its dependency_mask sees later tokens"):
        resolved(f"{module}:Shift")


def test_what_it_draws_is_in_its_weights(write_module) -> None:
    """Or another process, which loads them, would have another mixer."""
    drawn = GOOD.replace(STEPS, f"{STEPS}; self.register_buffer('signs', torch.randn(dim), persistent=False)")
    drawn = drawn.replace(RETURN, "return (moved * self.scale * self.signs).view_as(x)")
    module = write_module(drawn)
    with pytest.raises(InputError, match="gives something else when it is built again and loads the same"):
        resolved(f"{module}:Shift")
    write_module(drawn.replace(", persistent=False", ""))
    assert resolved(f"{module}:Shift")


def test_one_that_is_too_special_for_a_model(write_module) -> None:
    module = write_module(GOOD.replace(STEPS, f"{STEPS}; assert dim == 16, 'not so wide'"))
    with pytest.raises(InputError, match=r"cannot be built for \d+ channels: not so wide"):
        count_params(resolved(f"{module}:Shift"))


@pytest.mark.parametrize("name", list(MIXERS))
def test_the_mixers_of_the_project_keep_the_same_contract(name: str) -> None:
    mixer_class = MIXERS.load(name)
    for rank in mixer_class.grid_ranks:
        options = MIXERS.resolve(MIXERS.parse(name), mixer_class.place_defaults(rank, False)).options
        contract.check(name, mixer_class, options, rank)


STEP = """
    def state_size(self, length):
        return {size}

    def init_state(self, batch_size, device=None):
        last = torch.zeros(batch_size, self.dim, device=device)
        return last, torch.zeros(batch_size, 1, dtype=torch.long, device=device)

    def step(self, x, state):
        return {first} @ self.scale.diag(), (x, state[1].bitwise_not())  # of integers alone
"""


@pytest.mark.parametrize(
    ("size", "first", "message"),
    [
        ("self.dim + 1", "state[0]", None),
        ("self.dim + 1", "x", "gives something else by step than by forward, first at token 0"),
        ("self.dim + 1", "state[0].repeat(2, 1)", "gives something else by step than by forward"),
        ("1", "state[0]", "carries 17 numbers, but its state_size says 1"),
        ("18", "state[0]", "carries 17 numbers, but its state_size says 18"),
    ],
)
def test_its_steps_are_held_to_its_forward(write_module, size: str, first: str, message: str | None) -> None:
    mixer_class = MIXERS.load(f"{write_module(GOOD + STEP.format(size=size, first=first))}:Shift")
    if message is None:
        contract.check("Shift", mixer_class, {}, grid_rank=1)
        contract.check("Shift", mixer_class, {}, grid_rank=2)  # where nobody steps
        return
    with pytest.raises(InputError, match=message):
        contract.check("Shift", mixer_class, {}, grid_rank=1)


def test_a_mixer_of_the_checkout_that_reads_a_value_is_told_in_a_sentence(
    write_module, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = write_module(GOOD.replace(STEPS, f"{STEPS}; float(torch.ones(()))"))
    monkeypatch.syspath_prepend(Path.cwd())  # as the checkout is
    monkeypatch.setitem(MIXERS._entries, "shift", f"{module}:Shift")
    with pytest.raises(InputError, match="mixer shift cannot be built on torch's meta device"):
        count_params(resolved("shift"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere_at_all:Mixer", "no module 'nowhere_at_all'"),
        ("nowhere.at_all:Mixer", "no module 'nowhere.at_all'"),
        (":Mixer", "no module ''"),
        ("sys:Mixer", "no module 'sys'"),  # built in, of which there is no file
        ("docs:Mixer", "no module 'docs'"),  # a folder
        ("mixers.conv:Nothing", "mixers.conv has no Nothing"),
        ("pathlib:Path", "is not a subclass of mixers.base:TokenMixer"),
        ("json:loads", "is not a subclass"),
        ("mixers.conv:DepthwiseConv(kernel=3)", "has no option 'kernel'"),
    ],
)
def test_what_is_no_mixer_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolved(text)


def test_a_file_that_cannot_be_imported(write_module) -> None:
    module = write_module("raise KeyError('oops')\n")
    with pytest.raises(InputError, match="cannot be imported: KeyError: 'oops'"):
        resolved(f"{module}:Shift")
    for source in ("def", "K = 1\0"):  # no Python
        write_module(source)
        with pytest.raises(InputError, match=r"cannot be imported: .*(SyntaxError|null bytes)"):
            resolved(f"{module}:Shift")
    write_module("import sys\nsys.exit('usage: mine.py FILE')\n")
    with pytest.raises(InputError, match="cannot be imported: SystemExit: usage: mine"):
        resolved(f"{module}:Shift")


def test_a_name_that_another_module_has_says_where_that_is() -> None:
    with pytest.raises(InputError, match=r"random has no Mixer, going by .*random\.py"):
        resolved("random:Mixer")


def test_skeletons_take_none() -> None:
    from experiments.skeletons import SKELETONS

    assert is_own("a:B")
    with pytest.raises(InputError, match="unknown skeleton"):
        SKELETONS.parse("my_skeleton:Skeleton")


def test_it_runs_from_the_command_line(write_module, capsys: pytest.CaptureFixture[str]) -> None:
    module = write_module(GOOD)
    options = "--seeds 1 --train.epochs 1 --train.warmup-epochs 0 --match none --workers 1"
    command = ["--mixer", f"{module}:Shift", *options.split()]
    assert run_ablation.main(command) == 0
    said = capsys.readouterr().out
    assert f"{module}:Shift" in said
    assert "2 of 2 trials to run" in said
    assert run_ablation.main(command) == 0
    assert "0 of 2 trials to run" in capsys.readouterr().out
