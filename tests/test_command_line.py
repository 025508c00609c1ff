"""The command line as a user meets it: bad input, a second run, a kill, two at once."""

from __future__ import annotations

import dataclasses
import fcntl
import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import run_ablation
from experiments import executors, study_commands
from experiments import study as studies
from experiments.command_line import COMMANDS
from experiments.store import RESULT_FIELDS, Store
from experiments.tasks.digits import Digits
from experiments.trial import LEAST_SEEDS, SCHEMA_VERSION, Trial

Ablate = Callable[..., int]

PATIENCE = 600  # seconds, for a machine that is busy otherwise
ROOT = Path(__file__).resolve().parent.parent

RUN = "import sys, run_ablation; sys.exit(run_ablation.main())"
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


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """The program; `variables` are added to its environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [sys.executable, ROOT / "run_ablation.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | variables,  # as a user has it: imports take several times longer without bytecode
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # "pytest &" ignores it
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def metrics(runs: Path) -> bytes:
    return (runs / "studies" / "small" / "metrics.csv").read_bytes()


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr-grid", "0"], "--lr-grid takes positive, finite learning rates, got 0"),
        (["--lr-grid"], "--lr-grid is empty: it takes one value or more"),
        (["--study", "mqar-small", "--study", "digits-ladder"], "--study is given 2 times: it is given once"),
        (["--mixer", "ssm", "--mixer=attention"], "--mixer is given 2 times: it is given once, with all its"),
        (["--task.canvas", "12", "--task.canvas", "16"], "--task.canvas is given 2 times"),
        (["--train.batch-size", "8", "--train.batch_size=16"], "--train.batch_size is given 2 times"),
        (["--train.betas", "1.5", "0.9"], "--train.betas: Input should be less than 1"),
        (["--train.mixup", "0.8", "--train.batch-size", "63"], "mix pairs: a batch of 63 is no even number"),
        (["--mixer", "ssm*999"], "isotropic-nano takes at most 4, one per layer; 999 mixers were given"),
        (["bench", "--length"], "--length is empty: it takes one value or more"),
        (["--mixer", "ssm", "plan"], "the command comes first: run_ablation.py plan --mixer ..."),
        (["--seeds", "3", "status"], "the command comes first: run_ablation.py status --seeds ..."),
        (["look", "--study", "nope"], "no study 'nope' in"),
        (["--mixer", "/home/me/shift.py:Shift"], "a class of your own is module:Class, here shift:Shift"),
        (
            ["--mixer", "mine.shift.Shift(steps=2)"],
            "a class of your own is module:Class, here mine.shift:Shift",
        ),
        (
            ["--task", "parity(length=4)", "--skeleton", "causal-lm", "--baseline", "causal-conv"],
            "of 1,000 of length 4 for validation, ",
        ),
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
        (["--looks", "5"], "looks must be at least two numbers of seeds, ascending, got 5"),
        (["--looks", "2", "5"], "--looks must be at least 3, which a verdict takes"),
        (["--looks", "5", "10", "--seeds", "7"], "7 seeds are none of the looks (5, 10)"),
        (["--margin", "-1"], "--margin must be positive"),
        (["--margin", "inf"], "--margin must be positive"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["plan", "--workers", "0"], "--workers must be at least 1"),
        (["--mixer"], "--mixer is empty"),
        (["--task", ""], "--task is empty"),
        (["--match", "None"], "say --match none"),
        (["--lr", "1e-3"], "did you mean '--train.lr'?"),
        (["--mixers", "ssm"], "did you mean '--mixer'?"),
        (["--lr-grid", "1e-3", "1e-2", "--train.lr", "1e-3"], "--train.lr and --lr-grid exclude each other"),
        (["--train.batch-size", "5000"], "5,000 is more than the 1,257 training examples of digits"),
        (["run"], "unknown command 'run'; a study is run without a command"),
        (
            ["--task", "bytes", "--skeleton", "causal-lm", "--mixer", "ssm", "--baseline", "causal-conv"],
            "margin 1 is in points, for digits(canvas=12); bytes is measured in bits: give --margin",
        ),
        (["--task", "mqar"], "--skeleton causal-lm reads tokens"),
        (["--task", "mqar", "--skeleton", "causal-lm"], "for --mixer and for --baseline"),
        (["--backend", "cudda"], "unknown backend 'cudda'"),
        (["--backend", "mamba_ssm"], "mamba_ssm"),
        (["plann"], "unknown command 'plann'; did you mean 'plan'"),
        (["ssm(d_state=4)"], "unknown command 'ssm(d_state=4)'; did you mean '--mixer ssm(d_state=4)'?"),
        (["plan", "scan-directions"], "Unrecognized options: scan-directions; did you mean '--study scan"),
        (["plan", "own.toml"], "Unrecognized options: own.toml; did you mean '--study own.toml'?"),
        (["report"], "study digits-ladder has no plan in"),
        (["status"], "study digits-ladder has no plan in"),
        (["--shard", "3/2"], "--shard must be i/n with i from 1 to n, such as 2/8, got '3/2'"),
        (
            ["--gpus-per-trial", "1.5"],
            "--gpus-per-trial must be 1 or a share of one, got 1.5; one trial on several is torchrun's",
        ),
        (["--gpus-per-trial", "1", "--device", "cpu"], "trials run on the CPU here"),
        (["--slurm", "partition=gpu"], "--slurm has no effect without --executor slurm"),
        (["--executor", "slurm", "--slurm", "gpu"], "--slurm takes OPTION=VALUE"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be positive minutes"),
        (["--log-every", "0"], "--log-every must be at least 1"),
        (["list", "sms"], "nothing is called 'sms'; did you mean 'ssm'?"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    placed = [] if arguments[0] in ("plann", "list", "run") else ["--runs", str(runs)]
    assert run_ablation.main([*arguments, *placed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2
    assert not list(runs.rglob("*.json")), "the store is as it was"


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ("--mixer conv", "note: nothing will be compared: the baseline, conv, is the only arm"),
        ("--mixer ssm --baseline ssm", "note: nothing will be compared: the baseline, ssm, is the only arm"),
        ("--mixer ssm ssm", "note: --mixer names ssm more than once: it is one arm"),
        (
            "--mixer ssm ssm(d_state=16)",
            "note: ssm(d_state=16) is ssm under another name: these are the same",
        ),
    ],
)
def test_what_may_not_be_meant_is_said_before_training(
    arguments: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_ablation.main(["plan", *arguments.split(), "--runs", str(tmp_path)]) == 0
    assert note in capsys.readouterr().out


def test_an_own_copy_of_a_checked_in_study_has_its_own_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "digits-ladder.toml"
    copy.write_text(studies.find("digits-ladder").read_text())
    assert run_ablation.main(["plan", "--runs", str(tmp_path)]) == 0
    assert run_ablation.main(["plan", "--study", str(copy), "--runs", str(tmp_path)]) == 2
    assert "belongs to the checked-in study digits-ladder" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["--help"], ["help"]])
def test_the_help_names_the_commands(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_ablation.main(asked)
    said = capsys.readouterr().out
    assert all(f"\n  {command} " in said for command in COMMANDS)
    for command in ("list", "doctor"):
        assert run_ablation.main([command, "--help"]) == 0
        assert COMMANDS[command] in capsys.readouterr().out


def test_help_is_heard_behind_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["list", "ssm", "--help"]) == 0
    assert "usage: run_ablation.py list [NAME ...]" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["look"], ["bench"], ["report", "--paper"]])
def test_an_empty_folder_of_runs_is_not_the_working_directory(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script with an unset variable gives it."""
    assert run_ablation.main([*command, "--runs", ""]) == 2
    assert "--runs is empty: it takes a folder" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_of_any_encoding(encoding: str) -> None:
    """No sign ends a command, a minus stays one, and what is wrong is the same sentence."""
    signs = "import run_ablation; run_ablation.main(['--sedes', '3']); print('−0.44 ± 1')"
    done = subprocess.run(
        [sys.executable, "-c", signs],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding=encoding,
        check=True,
    )
    assert done.stderr == (
        "run_ablation.py: Unrecognized options: --sedes, 3; did you mean '--seeds'? (see --help)\n"
    )
    assert done.stdout == {"ascii": "-0.44 +/- 1\n", "latin-1": "-0.44 ± 1\n"}.get(encoding, "−0.44 ± 1\n")


def test_what_a_plan_says_of_few_seeds_and_of_the_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_ablation.main(["plan", "--seeds", "2", "--shard", "1/4", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "margin 1 point\n" in said
    assert f"no verdict with 2 seeds; it takes at least {LEAST_SEEDS}" in said
    assert re.search(r"\n(\d) trials? of shard 1/4, 0 finished, \1 to run\n", said)
    assert "What the study file says of its cost: 30 trials" in said


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


@pytest.mark.parametrize("verb", ["look", "bench", "report --paper"])
def test_a_runs_folder_that_is_a_file(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run_ablation.main([*verb.split(), "--runs", str(tmp_path / "file")]) == 2
    assert "cannot write to the runs folder" in capsys.readouterr().err


def test_a_warm_up_that_takes_all_of_training_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And fields of several values are given as several words."""
    recipe = ["--train.epochs", "2", "--train.betas", "0.9", "0.95", "--runs"]
    assert run_ablation.main(["plan", "--mixer", "conv", *recipe, str(tmp_path)]) == 0
    assert "a warm-up of 2 epochs does not end within 2" in capsys.readouterr().out
    (stored,) = tmp_path.glob("studies/*/plan.json")
    assert json.loads(stored.read_text())["arms"][0]["template"]["train"]["betas"] == [0.9, 0.95]


@pytest.mark.parametrize("verb", [[], ["plan"]])
def test_an_unwritable_runs_folder(
    verb: list[str], study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run_ablation.main([*verb, "--study", str(study), "--runs", str(tmp_path / "file")]) == 2
    assert "cannot write to the runs folder" in capsys.readouterr().err


# ---------------------------------------------------------------------- whole runs, as processes


def test_planned_looks_go_on_while_anything_is_undecided(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(
        study.read_text()
        .replace('["identity", "conv"]', '["identity", "conv", "conv(kernel_size=5)"]')
        .replace("seeds = 3", 'looks = [3, 4, 5]\ncomparisons = [["conv(kernel_size=5)", "conv"]]')
        .replace("margin = 5.0", "margin = 1e-3")
    )
    arguments = ("--study", study, "--runs", tmp_path / "runs", "--workers", 1)
    assert ablate("plan", *arguments) == 0
    assert "judged at 3, 4, 5 seeds, as long as anything is undecided; each time at 1.667 %" in (
        capsys.readouterr().out
    )
    assert ablate(*arguments, "--seeds", 3) == 0, "no further than asked"
    assert "The next look is at 4." in " ".join(capsys.readouterr().out.split())
    assert ablate(*arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Undecided at 3 seeds: on to the look at 4, as planned." in said
    assert "Undecided at 4 seeds: on to the look at 5, as planned." in said
    assert said.count("3 of 12 trials to run") == said.count("3 of 15 trials to run") == 1
    assert "98.33 % t interval, 5 paired seeds" in said
    assert "To be judged at 3, 4 and 5 seeds, until decided, as planned before the run: each time at" in said
    assert "Seeds were added" not in said
    assert ablate(*arguments) == 0, "again, it goes where it stopped"
    assert "0 of 15 trials to run" in (said := capsys.readouterr().out)
    assert "on to the look" not in said

    study.write_text(study.read_text().replace("looks = [3, 4, 5]", "looks = [3, 5]"))
    assert ablate("report", *arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "To judge at 3 and 5 seeds, each time at 2.5 %, was planned when 15 trials had already" in said


def test_a_plan_of_more_seeds_is_no_look(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `plan` and `report` were asked for makes the run neither skip a look nor go past one."""
    study.write_text(study.read_text().replace("seeds = 3", "looks = [3, 4]"))
    arguments = ("--study", study, "--runs", tmp_path / "runs", "--margin", 99)
    assert ablate("plan", *arguments, "--seeds", 4) == 0
    assert ablate(*arguments) == 0
    said = capsys.readouterr().out
    assert "6 of 6 trials to run" in said
    assert "Decided at 3 seeds: no further look is needed." in said
    assert ablate("report", *arguments, "--seeds", 4) == 1
    assert "2 finished" not in capsys.readouterr().out
    assert ablate(*arguments) == 0
    said = capsys.readouterr().out
    assert "0 of 6 trials to run" in said
    assert "Decided at 3 seeds: no further look is needed." in said


def test_each_command_reports_what_it_was_asked_for(
    study: Path,
    tmp_path: Path,
    ablate: Ablate,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though another one stores its own plan meanwhile."""
    runs = tmp_path / "runs"
    arguments = ("--study", study, "--runs", runs)
    train = study_commands._train

    def train_beside_another(*given: Any) -> None:
        monkeypatch.setattr(study_commands, "_train", train)
        assert ablate(*arguments, "--seeds", 2) == 0
        train(*given)
        capsys.readouterr()

    monkeypatch.setattr(study_commands, "_train", train_beside_another)
    assert ablate(*arguments, "--seeds", 3) == 0
    assert "3 paired seeds" in capsys.readouterr().out
    plan = json.loads((runs / "studies" / "small" / "plan.json").read_bytes())
    assert [len(arm["trials"]) for arm in plan["arms"]] == [3, 3]
    assert metrics(runs).count(b"\n") == 1 + 6


def test_one_command_at_a_time_stores_and_reports(
    study: Path, tmp_path: Path, ablate: Ablate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one might report the plan of the other."""
    from experiments import stored_plan

    arguments = ("--study", study, "--runs", tmp_path / "runs", "--seeds", 1)
    assert ablate(*arguments) == 0
    held = []
    write_report, write = study_commands._write_report, stored_plan.write

    def free() -> bool:
        with open(tmp_path / "runs" / "studies" / "small" / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    monkeypatch.setattr(stored_plan, "write", lambda *given: (held.append(not free()), write(*given))[1])
    monkeypatch.setattr(
        study_commands, "_write_report", lambda *given: (held.append(not free()), write_report(*given))[1]
    )
    assert ablate(*arguments) == 0
    assert held == [True] * 4
    assert ablate("report", *arguments) == 0
    assert held[-1]
    assert free()


def test_a_runs_folder_that_is_removed_meanwhile(
    study: Path,
    tmp_path: Path,
    ablate: Ablate,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = tmp_path / "runs"
    train = study_commands._train

    def train_and_remove(*given: Any) -> None:
        train(*given)
        shutil.rmtree(runs)

    monkeypatch.setattr(study_commands, "_train", train_and_remove)
    assert ablate("--study", study, "--runs", runs, "--seeds", 1) == 1
    said = capsys.readouterr().out
    assert "identity seed 0 not run" in said
    assert "conv seed 0 not run" in said
    assert (runs / "studies" / "small" / "plan.json").exists()


def test_a_shard_does_not_judge_what_others_have_not_run(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(study.read_text().replace("seeds = 3", "looks = [3, 4]"))
    arguments = ("--study", study, "--runs", tmp_path / "runs", "--workers", 1, "--margin", "1e-3")
    arguments += ("--mixer", "conv", "--baseline", "conv(kernel_size=5)")
    assert ablate(*arguments, "--shard", "1/2") == 0
    said = capsys.readouterr().out
    assert "the look at 3 seeds waits for other shards; run those, then the same command again" in said
    assert ablate(*arguments, "--shard", "2/2") == 0, "the last to come goes on"
    said = capsys.readouterr().out
    assert "on to the look at 4" in said
    assert "waits for other shards" not in said


def test_a_study_from_end_to_end_and_again(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    arguments = ("--study", study, "--runs", runs)
    assert ablate(*arguments, "--seeds", 2) == 0
    assert "at least 3" in capsys.readouterr().out, "two seeds run, but no verdict is given"
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

    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ImportError('no torch here')")
    output = finish(start(*arguments, PYTHONPATH=str(tmp_path / "without")))  # nothing to train: not needed
    assert "0 of 6 trials to run" in output
    assert metrics(runs) == before

    folder = next(runs.glob("trials/*"))
    (folder / "result.json").write_text('{"schema_version": 1, "trial')
    other = sorted(runs.glob("trials/*"))[-1]
    stored = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**stored, "schema_version": SCHEMA_VERSION + 1}))
    assert ablate("status", *arguments) == 0
    output = capsys.readouterr().out
    assert "6 trials: 4 finished, 2 waiting" in output
    assert f"({folder.name}): result.json is not readable as JSON" in output
    assert ablate(*arguments) == 0
    output = "".join(capsys.readouterr())
    assert "result.unusable-1.json" in output
    assert f"schema version {SCHEMA_VERSION + 1}" in output
    assert "2 of 6 trials to run" in output
    assert metrics(runs) == before

    page = runs / "studies" / "small" / "report.html"
    study.write_text(study.read_text().replace("Is the machinery sound?", "Is what it says up to date?"))
    assert ablate("report", *arguments) == 0
    assert "Is what it says up to date?" in page.read_text()
    assert "margin ±5 points, fixed before the run" in page.read_text()
    study.write_text(study.read_text().replace("margin = 5.0", "margin = 60.0"))
    capsys.readouterr()
    assert ablate("report", *arguments) == 0
    assert "The margin was set when 6 trials had already finished." in " ".join(
        capsys.readouterr().out.split()
    )
    assert "margin ±60 points, set when 6 trials had already finished" in page.read_text()
    study.write_text(study.read_text().replace("seeds = 3", "seeds = 2"))
    assert ablate("report", *arguments) == 0
    assert "(3)" in capsys.readouterr().out, "what has been run is reported"

    namesake = tmp_path / "other" / "small.toml"
    namesake.parent.mkdir()
    namesake.write_text(study.read_text())
    for verb in ("plan", "report", "status"):
        assert ablate(verb, "--study", namesake, "--runs", runs) == 2
        assert f"belongs to the study file {study}; give {namesake} another name" in capsys.readouterr().err

    told = page.read_bytes()
    study.write_text(study.read_text().replace("batch_size = 32", "batch_size = 16"))
    capsys.readouterr()
    assert ablate("report", *arguments) == 1
    output = capsys.readouterr().out
    assert "identity, conv would be other trials today: this is the report of what ran" in output
    assert "conv seed 2 not run" in output
    assert page.read_bytes() == told
    assert ablate("status", "--runs", runs) == 2
    assert f"\n  small: uv run run_ablation.py --study {study} --runs {runs}\n" in capsys.readouterr().err


def test_a_checked_in_margin_that_is_edited_after_the_run_was_set_late(
    study: Path, tmp_path: Path, ablate: Ablate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.study.FOLDER", study.parent)
    runs = tmp_path / "runs"
    stored = runs / "studies" / "small" / "plan.json"

    def margin_after() -> int:
        ablate("report", "--study", "small", "--runs", runs)
        return json.loads(stored.read_text())["margin_after"]

    assert ablate("plan", "--study", "small", "--runs", runs) == 0
    monkeypatch.setattr("experiments.launch.finished", lambda folder: True)  # all six, as it is told
    assert margin_after() == 0, "what was stored before the run stays"
    study.write_text(study.read_text().replace("margin = 5.0", "margin = 60.0"))
    assert margin_after() == 6


def test_one_question_at_a_time_is_said_to_be_one_of_several(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.format(epochs=1))

    def said(*arguments: object) -> str:
        assert ablate(*arguments, "--study", study, "--runs", tmp_path / "runs") == 0
        return " ".join(capsys.readouterr().out.split())

    assert "results at hand" not in said("--mixer", "pooling")
    second = said("--mixer", "conv(kernel_size=3)")
    note = "Asked with results at hand, from among 2 comparisons: p allows for 1."
    assert second.count(note) == 2, "below the table and with the verdict"
    assert "results at hand" not in said("report", "--mixer", "pooling"), "it came first"


def _lines_of_metrics(runs: Path) -> int:
    return sum(path.read_text().count("\n") for path in runs.glob("trials/*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("first", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, run_ablation.Terminated)]
)
def test_more_signals_do_not_cut_the_end_short(first: signal.Signals, error: type[BaseException]) -> None:
    """While workers save: schedulers send several, and people press Ctrl-C more than once."""
    heard = {name: signal.signal(name, run_ablation.end) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(first)
        assert type(caught.value) is error
        for name in heard:
            signal.raise_signal(name)
    finally:
        for name, handler in heard.items():
            signal.signal(name, handler)


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path, ablate: Ablate) -> None:
    """SIGKILL of the driver, whose worker sees that it is gone and stops, then SIGTERM, at random steps."""
    study = tmp_path / "small.toml"
    study.write_text(STUDY.format(epochs=6))
    assert ablate("--study", study, "--runs", tmp_path / "whole") == 0
    runs = tmp_path / "killed"
    killed = ("--study", study, "--runs", runs, "--log-every", 1, "--workers", 1)
    for signum, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        process = start(*killed)
        enough = _lines_of_metrics(runs) + random.randint(1, 100)  # of 432 steps in all
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and _lines_of_metrics(runs) < enough:
            time.sleep(0.05)
        os.kill(process.pid, signum)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, output
    assert "told to end (SIGTERM); finished trials are kept, the same command continues" in output
    assert "Traceback" not in output
    assert list(runs.glob("trials/*/checkpoint.pt"))
    assert not list(runs.glob("trials/*/progress.json")), "nobody claims to be at work"
    finish(start(*killed))
    assert metrics(runs) == metrics(tmp_path / "whole")
    assert _lines_of_metrics(runs) == 432, "no step is logged twice"


def test_a_full_disk_is_a_sentence(study: Path, tmp_path: Path) -> None:
    """Files may have 100 KB at most, which a checkpoint exceeds: as on a full disk, it cannot be written."""
    arguments = ["--study", study, "--runs", tmp_path / "runs", "--workers", 1, "--checkpoint-every", 1e-4]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)); {RUN}"
    done = subprocess.run(
        [sys.executable, "-c", limit, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "no space left for the files of trial" in done.stderr
    assert "make room, then the same command continues from what was kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("trials/*/result.json")), "it is no failure of the trial"
    assert not list((tmp_path / "runs").glob("trials/*/.checkpoint*")), "no half-written files"


# ----------------------------------------------------------------------------------------- shards


def test_shards_add_up_to_the_study(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.format(epochs=1))
    arguments = ["--study", str(study), "--runs", str(tmp_path / "runs")]
    assert ablate(*arguments, "--shard", "1/2") == 0, "what other shards lack is not its failure"
    said = capsys.readouterr().out
    first = len(list((tmp_path / "runs").glob("trials/*/result.json")))
    assert 0 < first < 6
    assert f"{first} of {first} trials of shard 1/2 to run" in said
    assert f"shard 2/2: {6 - first} of {6 - first} trials missing" in said
    (page,) = (tmp_path / "runs").glob("studies/*/report.html")
    text = html.unescape(page.read_text())
    assert text.count("<td>missing</td>") == text.count("<td>2/2</td>") == 6 - first
    assert "<td>1/2</td>" not in text
    assert re.search(rf"^uv run run_ablation.py .* --shard 2/2  # {6 - first} trial", text, re.MULTILINE)
    assert "--shard 1/2" not in text, "that shard is complete, and to do it again is to do all"
    assert run_ablation.main(["status", *arguments, "--shard", "1/2"]) == 0
    said = capsys.readouterr().out
    assert f"6 trials: {first} finished, {6 - first} waiting" in said
    assert f"shard 2/2: {6 - first} of {6 - first} trials missing" in said
    assert ablate(*arguments, "--shard", "2/2") == 0
    assert "all 2 shards are complete" in capsys.readouterr().out
    assert "--shard" not in page.read_text()
    assert run_ablation.main(["report", *arguments]) == 0


def test_rates_wait_for_every_shard(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.format(epochs=1).replace("seeds = 3", "lr_grid = [1e-3, 3e-3]\nlr_extensions = 0"))
    arguments = ["--study", study, "--runs", tmp_path / "runs", "--seeds", 1]
    said = []
    for shard in ("1/2", "2/2", "1/2"):
        assert ablate(*arguments, "--shard", shard) == 0
        said.append(capsys.readouterr().out)
    assert "of shards other than 1/2; run those" in said[0]
    assert all("Learning rates, chosen on validation" in text for text in said[1:])
    assert "small: 2 arms x 1 seed," in said[2]
    assert ablate("plan", *arguments) == 0
    planned = capsys.readouterr().out
    assert "Learning rates, chosen on validation" in planned
    assert "Learning rates are chosen first" not in planned


class Interrupted:
    """An executor that comes back without having run some of the trials, or with failures."""

    def __init__(self, status: str) -> None:
        self.status, self.local = status, executors.find("local")

    def check(self, *arguments: Any) -> None:
        pass

    def run(self, trials: list[Trial], store: Store, *others: Any) -> None:
        well = [trial for trial in trials if trial.train.lr != 1e-3]
        self.local.run(well, store, *others)
        for trial in trials if self.status == "failed" else ():
            if trial not in well:
                content: dict[str, Any] = {field: {} for field in RESULT_FIELDS} | {"error": "no such luck"}
                content["provenance"] = {"failed_in": []}
                content |= {"schema_version": SCHEMA_VERSION, "trial_id": trial.id, "status": "failed"}
                store.folder(trial.id).fail(content)


def search_of(study: Path) -> None:
    study.write_text(STUDY.format(epochs=1).replace("seeds = 3", "lr_grid = [1e-3, 3e-3]\nlr_extensions = 0"))


def test_a_rate_that_was_not_tried_is_not_the_worst(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    search_of(study)
    arguments = ["--study", study, "--runs", tmp_path / "runs", "--seeds", 1, "--workers", 1]
    with monkeypatch.context() as patch:
        patch.setattr(study_commands, "_executor", lambda asked: Interrupted("not run"))
        assert ablate(*arguments) == 1
    said = capsys.readouterr().out
    assert "conv lr 0.001 seed 1000 not run" in said
    assert "the learning rates cannot be chosen yet, 2 trials short" in said
    assert "chosen on validation" not in said
    assert ablate(*arguments) == 0
    assert "Learning rates, chosen on validation" in capsys.readouterr().out


def test_a_failed_search_trial_is_named(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    search_of(study)
    arguments = ["--study", study, "--runs", tmp_path / "runs", "--seeds", 1, "--workers", 1]
    with monkeypatch.context() as patch:
        patch.setattr(study_commands, "_executor", lambda asked: Interrupted("failed"))
        assert ablate(*arguments) == 1
    said = capsys.readouterr().out
    assert "  conv: 0.003 of 2" in said, "it counts as worst"
    assert "conv lr 0.001 seed 1000 failed: no such luck; log " in said
    assert ablate("status", *arguments) == 0
    assert "4 trials: 2 finished, 2 failed" in capsys.readouterr().out
    assert ablate(*arguments) == 0, "it is tried again"
    assert "no such luck" not in capsys.readouterr().out


def test_two_at_once_share_the_work(study: Path, tmp_path: Path, ablate: Ablate) -> None:
    arguments = ("--study", study, "--runs", tmp_path / "runs", "--workers", 1)
    both = [start(*arguments), start(*arguments)]
    outputs = [finish(process) for process in both]
    logs = [path.read_text() for path in (tmp_path / "runs").glob("trials/*/log.txt")]
    assert len(list((tmp_path / "runs").glob("trials/*/result.json"))) == 6
    assert logs == [], f"{outputs}"
    assert ablate("--study", study, "--runs", tmp_path / "alone") == 0
    assert metrics(tmp_path / "runs") == metrics(tmp_path / "alone")


def test_ctrl_c_keeps_what_is_there(study: Path, tmp_path: Path) -> None:
    study.write_text(STUDY.format(epochs=2_000))
    process = start("--study", study, "--runs", tmp_path / "runs")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not list((tmp_path / "runs").glob("trials/*/curve.csv")):
        time.sleep(0.2)
    for _ in range(4):  # of somebody impatient
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.1)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "the same command continues" in output
    assert "Traceback" not in output
    assert list((tmp_path / "runs").glob("trials/*/checkpoint.pt"))
