"""Other machines: a Ray cluster that loses a node, and a SLURM queue played by four small programs."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import executors, launch, train
from experiments.runtime import Placement, Runtime
from experiments.store import Store
from experiments.tasks import FROM_FILES, TASKS
from experiments.trial import Trial
from mixers.registry import Component, InputError

MakeTrial = Callable[..., Trial]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real Ray head that takes no work itself, reached as a user's would be."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray looks when it is imported
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    # as the executor sets it before its own import: this fixture imports Ray first
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "150")  # patience, on a busy machine
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "150000")
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # its imports take several times longer
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs ray (uv sync --extra ray)")
    started = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    monkeypatch.setenv("RAY_ADDRESS", started.address)
    yield started
    started.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves its log files open
def test_ray_goes_on_elsewhere_when_a_node_dies(
    tiny_trial: MakeTrial, store: Store, tmp_path: Path, cluster: Any
) -> None:
    trials = [tiny_trial("identity", seed=seed, epochs=40, batch_size=128) for seed in range(2)]
    nodes = [cluster.add_node(num_cpus=1)]
    killed: list[int] = []

    def kill_the_first_node() -> None:
        running = [store.folder(trial.id) for trial in trials if store.folder(trial.id).checkpoint.exists()]
        progress = running[0].progress() if running else None
        if not killed and progress is not None:
            killed.append(progress["pid"])
            cluster.remove_node(nodes[0], allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))

    executors.find("ray").run(
        trials, store, Runtime(checkpoint_every=0.05, log_every=1), Placement("ray"), kill_the_first_node
    )
    assert len(killed) == 1
    assert not alive(killed[0])
    alone = Store(tmp_path / "alone")
    for trial in trials:
        train.run_trial(trial, alone.folder(trial.id), Runtime(log_every=1))
        assert store.folder(trial.id).result() == alone.folder(trial.id).result()
        steps = [len(each.folder(trial.id).metrics.read_text().splitlines()) for each in (store, alone)]
        assert steps[0] == steps[1]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_sigterm_lets_ray_tasks_save(tiny_trial: MakeTrial, store: Store, cluster: Any) -> None:
    trial = tiny_trial("identity", epochs=20_000)
    folder = store.folder(trial.id)
    cluster.add_node(num_cpus=1)

    def end(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def signal_once_it_runs() -> None:
        if folder.metrics.exists():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(KeyboardInterrupt):
            executors.find("ray").run(
                [trial], store, Runtime(log_every=1), Placement("ray"), signal_once_it_runs
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert folder.checkpoint.exists()
    assert folder.result() is None


def test_an_executor_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in executors.PACKAGES.items():
        with pytest.raises(InputError, match=f"--executor {name} needs {package}.*uv sync --extra {name}"):
            executors.find(name)


# ------------------------------------------------------------------------------------------ SLURM

PROGRAMS = {
    "sbatch": """
        cp "$1" {folder}/submitted.sh  # as SLURM does: submitit moves its own as soon as this returns
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        for task in $(seq 0 "$last"); do
            SLURM_JOB_ID=$((70 + task)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 \\
                SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \\
                bash {folder}/submitted.sh > {folder}/job-$task.txt 2>&1 &
        done
        echo "Submitted batch job 7"
    """,
    "srun": """
        while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] && shift || shift 2; done
        exec "$@"
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        echo "7_0|RUNNING|here"
        echo "7_1|RUNNING|here"
    """,
    "scancel": """
        echo "$@" >> {folder}/cancelled.txt
    """,
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue with room for everything; the folder of its programs."""
    pytest.importorskip("submitit", reason="needs submitit (uv sync --extra slurm)")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script.format(folder=folder)}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_runs_an_array_of_shares(tiny_trial: MakeTrial, store: Store, slurm: Path) -> None:
    trials = [tiny_trial("identity", seed=seed, epochs=1) for seed in range(3)]
    placement = Placement("slurm", workers=2, slurm={"partition": "cpu", "time": "90", "mem": "2G"})
    executors.find("slurm").run(trials, store, Runtime(threads=1), placement, lambda: None)
    statuses = [(store.folder(trial.id).result() or {}).get("status") for trial in trials]
    assert statuses == ["ok"] * 3, (slurm / "job-0.txt").read_text()
    script = (slurm / "submitted.sh").read_text().splitlines()
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --job-name=ablation",
        "#SBATCH --mem=2G",
        "#SBATCH --partition=cpu",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=90",
    ):
        assert line in script
    assert not [line for line in script if "gpu" in line]


def test_a_gpu_job_asks_for_its_gpus(slurm: Path) -> None:
    executor = executors.find("slurm").make_executor(
        slurm, Runtime(device="cuda"), Placement(gpus_per_trial=1), processors=6
    )
    script = executor._make_submission_file_text("true", "uid")
    assert "#SBATCH --gpus-per-node=1" in script
    assert "#SBATCH --cpus-per-task=6" in script


def test_ray_says_when_no_node_has_room(capsys: pytest.CaptureFixture[str]) -> None:
    class Cluster:
        @staticmethod
        def nodes() -> list[dict[str, Any]]:
            resources = ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}, {"CPU": 99.0})
            alive = (True, True, False)
            return [{"Alive": a, "Resources": each} for a, each in zip(alive, resources, strict=True)]

    check = executors.find("ray")._check_room  # type: ignore[attr-defined]
    check(Cluster, 8, 1)
    check(Cluster, 16, 0)
    assert capsys.readouterr().out == ""
    check(Cluster, 9, 1)
    said = capsys.readouterr().out
    assert "what a trial takes, 9 CPUs" in said
    assert "there are 8 CPUs, 1 GPUs; 16 CPUs, 0 GPUs. Ray waits" in said


def test_processes_that_read_count_where_there_are_files(tiny_trial: MakeTrial) -> None:
    runtime = Runtime(threads=4, loaders=2)
    trial = tiny_trial()
    files = dataclasses.replace(trial, task=Component("images", {}))
    assert launch.processors([trial], runtime) == 4
    assert launch.processors([trial, files], runtime) == 6


def test_every_task_of_files_is_known_to_be_one() -> None:
    modules = {TASKS.load(name).__module__ for name in TASKS}
    readers = {module for module in modules if hasattr(sys.modules[module], "FilesRead")}
    assert {TASKS.load(name).__module__ for name in FROM_FILES} == readers


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(slurm={"array": "0-9"}), "--slurm array=... cannot be given: it follows from --workers"),
        (Placement(slurm={"time": "1:00:00"}), "--slurm time must be whole minutes, got '1:00:00'"),
        (Placement(gpus_per_trial=0.5), "--gpus-per-trial must be 1 with SLURM, got 0.5"),
    ],
)
@pytest.mark.usefixtures("slurm")
def test_options_that_sbatch_will_not_get(placement: Placement, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        executors.find("slurm").check(Runtime(), placement)


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
@pytest.mark.parametrize("everybody", [False, True])
def test_a_job_that_must_go_saves_first_and_comes_back(
    tiny_trial: MakeTrial, store: Store, name: str, everybody: bool
) -> None:
    """At SLURM's signals to the job or to all its processes; submitit calls `checkpoint` at USR2 only."""
    pytest.importorskip("submitit", reason="needs submitit (uv sync --extra slurm)")
    trial = tiny_trial("identity", epochs=20_000)
    folder = store.folder(trial.id)
    share = executors.find("slurm").ShareOfTrials([trial], store.root, Runtime(), None)
    again: list[Any] = []

    def requeue(signum: int, frame: Any) -> None:
        again.append(share.checkpoint())
        sys.exit(-1)

    def send() -> None:
        while not folder.metrics.exists():
            time.sleep(0.05)
        progress = folder.progress()
        assert progress is not None
        for pid in [progress["pid"]] * everybody + [os.getpid()]:
            os.kill(pid, signal.Signals[name])

    handlers = {signal.SIGUSR2: requeue, signal.SIGTERM: lambda *_: None}  # submitit's
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(SystemExit):
            share()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    thread.join()
    assert folder.checkpoint.exists()
    assert folder.result() is None
    assert [each.function for each in again] == ([share] if name == "SIGUSR2" else [])
