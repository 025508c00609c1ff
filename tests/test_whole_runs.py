"""Whole runs, most of them as processes: planned looks, a second run, a kill, two at once, shards."""

from __future__ import annotations

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
from experiments.store import RESULT_FIELDS, Store
from experiments.trial import SCHEMA_VERSION, Trial

Ablate = Callable[..., int]

PATIENCE = 600  # seconds, for a machine that is busy otherwise
ROOT = Path(__file__).resolve().parent.parent

RUN = "import sys, run_ablation; sys.exit(run_ablation.main())"


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
    output = " ".join(capsys.readouterr().out.split())
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

    def of_a_part(*margin: object) -> int:
        ablate("plan", "--study", "small", "--runs", tmp_path / "parts", "--mixer", "pooling", *margin)
        (plan,) = sorted((tmp_path / "parts" / "studies").glob("*/plan.json"), key=os.path.getmtime)[-1:]
        return json.loads(plan.read_text())["margin_after"]

    assert of_a_part() == 0, "that of the file was not this user's to choose"
    assert of_a_part("--margin", 3) == 6, "this one is"


def test_one_question_at_a_time_is_said_to_be_one_of_several(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(study.read_text().replace("epochs = 2", "epochs = 1"))

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


def test_killed_and_run_again_gives_the_same_bytes(study: Path, tmp_path: Path, ablate: Ablate) -> None:
    """SIGKILL of the driver, whose worker sees that it is gone and stops, then SIGTERM, at random steps."""
    study.write_text(study.read_text().replace("epochs = 2", "epochs = 6"))
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
    study.write_text(study.read_text().replace("epochs = 2", "epochs = 1"))
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
    search_of(study)
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
    study.write_text(
        study.read_text()
        .replace("epochs = 2", "epochs = 1")
        .replace("seeds = 3", "lr_grid = [1e-3, 3e-3]\nlr_extensions = 0")
    )


def start_a_search(study: Path, runs: Path, ablate: Ablate, status: str) -> list[Any]:
    """Let one of two learning rates come to nothing; what was asked for, to be asked for again."""
    search_of(study)
    arguments = ["--study", study, "--runs", runs, "--seeds", 1, "--workers", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_commands, "_executor", lambda asked: Interrupted(status))
        assert ablate(*arguments) == 1
    return arguments


def test_a_rate_that_was_not_tried_is_not_the_worst(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = start_a_search(study, tmp_path / "runs", ablate, "not run")
    said = capsys.readouterr().out
    assert "conv lr 0.001 seed 1000 not run" in said
    assert "the learning rates cannot be chosen yet, 2 trials short" in said
    assert "chosen on validation" not in said
    assert ablate(*arguments) == 0
    assert "Learning rates, chosen on validation" in capsys.readouterr().out


def test_a_failed_search_trial_is_named(
    study: Path, tmp_path: Path, ablate: Ablate, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = start_a_search(study, tmp_path / "runs", ablate, "failed")
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
    study.write_text(study.read_text().replace("epochs = 2", "epochs = 2_000"))
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
