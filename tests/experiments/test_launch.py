"""Who runs what: nothing lost, nothing doubled, failures named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments import launch, train
from experiments.runtime import Runtime
from experiments.store import Store
from experiments.trial import Trial

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


def test_processes_never_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert launch.processes(None, threads=1, trials=30) == 8
    assert launch.processes(None, threads=3, trials=30) == 2
    assert launch.processes(None, threads=16, trials=30) == 1
    assert launch.processes(None, threads=1, trials=3) == 3
    assert launch.processes(2, threads=1, trials=30) == 2
