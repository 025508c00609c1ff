"""Who runs what: nothing lost, nothing doubled, failures named."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments import evaluate as evaluation
from experiments import launch, study_commands, train
from experiments.executors import local
from experiments.launch import Shard
from experiments.monitor import Monitor, progress_line
from experiments.request import Request
from experiments.runtime import Placement, Runtime
from experiments.store import HEARTBEAT, RESULT_FIELDS, DiskFull, Store, TrialFolder
from experiments.tasks.base import Classification
from experiments.trial import SCHEMA_VERSION, Trial
from mixers.registry import InputError

MakeTrial = Callable[..., Trial]


def test_only_the_missing_are_run(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny_trial("identity", seed=seed, epochs=1) for seed in range(3)]
    launch.work(trials[:2], store, Runtime(), "first")
    ran: list[int] = []
    original = train.run_trial

    def counted(trial: Trial, *rest: object) -> None:
        ran.append(trial.seed)
        original(trial, *rest)

    monkeypatch.setattr(train, "run_trial", counted)
    launch.work(trials, store, Runtime(), "second")
    assert ran == [2]
    assert launch.missing(trials, store) == []


def test_a_failure_is_recorded_and_the_rest_goes_on(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny_trial("identity", seed=seed, epochs=1) for seed in range(3)]
    original = train.run_trial
    attempts: list[int] = []

    def breaking(trial: Trial, *rest: object) -> None:
        attempts.append(trial.seed)
        if trial.seed == 1:
            raise RuntimeError("out of luck")
        original(trial, *rest)

    monkeypatch.setattr(train, "run_trial", breaking)
    launch.work(trials, store, Runtime(), "first")
    assert attempts.count(1) == 1, "not tried again in the session in which it failed"
    folder = store.folder(trials[1].id)
    result = folder.result()
    assert result is not None
    assert result["error"] == "RuntimeError: out of luck"
    assert "out of luck" in folder.log.read_text()
    assert launch.missing(trials, store) == [trials[1]]

    monkeypatch.setattr(train, "run_trial", original)
    launch.work(trials, store, Runtime(), "second")
    assert launch.missing(trials, store) == []


def test_what_breaks_while_ending_is_no_failure(tiny_trial: MakeTrial, store: Store) -> None:
    """A signal to the whole group ends what reads a trial's files before the trial itself."""
    trial = tiny_trial("identity", epochs=1)
    told: list[bool] = []

    def broken(*_: object) -> None:
        told.append(True)
        raise EOFError

    launch.work([trial], store, Runtime(), "first", lambda: bool(told), broken)
    assert told == [True]
    assert not (store.folder(trial.id).path / "result.json").exists()
    assert launch.missing([trial], store) == [trial]


def test_two_sessions_do_not_pass_a_failure_back_and_forth(tiny_trial: MakeTrial, store: Store) -> None:
    trial = tiny_trial("identity")
    folder = store.folder(trial.id)
    folder.path.mkdir(parents=True)
    for session in ("a", "b"):
        launch.record_failure(trial, folder, "broken", session)
    result = folder.result()
    assert result is not None
    assert result["provenance"]["failed_in"] == ["a", "b"]


def test_a_trial_that_another_holds_is_waited_for(tiny_trial: MakeTrial, store: Store) -> None:
    trial = tiny_trial("identity", epochs=1)
    folder = store.folder(trial.id)
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return polls > 3

    with folder.lock() as held:
        assert held
        launch.work([trial], store, Runtime(), "other", stop)
    assert folder.result() is None
    launch.work([trial], store, Runtime(), "other")
    assert folder.result() is not None


def test_a_trial_that_another_finished_meanwhile_is_not_run_again(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its result and the lock of its folder."""
    trial = tiny_trial("identity")
    lock = TrialFolder.lock

    def finish_and_lock(folder: TrialFolder) -> Any:
        head = {field: {} for field in RESULT_FIELDS}
        result = {**head, "schema_version": SCHEMA_VERSION, "trial_id": trial.id, "status": "ok"}
        folder.path.mkdir(parents=True)
        folder.finish(result, {})
        return lock(folder)

    monkeypatch.setattr(TrialFolder, "lock", finish_and_lock)
    launch.work([trial], store, Runtime(), "first", run_trial=lambda *_: pytest.fail("run again"))


def test_processes_never_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert local.processes(None, threads=1, trials=30) == 8
    assert local.processes(None, threads=3, trials=30) == 2
    assert local.processes(None, threads=16, trials=30) == 1
    assert local.processes(None, threads=1, trials=3) == 3
    assert local.processes(2, threads=1, trials=30) == 2


# ------------------------------------------------------------------------------------------- GPUs


def test_one_worker_per_gpu_or_share_of_one() -> None:
    assert local.divide_gpus(["0", "1", "2"], 1) == ["0", "1", "2"]
    assert local.divide_gpus(["4", "GPU-ab"], 0.5) == ["4", "GPU-ab", "4", "GPU-ab"]
    assert local.divide_gpus(["4"], 0.3) == ["4"] * 3


def test_no_more_workers_on_gpus_than_there_is_room_or_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda device: ["0", "1"])
    assert local._slots(Runtime(), Placement(), trials=9) == ["0", "1"]
    shared = Placement(gpus_per_trial=0.5)
    assert local._slots(Runtime(), shared, trials=9) == ["0", "1", "0", "1"]
    assert local._slots(Runtime(), shared, trials=1) == ["0"]
    assert local._slots(Runtime(), replace(shared, workers=3), trials=9) == ["0", "1", "0"]
    assert local._slots(Runtime(), replace(shared, workers=9), trials=9) == ["0", "1", "0", "1"]


def test_gpus_that_are_hidden_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local.visible_gpus("cuda") == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,9")
    assert local.visible_gpus("cuda") == ["3", "5"], "there is no tenth"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.visible_gpus("cuda") == []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local.visible_gpus("cuda") == ["0", "1"]
    assert local.visible_gpus("cpu") == []


@pytest.mark.parametrize("driver", ["/dev/nvidiactl", "/dev/dxg", "/dev/kfd"])
def test_gpus_are_found_whoever_drives_them(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local.Path, "exists", lambda path: str(path) == driver)
    assert local.visible_gpus("auto") == ["0", "1"]
    monkeypatch.setattr(local.Path, "exists", lambda path: False)
    assert local.visible_gpus("auto") == []


@pytest.mark.parametrize(("share", "said"), [(0.9, True), (0.5, False), (1.0, False)])
def test_a_share_that_fits_once_is_said_to_be_a_whole_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], share: float, said: bool
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda device: ["0"])
    local.check(Runtime(), Placement(gpus_per_trial=share))
    note = "note: --gpus-per-trial 0.9 leaves no room for a second trial on a GPU of this machine: "
    assert capsys.readouterr().out == (f"{note}one runs on each, as with 1\n" if said else "")


def test_torch_is_not_asked_before_there_is_something_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda device: pytest.fail("asked"))
    local.check(Runtime(), Placement())


def test_no_gpus_for_trials_on_the_cpu() -> None:
    with pytest.raises(InputError, match="--gpus-per-trial is given, but trials run on the CPU"):
        local.check(Runtime(device="cpu"), Placement(gpus_per_trial=1))


# ----------------------------------------------------------------------------------------- shards


def test_shards_divide_every_list_of_trials(tiny_trial: MakeTrial) -> None:
    trials = [tiny_trial(seed=seed) for seed in range(40)]
    shards = [Shard.parse(f"{number}/3") for number in (1, 2, 3)]
    shares = [shard.select(trials) for shard in shards]
    assert sorted(trial.seed for share in shares for trial in share) == list(range(40))
    assert all(5 < len(share) < 22 for share in shares)
    assert shards[1].select(trials[::2]) == [trial for trial in trials[::2] if trial in shares[1]]
    assert [shards[0].of(trial.id) for trial in shares[2]] == [shards[2]] * len(shares[2])


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "1/2/3", "-1/2"])
def test_a_shard_that_does_not_exist(text: str) -> None:
    with pytest.raises(InputError, match="--shard must be i/n with i from 1 to n, such as 2/8, got"):
        Shard.parse(text)


# ---------------------------------------------------------------------- workers that die, full disks


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_killed_worker_is_replaced_and_its_trial_goes_on(
    tiny_trial: MakeTrial, store: Store, tmp_path: Path, name: str
) -> None:
    """By the kernel when memory is short, or by somebody else, in a trial that has a checkpoint."""
    trial = tiny_trial("identity", epochs=60, batch_size=256)
    folder = store.folder(trial.id)
    killed: list[int] = []

    def kill_once() -> None:
        progress = folder.progress()
        if not killed and progress is not None and folder.checkpoint.exists():
            killed.append(progress["pid"])
            os.kill(progress["pid"], signal.Signals[name])

    local.run([trial], store, Runtime(checkpoint_every=0.05), Placement(workers=1), kill_once)
    assert len(killed) == 1
    result = folder.result()
    assert result is not None
    assert result["status"] == "ok"
    assert folder.log.read_text() == (
        f"worker process ended by signal {name}; goes on from its checkpoint, try 2\n"
    )
    whole = Store(tmp_path / "whole").folder(trial.id)
    train.run_trial(trial, whole, Runtime())
    assert whole.result() == result


def test_a_trial_that_takes_down_every_worker_has_failed(
    tiny_trial: MakeTrial, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has taken the trial since, as a worker without one does before its death is seen."""
    trials = [tiny_trial("identity", seed=seed) for seed in range(2)]
    deadly = store.folder(trials[1].id)
    process: Any = SimpleNamespace(exitcode=-signal.SIGKILL)
    dead = local._Worker(process, None, ctypes.c_int(1))
    deaths: Counter[str] = Counter()
    deadly.begin(trials[1])
    deadly.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)  # by this process
    for _ in range(1 + launch.RETRIES):
        assert deadly.result() is None
        assert local.may_go_on(dead, trials, store, "session", deaths)
    result = deadly.result()
    assert result is not None
    assert result["error"] == "worker process ended by signal SIGKILL, 3 times"
    assert store.folder(trials[0].id).result() is None
    assert local.may_go_on(dead, trials, store, "session", deaths), "it was the trial, not the worker"
    idle = local._Worker(process, None, ctypes.c_int(local.NO_TRIAL))
    assert [local.may_go_on(idle, trials, store, "session", deaths) for _ in range(3)] == [
        True,
        True,
        False,
    ], "workers that die at once are not replaced for ever"
    assert capsys.readouterr().err == (
        "note: a worker process without a trial ended by signal SIGKILL and is not replaced\n"
    )


def test_the_death_of_a_worker_leaves_a_trial_on_another_machine_alone(
    tiny_trial: MakeTrial, store: Store
) -> None:
    """In containers, processes on two machines have the same number."""
    trial = tiny_trial("identity")
    folder = store.folder(trial.id)
    folder.begin(trial)
    process: Any = SimpleNamespace(pid=7, exitcode=1)
    progress = {"epoch": 1, "epochs": 2, "fraction": 0.5, "seconds": 1.0, "host": "elsewhere", "pid": 7}
    (folder.path / "progress.json").write_text(json.dumps(progress))
    dead = local._Worker(process, None, ctypes.c_int(local.NO_TRIAL))
    deaths = Counter({trial.id: launch.RETRIES})
    local.may_go_on(dead, [trial], store, "session", deaths)
    assert folder.result() is None
    assert folder.progress() == progress


def test_a_full_disk_stops_the_work_and_keeps_the_checkpoint(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial("identity", epochs=2, batch_size=32)
    folder = store.folder(trial.id)
    steps: Iterator[int] = iter(range(1, 100))
    launch.work([trial], store, Runtime(), "first", lambda: next(steps) >= 8)
    assert folder.progress() is None, "nobody is at work any more"
    kept = folder.checkpoint.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = f"files of trial {trial.id}: its last checkpoint is kept; all that is finished is kept"
    with pytest.raises(DiskFull, match=said):
        launch.work([trial], store, Runtime(), "second")
    assert folder.checkpoint.read_bytes() == kept
    assert not list(folder.path.glob(".*")), "no half-written files"
    with pytest.raises(DiskFull, match="it has no checkpoint yet; all that is finished is kept"):
        launch.work([tiny_trial("identity", seed=1)], store, Runtime(), "second")
    monkeypatch.undo()
    launch.work([trial], store, Runtime(), "third")
    assert launch.missing([trial], store) == []


def test_a_trial_on_another_machine_is_left_alone(tiny_trial: MakeTrial, store: Store) -> None:
    """Where locks stay within a machine, fresh progress of another stands for the lock."""
    trial = tiny_trial("identity", epochs=1)
    folder = store.folder(trial.id)
    folder.begin(trial)
    progress = {"epoch": 1, "epochs": 1, "fraction": 0.5, "seconds": 1.0, "host": "elsewhere", "pid": 1}
    path = folder.path / "progress.json"
    path.write_text(json.dumps(progress))
    polls: Iterator[int] = iter(range(1, 100))
    launch.work([trial], store, Runtime(), "first", lambda: next(polls) > 3)
    assert folder.result() is None
    long_ago = time.time() - 2 * HEARTBEAT
    os.utime(path, (long_ago, long_ago))
    launch.work([trial], store, Runtime(), "second")
    assert folder.result() is not None


def test_who_waits_for_another_machine_hears_its_name(tiny_trial: MakeTrial, store: Store) -> None:
    trials = [tiny_trial("identity", seed=seed) for seed in range(3)]
    out = io.StringIO()
    monitor = Monitor({trial.id: f"seed {trial.seed}" for trial in trials}, store, out)
    for trial, host in zip(trials, ("gpu-3", "gpu-3", "gpu-4"), strict=True):
        folder = store.folder(trial.id)
        folder.begin(trial)
        progress = {"epoch": 1, "epochs": 2, "fraction": 0.5, "seconds": 1.0, "host": host, "pid": 1}
        (folder.path / "progress.json").write_text(json.dumps(progress))
        assert progress_line("conv", progress).endswith(f"0:01 left on {host}")
        running = monitor._running()
        hosts = "on gpu-3" if host == "gpu-3" else "on 2 other machines"
        assert f"{len(running)} running ({hosts}), about" in monitor._summary(running)


def test_a_folder_that_cannot_be_used_is_said_before_workers_start(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial("identity")
    store.folder(trial.id).path.write_text("a file")
    monkeypatch.setattr(local, "run", lambda *_: pytest.fail("started"))
    with pytest.raises(InputError, match=f"no trial can be run in {store.folder(trial.id).path}"):
        study_commands._train("study", [trial], {trial.id: "identity"}, store, Request())


def test_workers_that_cannot_use_a_folder_end_the_run(
    tiny_trial: MakeTrial, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = tiny_trial("identity")
    lock = store.folder(trial.id).path / "lock"
    watch = partial(lock.mkdir, parents=True, exist_ok=True)  # after the workers have been started
    with pytest.raises(InputError, match=r"a folder under .* cannot be used"):
        local.run([trial], store, Runtime(), Placement(workers=1), watch)
    said = capfd.readouterr().err
    assert f"run_ablation.py: no trial can be run in {lock.parent}: Is a directory" in said
    assert "Traceback" not in said


def test_what_cannot_even_be_noted_ends_the_work(tiny_trial: MakeTrial, store: Store) -> None:
    """As in a file system that has become read-only since the folder was locked."""
    trial = tiny_trial("identity")

    def failing(trial: Trial, folder: TrialFolder, *_: object) -> None:
        folder.log.mkdir()
        raise OSError

    with pytest.raises(InputError, match=r"no trial can be run in .*: Is a directory .*make it writable"):
        launch.work([trial], store, Runtime(), "first", run_trial=failing)


# ---------------------------------------------------------------------------- workers that are starting


def test_ending_while_workers_are_started_ends_those_that_are(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would wait for them before it exits, and they for the last trial."""
    start, started = local._Worker.start, list[local._Worker]()

    def interrupted(*arguments: Any) -> local._Worker:
        if started:
            raise KeyboardInterrupt
        started.append(start(*arguments))
        return started[0]

    monkeypatch.setattr(local._Worker, "start", interrupted)
    trials = [tiny_trial("identity", seed=seed, epochs=1000) for seed in range(2)]
    monkeypatch.setattr(local, "_slots", lambda *_: [None, None])
    with pytest.raises(KeyboardInterrupt):
        local.run(trials, store, Runtime(), Placement(), lambda: None)
    (worker,) = started
    try:
        assert not worker.process.is_alive()
    finally:
        worker.process.kill()


def test_a_worker_leaves_ctrl_c_to_its_driver_from_the_start(store: Store) -> None:
    """A terminal sends it to both; a worker that is still importing would print where it was."""
    worker = local._Worker.start(None, ([], store.root, Runtime(), "session"))
    assert worker.process.pid is not None
    for name in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.process.pid, name)
    worker.process.join(60)
    assert worker.process.exitcode in (-signal.SIGTERM, local.BY_SIGNAL + signal.SIGTERM)


ORPHANS = """
import json, os, pathlib, sys
from experiments.executors import local
from experiments.runtime import Runtime
from experiments.trial import Trial

trial = json.loads(sys.argv[1])
local._Worker.start(None, ([trial], pathlib.Path(sys.argv[2]), Runtime(), "session"))
os._exit(9)
"""
"""A driver that is killed as soon as its worker is started."""


def test_a_worker_whose_driver_was_killed_at_the_start_does_nothing(
    tiny_trial: MakeTrial, store: Store
) -> None:
    trial = tiny_trial("identity", epochs=1)
    command = [sys.executable, "-c", ORPHANS, json.dumps(trial.to_dict()), str(store.root)]
    # ends when the worker does, which holds its output open
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (9, "")
    assert not store.folder(trial.id).path.exists()


# ------------------------------------------------------------------------------------ out of memory


class Memory:
    """A task's loss that takes at most so many examples at once, and says so as torch or Python does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int, error: Exception) -> None:
        self.asked: list[int] = []
        original = Classification.training_loss

        def loss(task: Classification, model: nn.Module, inputs: Tensor, *rest: Any) -> Tensor:
            self.asked.append(len(inputs))
            if len(inputs) > at_most:
                raise error
            return original(task, model, inputs, *rest)

        monkeypatch.setattr(Classification, "training_loss", loss)


def cpu_error() -> Exception:
    """What torch raises on the CPU, from torch itself."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), cpu_error()])
def test_out_of_memory_goes_on_with_smaller_micro_batches(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    trial = tiny_trial("identity", epochs=1, batch_size=64)
    memory = Memory(monkeypatch, 20, error)
    launch.work([trial], store, Runtime(), "first")
    folder = store.folder(trial.id)
    result = folder.result()
    assert result is not None
    assert result["status"] == "ok"
    assert memory.asked[:3] == [64, 32, 16]
    assert result["provenance"]["micro_batch"] == 16
    assert "out of memory with 32 examples at a time: goes on with 16, accumulated" in folder.log.read_text()


def test_out_of_memory_ends_at_one_example(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny_trial("identity", epochs=1, batch_size=6), tiny_trial("identity", epochs=1)]
    memory = Memory(monkeypatch, 0, MemoryError())
    launch.work(trials[:1], store, Runtime(), "first")
    assert memory.asked == [6, 3, 1]
    result = store.folder(trials[0].id).result()
    assert result is not None
    assert result["error"].startswith("out of memory even with one example at a time")


@pytest.mark.parametrize("at_most", [50, 0])
def test_out_of_memory_in_an_evaluation_leaves_the_training_alone(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch, at_most: int
) -> None:
    trial = tiny_trial("identity", epochs=2)
    whole = Store(store.root / "whole")
    launch.work([trial], whole, Runtime(), "first")
    asked: list[int] = []
    original = evaluation._answer

    def answer(model: nn.Module, spec: Any, inputs: Tensor) -> Any:
        asked.append(len(inputs))
        if len(inputs) > at_most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, spec, inputs)

    monkeypatch.setattr(evaluation, "_answer", answer)
    launch.work([trial], store, Runtime(log_every=1), "first")
    folder = store.folder(trial.id)
    result, expected = folder.result(), whole.folder(trial.id).result()
    assert result is not None
    assert expected is not None
    said = folder.log.read_text()
    if at_most:
        assert asked[:4] == [200, 128, 64, 32], "all 200 at first; then it is known what fits"
        assert max(asked[4:]) == 32
        assert said.count("out of memory") == 3
        assert "out of memory with 64 examples of the validation split at a time: goes on with 32" in said
        assert result["provenance"]["micro_batch"] is None
        assert result["metrics"]["test"] == pytest.approx(expected["metrics"]["test"], rel=1e-5)
    else:
        assert asked[-1] == 1
        assert "not even one example of the validation split fits" in result["error"]
        assert "accumulated" not in said, "a smaller micro-batch would not help"
        monkeypatch.undo()
        steps = folder.metrics.read_text()
        assert steps
        launch.work([trial], store, Runtime(log_every=1), "second")
        result = folder.result()
        assert result is not None
        assert result["metrics"] == expected["metrics"]
        assert folder.metrics.read_text().startswith(steps), "no step of the first epoch is done again"


def test_any_other_error_is_not_tried_again(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(monkeypatch, 0, RuntimeError("shapes do not fit"))
    trial = tiny_trial("identity", epochs=1)
    launch.work([trial], store, Runtime(), "first")
    assert memory.asked == [64]


def test_the_monitor_tells_the_numbers_that_both_splits_have(tiny_trial: MakeTrial, store: Store) -> None:
    """A detector's test split may have no small objects, and a validation split no large ones."""
    trial = tiny_trial("identity")
    folder, out = store.folder(trial.id), io.StringIO()
    monitor = Monitor({trial.id: "identity seed 0"}, store, out)
    metrics = {
        "validation": {"box_AP": 1.0, "box_AP_small": 2.0},
        "test": {"box_AP": 3.0, "box_AP_large": 4.0},
    }
    head = {field: {} for field in RESULT_FIELDS}
    folder.finish(
        {**head, "schema_version": SCHEMA_VERSION, "trial_id": trial.id, "status": "ok", "metrics": metrics},
        {},
    )
    monitor()
    assert "identity seed 0              test box_AP 3 (0:00)" in out.getvalue()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (-9, "by signal SIGKILL"),
        (143, "by signal SIGTERM"),
        (1, "with exit code 1"),
        (255, "with exit code 255"),
    ],
)
def test_how_a_worker_ended(code: int, how: str) -> None:
    assert local._how_it_ended(code) == how
