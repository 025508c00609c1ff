"""Trials as flat rows: every number of a record under one name, in one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from analysis.read_records import load_study
from analysis.record_rows import timing_row, trial_row, trials_frame

Write = Callable[..., Any]


def test_a_row_has_every_number_of_its_trial(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [96.0]})
    metrics = {
        "train": {"loss": 0.02, "accuracy": 99.0},
        "validation": {"loss": 0.2, "accuracy": 96.3},
        "test": {"loss": 0.1, "accuracy": 96.0},
    }
    records.edit("ssm", 0, metrics=metrics, selected_epoch=7)
    study = load_study(records.study, records.trials)
    trial = study.arms["ssm"].trials[0]
    row = {
        "arm": "ssm",
        "seed": 0,
        "trial_id": records.ids["ssm", 0],
        "status": "ok",
        "error": None,
        "selected_epoch": 7,
        "test_accuracy": 96.0,
        "test_loss": 0.1,
        "validation_accuracy": 96.3,
        "validation_loss": 0.2,
        "train_accuracy": 99.0,
        "train_loss": 0.02,
        "params": 120_096,
        "params_mixer": 20_000,
        "params_rest": 100_096,
        "macs": 5_000_000,
        "macs_mixer": 400_000,
        "state_bytes": 4096,
        "data_fingerprint": "data0",
    }
    assert list(trial_row(trial).items()) == list(row.items()), "the order is that of the file"
    timing = {
        "arm": "ssm",
        "seed": 0,
        "trial_id": records.ids["ssm", 0],
        "started": "2026-11-23T10:00:00",
        "finished": "2026-11-23T10:01:00",
        "train_seconds": 60.0,
        "examples_per_second": 450.0,
        "peak_memory_bytes": 300_000_000,
        "host": "laptop",
        "device": "cpu",
        "hardware": "a laptop",
        "threads": 2,
        "code": "abc1234",
        "backend": "scan: cpu",
    }
    assert list(timing_row(trial).items()) == list(timing.items())
    frame = trials_frame(study)
    assert list(frame["arm"]) == ["conv", "ssm"]
    assert frame.iloc[1].to_dict() == row | timing


def test_a_row_says_why_there_is_no_number(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [96.0]})
    records.edit("ssm", 0, status="diverged", error="loss is NaN", metrics={})
    row = trial_row(load_study(records.study, records.trials).arms["ssm"].trials[0])
    assert (row["status"], row["error"]) == ("diverged", "loss is NaN")
    assert not {"test_accuracy", "validation_accuracy"} & row.keys()
