"""Results that today's code or data would not give: said in a sentence, and trained anew when asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import run_ablation
from experiments import outdated, sources
from experiments.code_version import ROOT
from experiments.outdated import Outdated

FLAGS = "--mixer identity --seeds 1 --match none --train.epochs 1 --train.warmup-epochs 0 --workers 1"
COMMAND = [*FLAGS.split(), "--task", "digits(canvas=8, validation=200, test=1200)"]
NOTE = "mixers/identity.py has changed since 1 finished trial was trained: its number is of before"

Ablate = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources that are hashed, to be edited."""
    for folder in ("mixers", "experiments/tasks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ablate(capsys: pytest.CaptureFixture[str]) -> Ablate:
    """Run a command line, which must work, and give what it printed, its line breaks taken out."""

    def run(*arguments: str) -> str:
        assert run_ablation.main(arguments) == 0
        return " ".join(capsys.readouterr().out.split())

    return run


def results(checkout: Path) -> list[Path]:
    return sorted((checkout / "runs" / "trials").glob("*/result.json"))


def test_an_edited_mixer_is_told_and_trained_again_when_asked(checkout: Path, ablate: Ablate) -> None:
    assert "2 of 2 trials to run" in ablate(*COMMAND)
    assert NOTE not in ablate("plan", *COMMAND)
    identity = checkout / "mixers" / "identity.py"
    before = identity.read_text()
    identity.write_text(f"{before}\n# another definition\n")
    for verb in (["plan"], [], ["report"]):
        assert NOTE in ablate(*verb, *COMMAND)
    (report,) = checkout.glob("runs/studies/*/report.html")
    assert NOTE in report.read_text()
    said = ablate(*COMMAND, "--retrain")
    assert "1 trial set aside" in said
    assert "1 of 2 trials to run" in said
    identity.write_text(before)  # which is what the worker has run
    assert NOTE not in ablate("report", *COMMAND)
    assert len(list(checkout.glob("runs/trials/*/result.outdated-1.json"))) == 1
    assert "--retrain" not in json.loads(report.with_name("plan.json").read_text())["command"]
    for path in results(checkout):  # as results were stored before
        result = json.loads(path.read_text())
        del result["provenance"]["sources"]
        path.write_text(json.dumps(result))
    with open(checkout / "experiments" / "tasks" / "digits.py", "a") as file:
        file.write("\n# another rule\n")
    assert "changed since" not in ablate("plan", *COMMAND)


def test_what_another_command_has_trained_again_stays(
    checkout: Path, ablate: Ablate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were told to, and both have seen the same outdated results."""
    ablate(*COMMAND)
    with open(checkout / "mixers" / "identity.py", "a") as file:
        file.write("\n# another definition\n")
    find = outdated.find

    def find_before_another_is_done(*given: Any) -> Outdated:
        monkeypatch.setattr(outdated, "find", find)
        found = find(*given)
        for path in results(checkout):
            result = json.loads(path.read_text())
            result["provenance"]["sources"] = sources.digests(["identity"], "digits")
            path.write_text(json.dumps(result))
        return found

    monkeypatch.setattr(outdated, "find", find_before_another_is_done)
    said = ablate(*COMMAND, "--retrain")
    assert "0 trials set aside" in said
    assert "0 of 2 trials to run" in said


def test_other_data_are_told_where_the_plan_is_made_anew(checkout: Path, ablate: Ablate) -> None:
    ablate(*COMMAND)
    for path in results(checkout):
        result = json.loads(path.read_text())
        result["data"]["fingerprint"] = "another"
        path.write_text(json.dumps(result))
    assert "other data" not in ablate("plan", *COMMAND)  # the stored plan, for which nothing is loaded
    next(checkout.glob("runs/studies/*/plan.json")).unlink()
    said = ablate("plan", *COMMAND)
    assert "gives other data today than when 2 finished trials were trained" in said


def test_the_files_are_those_of_mixer_and_task_and_what_they_build_on() -> None:
    found = set(sources.digests(["ssm"], "parity"))
    assert {"mixers/ssm.py", "mixers/s6.py", "experiments/tasks/parity.py"} < found
    assert not found & {"mixers/gru.py", "mixers/scan_cpu_kernel.py", "experiments/tasks/mqar.py"}
    assert list(sources.digests(["shift:Shift@0123456789ab"], "parity")) == list(
        sources.digests([], "parity")
    )


def test_an_own_class_is_made_of_what_it_takes_from_the_project(write_module: Callable[[str], str]) -> None:
    name = write_module("from mixers.gru import GRU\n\n\nclass Mine(GRU):\n    pass\n")
    found = set(sources.digests([f"{name}:Mine@0123456789ab"], "parity"))
    assert found == {"mixers/gru.py"} | set(sources.digests(["gru"], "parity"))
    assert "mixers/gru.py" not in sources.digests([], "parity")


def test_many_files_are_named_in_part() -> None:
    files = [f"mixers/{letter}.py" for letter in "abcde"]
    (said,) = Outdated({"1": files[:2], "2": files[1:]}, {}).sentences()
    assert said.startswith(
        "mixers/a.py, mixers/b.py, mixers/c.py and 2 more have changed since 2 finished trials were trained: "
    )
    (said,) = Outdated({"1": files[:2]}, {}).sentences()
    assert said.startswith("mixers/a.py and mixers/b.py have changed since 1 finished trial was trained: ")
