"""The command line as a user meets it: bad input, help, what is printed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import run_ablation
from experiments import study as studies
from experiments.command_line import COMMANDS
from experiments.tasks.digits import Digits
from experiments.trial import LEAST_SEEDS

Ablate = Callable[..., int]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def causal_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `digits` forbid seeing the future."""
    free = Digits.spec.fget
    monkeypatch.setattr(Digits, "spec", property(lambda self: dataclasses.replace(free(self), causal=True)))


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
        (["--loaders", "-1"], "--loaders must be at least 0"),
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


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS), ["report", "--paper"]])
def test_help_fits_the_terminal_and_says_each_default_once(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        run_ablation.main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("usage: ")] == []
    assert re.findall(r"default: [^()]* \(default: \w*\)", " ".join(" ".join(lines).split())) == []


def test_a_plan_fits_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_ablation.main(["plan", "--mixer", "ssm", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        "\n  ssm: ssm(d_state=16, scan=bidirectional, conv=symmetric, kernel_size=7,\n      selective=all"
        in said
    )
    assert max(map(len, said.splitlines())) <= 80


def test_help_is_heard_behind_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["list", "ssm", "--help"]) == 0
    assert "usage: run_ablation.py list [NAME ...]" in capsys.readouterr().out


def test_windows_is_told_before_anything_is_imported_that_it_has_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "experiments.commands", None)  # whose locks come from fcntl
    monkeypatch.setattr(sys, "platform", "win32")
    assert run_ablation.main(["list"]) == 2
    assert capsys.readouterr().err == "run_ablation.py: on Windows this runs in WSL, not in Windows itself\n"


@pytest.mark.parametrize("command", [[], ["look"], ["bench"], ["report", "--paper"]])
def test_an_empty_folder_of_runs_is_not_the_working_directory(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script with an unset variable gives it."""
    assert run_ablation.main([*command, "--runs", ""]) == 2
    assert "--runs is empty: it takes a folder" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])  # written at once, or when the command ends
@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("/dev/full", 1, "run_ablation.py: no space is left for the output; make room and run it again\n"),
        ("closed pipe", 0, ""),  # as behind `| head -1`
    ],
)
def test_output_that_cannot_be_written(output: str, code: int, said: str, unbuffered: str) -> None:
    if output == "/dev/full":
        stdout = os.open(output, os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "run_ablation.py", "list", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    os.close(stdout)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$@" >&-', 0, ""),  # nobody wants it
        (
            'ulimit -f 0; "$@" >{file}',
            1,
            "run_ablation.py: no space is left for the output;",
        ),  # as by a quota
    ],
)
def test_output_that_is_closed_or_limited(shell: str, code: int, said: str, tmp_path: Path) -> None:
    command = shell.format(file=tmp_path / "output")
    done = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-B", "run_ablation.py", "list", "--help"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr.partition(" make")[0].strip()) == (code, said)


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


@pytest.mark.parametrize(("warm_up", "said"), [("1", "1 epoch"), ("2", "2 epochs")])
def test_a_warm_up_that_takes_all_of_training_is_said(
    warm_up: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And fields of several values are given as several words."""
    recipe = ["--train.warmup-epochs", warm_up, "--train.epochs", warm_up, "--train.betas", "0.9", "0.95"]
    assert run_ablation.main(["plan", "--mixer", "conv", *recipe, "--runs", str(tmp_path)]) == 0
    assert f"a warm-up of {said} does not end within {warm_up}" in capsys.readouterr().out
    (stored,) = tmp_path.glob("studies/*/plan.json")
    assert json.loads(stored.read_text())["arms"][0]["template"]["train"]["betas"] == [0.9, 0.95]


def test_a_study_of_a_colleague_can_be_looked_at(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], read_only_disk: Callable[[], None]
) -> None:
    """Without writing: how far it is, and what was planned; the rest says what it cannot write to."""
    runs = tmp_path / "runs"
    arguments = ["--study", str(study), "--runs", str(runs)]
    assert run_ablation.main(["plan", *arguments]) == 0
    planned = capsys.readouterr().out
    read_only_disk()
    assert run_ablation.main(["status", *arguments]) == 0
    assert "6 trials: 6 waiting" in capsys.readouterr().out
    assert run_ablation.main(["plan", *arguments]) == 0
    assert capsys.readouterr().out == planned
    for verb in ([], ["report"]):
        assert run_ablation.main([*verb, *arguments]) == 2
        assert f"cannot write to the runs folder {runs}: Read-only" in capsys.readouterr().err
    assert run_ablation.main(["plan", *arguments, "--mixer", "pooling"]) == 2, "which is not planned yet"


def test_a_study_folder_that_nobody_else_may_read(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refused)
    assert run_ablation.main(["status", "--study", str(study), "--runs", str(tmp_path)]) == 2
    folder = tmp_path / "studies" / "small"
    assert f"no plan can be read in {folder}: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["plan"]])
def test_an_unwritable_runs_folder(
    verb: list[str], study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run_ablation.main([*verb, "--study", str(study), "--runs", str(tmp_path / "file")]) == 2
    assert "cannot write to the runs folder" in capsys.readouterr().err
