"""Reading stored records: nothing is lost, nothing is invented, nothing crashes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.predictions import load_predictions
from analysis.read_records import load_curve, load_study
from analysis.record_rows import backend_name, trials_frame
from analysis.records import RecordError

Write = Callable[..., Any]
ACCURACIES = {"conv": [95.0, 96.0, 95.5], "ssm": [97.0, 97.5, 97.25]}


def test_a_complete_study_is_read_in_the_order_of_its_plan(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    study = load_study(records.study, records.trials)
    assert list(study.arms) == ["conv", "ssm"]
    assert study.arms["ssm"].values("test", "accuracy") == {0: 97.0, 1: 97.5, 2: 97.25}
    assert study.comparisons == [("ssm", "conv")]
    assert {trial.status for trial in study.trials} == {"ok"}


def test_the_frame_is_tidy_and_complete(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.folder("ssm", 1) / "result.json").unlink()
    study = load_study(records.study, records.trials)
    trials = trials_frame(study)
    assert len(trials) == 6
    assert trials.set_index(["arm", "seed"]).loc[("ssm", 1), "status"] == "missing"
    assert trials.groupby("arm")["test_accuracy"].mean()["conv"] == pytest.approx(95.5)


def test_every_planned_trial_keeps_its_place(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.folder("conv", 0) / "result.json").unlink()
    records.edit("conv", 1, status="diverged", error="loss is NaN in epoch 3", metrics={})
    records.edit("conv", 2, status="failed", error="out of memory")
    (records.folder("ssm", 0) / "result.json").write_text("{ truncated")
    records.edit("ssm", 1, schema_version=2)
    study = load_study(records.study, records.trials)
    assert [trial.status for trial in study.trials] == [
        "missing",
        "diverged",
        "failed",
        "unreadable",
        "unreadable",
        "ok",
    ]
    errors = [trial.error or "" for trial in study.trials]
    assert "loss is NaN" in errors[1]
    assert "not valid JSON" in errors[3]
    assert "schema version 2" in errors[4]
    assert not any(str(records.trials) in error for error in errors)
    assert all(math.isnan(trial.metric("test", "accuracy")) for trial in study.trials[:5])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metrics": {"test": {"accuracy": math.nan}}}, "no finite test accuracy"),
        ({"metrics": {"test": {}}}, "no finite test accuracy"),
        ({"metrics": None}, "no finite test accuracy"),
        ({"status": "done"}, "unknown status"),
        ({"trial_id": "f" * 16}, "another trial"),
    ],
)
def test_ok_needs_a_number_of_the_right_trial(
    write_records: Write, changes: dict[str, Any], reason: str
) -> None:
    records = write_records(ACCURACIES)
    records.edit("ssm", 2, **changes)
    trial = load_study(records.study, records.trials).arms["ssm"].trials[2]
    assert trial.status == "unreadable"
    assert reason in str(trial.error)


@pytest.mark.parametrize("test", ["1024", "long_rows"])
def test_why_an_extra_test_was_skipped_is_said(write_records: Write, test: str) -> None:
    records = write_records(ACCURACIES)
    plan = json.loads((records.study / "plan.json").read_text())
    for arm in plan["arms"]:
        arm["metric"] = f"accuracy_{test}"
    records.edit_plan(arms=plan["arms"])
    records.edit("ssm", 1, skipped={"rows": "another", test: "the cache is too large"})
    trial = load_study(records.study, records.trials).arms["ssm"].trials[1]
    assert (trial.status, trial.error) == ("failed", f"no test accuracy_{test}: the cache is too large")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 7}, "schema version 7; this code reads version 1"),
        ({"comparisons": [{"arm": "sssm", "baseline": "conv"}]}, "'sssm', which is not among conv, ssm"),
        ({"margin": -1}, "margin must be positive"),
        ({"families": [[0, 5]]}, "families must name"),
        ({"metric": {}}, "lacks 'name'"),
        ({"arms": 3}, "not a plan"),
        ({"baselines": [{"name": "a guess", "value": 1.0}]}, "a naive baseline lacks case"),
        ({"cases": {"entries": [{"name": "64", "about": "digits"}]}}, "a case lacks at, series"),
        (
            {"baselines": [{"name": "a guess", "value": 1.0, "case": None, "of": "conv"}]},
            "a naive baseline has unknown keys: of",
        ),
        ({"published": [{"entry": "conv", "value": 1.0}]}, "a published number lacks source"),
    ],
)
def test_a_plan_that_cannot_be_used_says_why(
    write_records: Write, changes: dict[str, Any], reason: str
) -> None:
    records = write_records(ACCURACIES)
    records.edit_plan(**changes)
    with pytest.raises(RecordError, match=reason) as caught:
        load_study(records.study, records.trials)
    assert "plan.json" in str(caught.value)


def test_missing_or_mangled_plan(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.study / "plan.json").write_text("[1, 2]")
    with pytest.raises(RecordError, match="holds a list"):
        load_study(records.study, records.trials)
    (records.study / "plan.json").unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        load_study(records.study, records.trials)


def test_comparisons_outside_every_family_form_one(write_records: Write) -> None:
    records = write_records({"conv": [1.0], "a": [1.0], "b": [1.0], "c": [1.0]}, families=[[1]])
    assert load_study(records.study, records.trials).families == [[1], [0, 2]]


def test_side_files_may_be_absent_or_broken(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    folder = records.folder("ssm", 0)
    (folder / "timing.json").write_text("nonsense")
    (folder / "curve.csv").write_text("epoch,validation_accuracy\n1,\n")
    (folder / "predictions.npz").write_bytes(b"PK nothing")
    trial = load_study(records.study, records.trials).arms["ssm"].trials[0]
    assert trial.status == "ok"
    assert trial.timing == {}
    assert load_curve(trial, "validation_accuracy") is None
    assert load_predictions(trial, ("example",)) is None


def test_stored_arrays_come_back(write_records: Write) -> None:
    records = write_records({"conv": [95.0]}, epochs=5)
    trial = load_study(records.study, records.trials).trials[0]
    epochs, none = load_curve(trial, "epoch"), load_curve(trial, "no such column")
    assert epochs is not None
    assert epochs.tolist() == [1, 2, 3, 4, 5]
    assert none is not None
    assert none.size == 0
    arrays = load_predictions(trial, ("target", "prediction"))
    assert arrays is not None
    assert 100 * np.mean(arrays["target"] == arrays["prediction"]) == 95.0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_predictions_are_what_numpy_reads(write_records: Write, save: Callable[..., None]) -> None:
    trial = load_study(*_folders(write_records({"conv": [95.0]}))).trials[0]
    stored = {"flat": np.arange(7), "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    save(trial.folder / "predictions.npz", **stored)
    arrays = load_predictions(trial, ("columns", "flat"))
    assert arrays is not None
    for name, expected in stored.items():
        np.testing.assert_array_equal(arrays[name], expected, strict=True)
    assert load_predictions(trial, ("no such array",)) is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_predictions_are_no_predictions(write_records: Write, save: Callable[..., None]) -> None:
    """Or what they were, where the damage is beside them."""
    trial = load_study(*_folders(write_records({"conv": [95.0]}))).trials[0]
    path = trial.folder / "predictions.npz"
    stored = dict(np.load(path))
    save(path, **stored)
    whole = path.read_bytes()
    for place in range(40, len(whole) - 1, max(1, len(whole) // 200)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        arrays = load_predictions(trial, ("prediction",))
        assert arrays is None or np.array_equal(arrays["prediction"], stored["prediction"])


def _folders(records: Any) -> tuple[Path, Path]:
    return records.study, records.trials


def test_backend_names() -> None:
    assert backend_name({"backend": {"scan": "cpu", "conv": "cuda"}}) == "conv: cuda, scan: cpu"
    assert backend_name({"backend": {}}) == backend_name({}) == "torch"


def test_the_fixture_writes_the_documented_schema(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    result = json.loads((records.folder("ssm", 0) / "result.json").read_text())
    assert set(result) == {
        "schema_version",
        "trial_id",
        "trial",
        "status",
        "error",
        "metrics",
        "selected_epoch",
        "costs",
        "data",
        "provenance",
    }
