"""Trials as flat rows, for CSV files and frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.records import Json, Study, Trial

if TYPE_CHECKING:
    import pandas as pd


def trials_frame(study: Study) -> pd.DataFrame:
    """One row per planned trial: arm, seed, status, each metric as <split>_<name>, each cost, each timing."""
    import pandas as pd

    return pd.DataFrame([trial_row(trial) | timing_row(trial) for trial in study.trials])


def trial_row(trial: Trial) -> Json:
    """The deterministic part of a trial as one flat row: same results, same row, on any machine."""
    metrics = trial.result.get("metrics") or {}
    row: Json = {"arm": trial.arm, "seed": trial.seed, "trial_id": trial.trial_id, "status": trial.status}
    row["error"] = trial.error
    row["selected_epoch"] = trial.result.get("selected_epoch")
    if trial.own_metric is not None:
        row["compared"] = trial.own_metric
    for split in ("test", "validation", "train"):
        for name, value in sorted((metrics.get(split) or {}).items()):
            row[f"{split}_{name}"] = value
    for name in ("params", "params_mixer", "params_rest", "macs", "macs_mixer", "state_bytes"):
        row[name] = trial.costs.get(name)
    row["data_fingerprint"] = (trial.result.get("data") or {}).get("fingerprint")
    return row


def timing_row(trial: Trial) -> Json:
    """What depends on the machine and the day: wall-clock, memory, hardware, backend, versions."""
    row: Json = {"arm": trial.arm, "seed": trial.seed, "trial_id": trial.trial_id}
    for name in ("started", "finished", "train_seconds", "examples_per_second", "peak_memory_bytes", "host"):
        row[name] = trial.timing.get(name)
    provenance = trial.provenance
    for name in ("device", "hardware", "threads", "code"):
        row[name] = provenance.get(name)
    row["backend"] = backend_name(provenance)
    return row


def backend_name(provenance: Json) -> str:
    """The kernels a trial ran on, ``scan: cpu``; "torch" for a mixer that has no kernel of its own."""
    backend = provenance.get("backend") or {}
    return ", ".join(f"{part}: {name}" for part, name in sorted(backend.items())) or "torch"
