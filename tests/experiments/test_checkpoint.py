"""What is gone on from: a checkpoint that is whole, readable, of this trial, this code and these data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from experiments import checkpoint
from experiments.runtime import Runtime
from experiments.store import Store, TrialFolder
from experiments.train import Interrupted, run_trial
from experiments.trial import Trial

MakeTrial = Callable[..., Trial]


def run(trial: Trial, store: Store, stop: Callable[[], bool] = lambda: False) -> TrialFolder:
    folder = store.folder(trial.id)
    run_trial(trial, folder, Runtime(), stop)
    return folder


def outcome(folder: TrialFolder) -> tuple[dict | None, bytes]:
    return folder.result(), folder.curve.read_bytes()


def test_a_damaged_checkpoint_starts_anew(tiny_trial: MakeTrial, store: Store) -> None:
    trial = tiny_trial()
    folder = store.folder(trial.id)
    folder.path.mkdir(parents=True)
    folder.checkpoint.write_bytes(b"not a checkpoint")
    run(trial, store)
    assert folder.result() is not None
    assert "checkpoint not readable" in folder.log.read_text()


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_a_checkpoint_that_is_cut_off_is_said_to_be(tiny_trial: MakeTrial, store: Store, kept: float) -> None:
    trial = tiny_trial()
    folder = store.folder(trial.id)
    checkpoint.write(folder, {"model": torch.zeros(1000)})
    content = folder.checkpoint.read_bytes()
    cut = content[: int(kept * len(content))]
    folder.checkpoint.write_bytes(cut)
    assert checkpoint.read(folder, trial.id, like={}) is None
    said = f"starting anew: BadZipFile: its {len(cut):,} bytes do not end like an archive: is it cut off?"
    assert said in folder.log.read_text()


@pytest.mark.parametrize(
    ("where", "error"),
    [("pathlib.Path.read_bytes", OSError(5, "Input/output error")), ("torch.load", MemoryError())],
)
def test_a_checkpoint_that_cannot_be_read_for_now_is_not_trained_over(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    """As when the server of a network file system is away, or memory is short: hours may be in it."""
    folder = store.folder(tiny_trial().id)
    checkpoint.write(folder, {"model": torch.zeros(1)})
    before = folder.checkpoint.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            run_trial(tiny_trial(), folder, Runtime(checkpoint_every=0.0), lambda: False)
    assert folder.checkpoint.read_bytes() == before


def test_a_byte_that_the_disk_has_changed_is_no_weight(tiny_trial: MakeTrial, store: Store) -> None:
    trial = tiny_trial("identity", epochs=1, batch_size=128)
    steps = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == 2)
    folder = store.folder(trial.id)
    content = bytearray(folder.checkpoint.read_bytes())
    content[len(content) // 2] ^= 0xFF
    folder.checkpoint.write_bytes(content)
    saved = torch.load(folder.checkpoint, weights_only=True)
    assert saved["progress"]["step"] == 2, "torch reads it"
    assert checkpoint.read(folder, trial.id, like=saved) is None
    assert "checkpoint not readable, starting anew: " in (said := folder.log.read_text())
    assert said.endswith(" is damaged\n")


def another_field(saved: dict) -> None:
    saved["progress"]["another"] = 1


def no_step(saved: dict) -> None:
    del saved["progress"]["step"]


def no_trial(saved: dict) -> None:
    del saved["trial_id"]


def another_trial(saved: dict) -> None:
    saved["trial_id"] = "0" * 16


def another_shape(saved: dict) -> None:
    saved["model"][list(saved["model"])[-1]] = torch.zeros(1)


def another_best(saved: dict) -> None:
    saved["best_weights"] = {"weight": torch.zeros(1)}


def another_optimizer(saved: dict) -> None:
    saved["optimizer"]["param_groups"] = saved["optimizer"]["param_groups"][:1]


def another_moment(saved: dict) -> None:
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1, 1)


def no_average(saved: dict) -> None:
    saved["average"] = None


def no_session(saved: dict) -> None:
    saved["made_with"] = []


def another_session(saved: dict) -> None:
    saved["made_with"] = ["a laptop"]


def another_window(saved: dict) -> None:
    del saved["window"]["steps"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "of another version of this code"),
        (another_field, "of another version of this code"),
        (no_step, "of another version of this code"),
        (no_trial, "of another version of this code"),
        (another_trial, "of trial 0000000000000000, starting anew"),
        (another_best, "of another version of this code"),
        (no_session, "of another version of this code"),
        (another_session, "of another version of this code"),
        (another_window, "of another version of this code"),
        (another_shape, "does not fit"),
        (another_optimizer, "does not fit"),
        (another_moment, "does not fit"),
        (no_average, "does not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_starts_anew(
    tiny_trial: MakeTrial, store: Store, damage: Callable[[dict], None] | None, said: str
) -> None:
    """With nothing half restored: the result is that of a run without a checkpoint."""
    trial = tiny_trial("identity", epochs=1, batch_size=128, ema_decay=0.5)
    whole = outcome(run(trial, Store(store.root / "whole")))
    steps = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == 2)
    folder = store.folder(trial.id)
    saved = torch.load(folder.checkpoint, weights_only=True)
    if damage is not None:
        damage(saved)
    torch.save(torch.zeros(3) if damage is None else saved, folder.checkpoint)
    assert outcome(run(trial, store)) == whole
    assert f"checkpoint {said}" in folder.log.read_text()


def other_sources(saved: dict) -> None:
    saved["sources"]["mixers/identity.py"] = "0" * 12


def other_data(saved: dict) -> None:
    saved["fingerprint"] = "0" * 16


def from_before(saved: dict) -> None:
    del saved["sources"], saved["fingerprint"], saved["made_with"]


@pytest.mark.parametrize(
    ("edit", "what"), [(other_sources, "sources"), (other_data, "fingerprint"), (from_before, None)]
)
def test_a_trial_is_made_of_one_code_and_one_data(
    tiny_trial: MakeTrial,
    store: Store,
    edit: Callable[[dict], None],
    what: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint of a file that was edited since is not gone on from, one that says nothing of it is."""
    trial = tiny_trial("identity", epochs=1, batch_size=128)
    steps = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == 2)
    folder = store.folder(trial.id)
    saved = torch.load(folder.checkpoint, weights_only=True)
    assert "mixers/identity.py" in saved["sources"]
    edit(saved)
    saved["progress"]["seconds"] = 1000.0
    torch.save(saved, folder.checkpoint)
    run(trial, store)
    assert (folder.timing()["train_seconds"] < 1000) == (what is not None)
    said = capsys.readouterr().err
    assert said == (f"note: trial {trial.id}: checkpoint of other {what}, starting anew\n" if what else "")
