"""A study of a thousand trials: its driver is killed twice, nothing is lost, and its status is cheap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from experiments import status
from experiments.launch import Shard
from experiments.store import Store
from experiments.trial import Recipe, Trial
from mixers.registry import Component

ROOT = Path(__file__).resolve().parent.parent.parent
TRIALS = 1_000

DRIVER = """
import sys, time, types
from pathlib import Path

from experiments.launch import SCHEMA_VERSION
from tests_many_trials import trials


def run_trial(trial, folder, runtime, stop_requested):
    '''In place of training: a moment, then a result.'''
    folder.begin(trial)
    folder.report_progress(epoch=1, epochs=1, fraction=0.5, seconds=0.0)
    time.sleep(0.002)
    folder.note("finished")
    parts = dict.fromkeys(("metrics", "costs", "data", "provenance"), {})
    head = {"schema_version": SCHEMA_VERSION, "trial_id": trial.id, "trial": trial.to_dict(), "status": "ok"}
    folder.finish({**head, **parts}, {})


stand_in = types.ModuleType("experiments.train")
stand_in.run_trial, stand_in.Interrupted = run_trial, type("Interrupted", (Exception,), {})
sys.modules["experiments.train"] = stand_in  # the workers import this file, too
sys.modules["experiments.machine"] = types.ModuleType("experiments.machine")

if __name__ == "__main__":
    from experiments.executors import local
    from experiments.runtime import Placement, Runtime
    from experiments.store import Store

    store = Store(Path(sys.argv[1]))
    local.run(trials(), store, Runtime(device="cpu"), Placement(workers=2), lambda: None)
"""


def trials() -> list[Trial]:
    """Four arms of 250 seeds; nothing is built of them."""
    arms = [Component(name) for name in ("identity", "pooling", "conv", "ssm")]
    return [
        Trial((arm,), Component("isotropic-nano"), Component("digits"), Recipe(), seed)
        for seed in range(TRIALS // len(arms))
        for arm in arms
    ]


def finished(runs: Path) -> dict[str, int]:
    """When each result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("trials/*/result.json")}


def processor_seconds(action: Callable[[], object]) -> float:
    """The least of three times."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_a_thousand_trials_survive_two_kills_of_their_driver(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    (tmp_path / "tests_many_trials.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    before: dict[str, int] = {}
    for enough in (TRIALS // 4, TRIALS // 2, TRIALS):
        driver = subprocess.Popen([sys.executable, script, runs], env=environment)
        while driver.poll() is None and len(finished(runs)) < enough:
            time.sleep(0.1)
        if enough < TRIALS:
            driver.send_signal(signal.SIGKILL)
        assert driver.wait() == (0 if enough == TRIALS else -signal.SIGKILL)
        after = finished(runs)
        assert {name: after[name] for name in before} == before, "nothing that is finished is done again"
        before = after
    assert before.keys() == {trial.id for trial in trials()}
    logs = [(runs / "trials" / name / "log.txt").read_text() for name in before]
    assert logs == ["finished\n"] * TRIALS, "and nothing twice"

    planned = trials()
    labels = {trial.id: f"{trial.mixer_text} seed {trial.seed}" for trial in planned}
    arms = {trial.id: trial.mixer_text for trial in planned}

    def read() -> None:
        for path in runs.glob("trials/*/result.json"):
            json.loads(path.read_text())

    said = status.lines(status.examine(labels, arms, Store(runs)))
    used = processor_seconds(lambda: status.lines(status.examine(labels, arms, Store(runs))))
    assert used < 5 * processor_seconds(read), "a status costs little more than reading the results"
    assert said[0] == "1000 trials: 1000 finished"
    assert said[1].split() == ["identity", "250", "finished"]


def test_status_tells_what_runs_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    some = trials()[:5]
    labels = {trial.id: f"{trial.mixer_text} seed {trial.seed}" for trial in some}
    arms = {trial.id: trial.mixer_text for trial in some}
    folders = [store.folder(trial.id) for trial in some]
    head = {"schema_version": 1, "metrics": {}, "costs": {}, "data": {}, "provenance": {"failed_in": []}}
    folders[0].finish({**head, "trial_id": some[0].id, "trial": {}, "status": "diverged"}, {})
    folders[1].fail({**head, "trial_id": some[1].id, "trial": {}, "status": "failed", "error": "out of luck"})
    folders[2].begin(some[2])
    folders[2].report_progress(epoch=3, epochs=4, fraction=0.5, seconds=60.0)
    folders[3].begin(some[3])
    folders[3].report_progress(epoch=3, epochs=4, fraction=0.5, seconds=60.0)  # by a process that was killed
    with folders[2].lock():
        statuses = status.examine(labels, arms, store)
    assert [each.state for each in statuses] == ["finished", "failed", "running", "waiting", "waiting"]
    said = "\n".join(status.lines(statuses))
    assert "5 trials: 1 finished, 1 running, 1 failed, 2 waiting" in said
    assert "identity                     1 finished, 1 waiting" in said
    assert "conv seed 0                  ##########.......... epoch   3/4 1:00 left" in said
    assert f"pooling seed 0 ({some[1].id}): out of luck" in said
    shard = Shard(1, 2)
    missing = {str(shard.of(each.trial_id)) for each in statuses if each.state != "finished"}
    assert [line.split()[1].rstrip(":") for line in status.shard_lines(statuses, shard)] == sorted(missing)
