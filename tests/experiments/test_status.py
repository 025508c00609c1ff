"""How far a study is said to be: each trial in one state, counted once, its error beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments import launch, status
from experiments.launch import Shard
from experiments.status import STATES, TrialStatus
from experiments.store import RESULT_FIELDS, Store
from experiments.trial import SCHEMA_VERSION, Trial

MakeTrial = Callable[..., Trial]


def test_every_trial_is_in_one_state(tiny_trial: MakeTrial, store: Store) -> None:
    """One that failed and is tried again is running; one whose result is damaged waits, and says why."""
    names = ("finished", "diverged", "failed", "again", "stopped", "damaged", "untouched")
    trials = dict(zip(names, (tiny_trial("identity", seed=seed) for seed in range(7)), strict=True))
    folders = {name: store.folder(trial.id) for name, trial in trials.items()}
    head: dict[str, Any] = {field: {} for field in RESULT_FIELDS} | {"schema_version": SCHEMA_VERSION}
    for name, how in (("finished", "ok"), ("diverged", "diverged")):
        folders[name].begin(trials[name])
        folders[name].finish({**head, "trial_id": trials[name].id, "status": how}, {})
    for name in ("failed", "again"):
        launch.record_failure(trials[name], folders[name], "no such luck", "first")
    for name in ("again", "stopped"):
        folders[name].begin(trials[name])
        folders[name].report_progress(epoch=1, epochs=2, fraction=0.25, seconds=3.0)
    folders["damaged"].begin(trials["damaged"])
    (folders["damaged"].path / "result.json").write_text("{")
    labels = {trial.id: f"identity {name}" for name, trial in trials.items()}
    with folders["again"].lock():
        found = status.examine(labels, dict.fromkeys(labels, "identity"), store)
    assert [each.trial_id for each in found] == list(labels)
    states = {each.label.removeprefix("identity "): each.state for each in found}
    assert states == {
        "finished": "finished", "diverged": "finished", "failed": "failed", "again": "running",
        "stopped": "waiting", "damaged": "waiting", "untouched": "waiting",
    }  # fmt: skip
    said = status.lines(found)
    assert said[:3] == [
        "7 trials: 2 finished, 1 running, 1 failed, 3 waiting",
        f"  {'identity':<28} 2 finished, 1 running, 1 failed, 3 waiting",
        "running",
    ]
    assert "identity again" in said[3]
    assert "epoch   1/2 0:09 left" in said[3]
    assert said[4:6] == ["failed", f"  identity failed ({trials['failed'].id}): no such luck"]
    assert said[6] == "with a result that cannot be used, and will run again"
    assert said[7].startswith(f"  identity damaged ({trials['damaged'].id}): result.json is not readable as")
    assert len(said) == 8


def test_arms_are_counted_apart_and_long_lists_cut() -> None:
    failed = [TrialStatus(f"conv seed {n}", "conv", f"{n:016x}", "failed", error="no") for n in range(23)]
    said = status.lines([*failed, TrialStatus("ssm seed 0", "ssm", "f" * 16, "finished")])
    assert said[1:4] == [f"  {'conv':<28} 23 failed", f"  {'ssm':<28} 1 finished", "failed"]
    assert said[4:] == [*(f"  conv seed {n} ({n:016x}): no" for n in range(20)), "  and 3 more"]
    assert "more" not in status.lines(failed[:20])[-1]


def test_only_a_finished_trial_is_not_missing_from_its_shard() -> None:
    statuses = [TrialStatus("", "conv", f"{3 * n:016x}", state) for n, state in enumerate(STATES)]
    statuses += [TrialStatus("", "conv", f"{1:016x}", "finished")]
    assert status.shard_lines(statuses, Shard(2, 3)) == ["shard 1/3: 3 of 4 trials missing"]
    assert status.shard_lines(statuses[:1], Shard(2, 3)) == ["all 3 shards are complete"]
