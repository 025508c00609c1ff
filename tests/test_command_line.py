"""The command line as a user meets it: bad input, a second run, a kill, two at once."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_ablation
from experiments.tasks.digits import Digits
from experiments.trial import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parent.parent

STUDY = """
question = "Is the machinery sound?"
varied = "mixer"
fixed = "all else"
cost = "seconds"
answer = "that is what the tests say"
task = "digits(canvas=8, validation=200, test=1200)"
skeleton = "isotropic-nano"
baseline = "identity"
mixers = ["identity", "conv"]
margin = 5.0
seeds = 3
[train]
epochs = {epochs}
batch_size = 32
warmup_epochs = 1
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(epochs=2))
    return path


@pytest.fixture
def causal_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `digits` forbid seeing the future."""
    free = Digits.spec.fget
    monkeypatch.setattr(Digits, "spec", property(lambda self: dataclasses.replace(free(self), causal=True)))


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [sys.executable, ROOT / "run_ablation.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,  # as a user has it: imports take several times longer without bytecode
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def processor_seconds() -> float:
    """Used by the processes that have ended: unlike wall time, not a matter of what else runs here."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def metrics(runs: Path) -> bytes:
    return (runs / "studies" / "small" / "metrics.csv").read_bytes()


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixer", "sssm"], "unknown mixer 'sssm'; did you mean 'ssm'"),
        (["--mixer", "ssm(dstate=8)"], "no option 'dstate'; did you mean 'd_state'"),
        (["--mixer", "ssm(d_state=many)"], "d_state: Input should be a valid integer"),
        (["--mixer", "ssm(d_state=0)"], "greater than or equal to 1"),
        (["--mixer", "conv(kernel_size=4)"], "kernel_size must be odd"),
        (["--mixer.d_state", "8"], "a mixer's options go with its name"),
        (["--skeleton", "mambaout-femtoo"], "did you mean 'mambaout-femto'"),
        (["--skeleton.readot", "last"], "no option 'readot'; did you mean 'readout'"),
        (["--task", "digitz"], "unknown task 'digitz'; did you mean 'digits'"),
        (["--task.canvas", "7"], "greater than or equal to 8"),
        (["--task.canvas"], "needs a value"),
        (["--study", "digit-ladder"], "did you mean 'digits-ladder'"),
        (["--study", "nowhere.toml"], "does not exist"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--margin", "-1"], "--margin must be positive"),
        (["--margin", "inf"], "--margin must be positive"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--backend", "cudda"], "unknown backend 'cudda'"),
        (["--backend", "mamba_ssm"], "mamba_ssm"),
        (["plann"], "unknown command 'plann'; did you mean 'plan'"),
        (["report"], "holds no study"),
        (["list", "everything"], "list takes no arguments"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    placed = [] if arguments[0] in ("plann", "list") else ["--runs", str(runs)]
    assert run_ablation.main([*arguments, *placed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert not list(runs.rglob("*.json")), "the store is as it was"


@pytest.mark.parametrize(
    "arguments", [["--train.epochs", "many"], ["--train.epoch", "3"], ["--match", "flops"], ["--seeds", "x"]]
)
def test_a_malformed_flag_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) <= 2


def test_a_recipe_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["--train.epochs", "0"]) == 2
    assert "epochs" in capsys.readouterr().err


def test_an_unknown_key_in_a_study_names_file_and_key(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(study.read_text().replace("epochs = 2", "epoch = 2"))
    assert run_ablation.main(["--study", str(study)]) == 2
    assert f"{study}: unknown key 'train.epoch'; did you mean 'epochs'" in capsys.readouterr().err


@pytest.mark.usefixtures("causal_task")
def test_a_causal_task_refuses_a_mixer_that_sees_the_future(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--mixer", "attention", "--baseline", "causal-conv", "--runs", str(tmp_path / "runs")]
    assert run_ablation.main(arguments) == 2
    assert "task digits is causal, but mixer attention" in capsys.readouterr().err


def test_an_unwritable_runs_folder(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run_ablation.main(["--study", str(study), "--runs", str(tmp_path / "file")]) == 2
    assert "cannot write to the runs folder" in capsys.readouterr().err


# ---------------------------------------------------------------------- whole runs, as processes


def test_a_study_from_end_to_end_and_again(study: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ("--study", study, "--runs", runs)
    output = finish(start(*arguments, "--seeds", 2))
    assert "at least 3" in output, "two seeds run, but no verdict is given"
    trained = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("trials/*/result.json")}
    assert len(trained) == 4

    output = finish(start(*arguments))
    assert "2 of 6 trials to run" in output
    after = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("trials/*/result.json")}
    assert len(after) == 6
    assert {name: after[name] for name in trained} == trained, "nothing is trained twice"
    for kind in ("report.html", "table.md", "table.csv", "table.tex", "metrics.csv"):
        assert (runs / "studies" / "small" / kind).stat().st_size > 0
    before = metrics(runs)

    before_seconds = processor_seconds()
    output = finish(start(*arguments))
    assert processor_seconds() - before_seconds < 5, "torch is not even imported"
    assert "0 of 6 trials to run" in output
    assert metrics(runs) == before

    folder = next(runs.glob("trials/*"))
    (folder / "result.json").write_text('{"schema_version": 1, "trial')
    other = sorted(runs.glob("trials/*"))[-1]
    stored = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**stored, "schema_version": SCHEMA_VERSION + 1}))
    output = finish(start(*arguments))
    assert "result.unusable-1.json" in output
    assert f"schema version {SCHEMA_VERSION + 1}" in output
    assert "2 of 6 trials to run" in output
    assert metrics(runs) == before


def _kill_tree(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL of the driver at several moments; its workers see that it is gone and stop."""
    study = tmp_path / "small.toml"
    study.write_text(STUDY.format(epochs=6))
    finish(start("--study", study, "--runs", tmp_path / "whole"))
    killed = ("--study", study, "--runs", tmp_path / "killed")
    for seconds in (9, 14):
        process = start(*killed)
        time.sleep(seconds)
        _kill_tree(process)
    finish(start(*killed))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_two_at_once_share_the_work(study: Path, tmp_path: Path) -> None:
    arguments = ("--study", study, "--runs", tmp_path / "runs")
    both = [start(*arguments), start(*arguments)]
    outputs = [finish(process) for process in both]
    logs = [path.read_text() for path in (tmp_path / "runs").glob("trials/*/log.txt")]
    assert len(list((tmp_path / "runs").glob("trials/*/result.json"))) == 6
    assert logs == [], f"{outputs}"
    alone = ("--study", study, "--runs", tmp_path / "alone")
    finish(start(*alone))
    assert metrics(tmp_path / "runs") == metrics(tmp_path / "alone")


def test_ctrl_c_keeps_what_is_there(study: Path, tmp_path: Path) -> None:
    study.write_text(STUDY.format(epochs=2_000))
    process = start("--study", study, "--runs", tmp_path / "runs")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "runs").glob("trials/*/curve.csv")):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in output
    assert "Traceback" not in output
    assert list((tmp_path / "runs").glob("trials/*/checkpoint.pt"))
