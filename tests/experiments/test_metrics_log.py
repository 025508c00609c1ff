"""Live metrics: one line per so many steps, the same lines whether or not the run was cut off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.runtime import Runtime
from experiments.store import Store, TrialFolder
from experiments.train import Interrupted, run_trial
from experiments.trial import Trial

MakeTrial = Callable[..., Trial]


def lines(folder: TrialFolder) -> list[dict]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def deterministic(folder: TrialFolder) -> list[dict]:
    """Without what depends on the clock."""
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm")
    return [{name: line[name] for name in names} for line in lines(folder)]


def test_a_line_per_so_many_steps(tiny_trial: MakeTrial, store: Store) -> None:
    trial = tiny_trial(clip_grad=1.0, batch_size=32)  # 12 steps in each of 2 epochs
    folder = store.folder(trial.id)
    run_trial(trial, folder, Runtime(log_every=5))
    found = lines(folder)
    assert [(line["step"], line["epoch"]) for line in found] == [(5, 1), (10, 1), (15, 2), (20, 2)]
    assert all(line["examples_per_second"] > 0 and line["grad_norm"] > 0 for line in found)
    assert all(line["waiting_seconds"] >= 0 for line in found)


def test_the_loss_is_the_mean_since_the_line_before(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    trial = tiny_trial(batch_size=32, epochs=1)
    each, some = (Store(tmp_path / name).folder(trial.id) for name in ("each", "some"))
    run_trial(trial, each, Runtime(log_every=1))
    run_trial(trial, some, Runtime(log_every=4))
    losses = [line["loss"] for line in lines(each)]
    means = [sum(losses[start : start + 4]) / 4 for start in (0, 4, 8)]
    assert [line["loss"] for line in lines(some)] == pytest.approx(means)
    assert "grad_norm" not in lines(some)[0], "nothing is clipped"
    (epoch,) = [line.split(",") for line in each.curve.read_text().splitlines()[1:]]
    assert float(epoch[2]) == pytest.approx(sum(losses) / 12), "as is that of the curve, over the epoch"


def test_a_run_that_was_cut_off_leaves_no_line_twice(tiny_trial: MakeTrial, tmp_path: Path) -> None:
    """Stopped with a checkpoint at step 13, then cut off without one at step 19, in the middle of a line;
    damaged lines go, too."""
    trial = tiny_trial(clip_grad=1.0, batch_size=32)
    whole, parts = (Store(tmp_path / name).folder(trial.id) for name in ("whole", "parts"))
    run_trial(trial, whole, Runtime(log_every=5))

    steps: Iterator[int] = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run_trial(trial, parts, Runtime(log_every=5), lambda: next(steps) == 13)

    class Killed(BaseException):
        """As SIGKILL: nothing is saved."""

    def die() -> bool:
        if next(steps) == 19:
            raise Killed
        return False

    with pytest.raises(Killed):
        run_trial(trial, parts, Runtime(log_every=5), die)
    assert [line["step"] for line in lines(parts)] == [5, 10, 15]
    with open(parts.metrics, "ab") as file:
        file.write(b'{"step": null}\n{"step": "1"}\n{"step": 1, "loss": "\xff"}\n[1]\n{"step": 2')
    run_trial(trial, parts, Runtime(log_every=5))
    assert deterministic(parts) == deterministic(whole)


def test_tensorboard_gets_the_same(tiny_trial: MakeTrial, store: Store) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    trial = tiny_trial(epochs=1, batch_size=32)
    folder = store.folder(trial.id)
    run_trial(trial, folder, Runtime(log_every=6, tensorboard=True))
    events = accumulator.EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines(folder)
    ]
