"""Writes the records of a synthetic study, as `experiments` would leave them; gives a figure's artists."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.drawing import paper_style


@dataclass
class Records:
    """A study folder and a trials folder; change a trial's result with `edit`, then report on it."""

    study: Path
    trials: Path
    ids: dict[tuple[str, int], str] = field(default_factory=dict)

    def folder(self, arm: str, seed: int) -> Path:
        return self.trials / self.ids[arm, seed]

    def edit(self, arm: str, seed: int, **changes: Any) -> None:
        """Overwrite top-level keys of one result.json."""
        path = self.folder(arm, seed) / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def edit_plan(self, **changes: Any) -> None:
        path = self.study / "plan.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Call what draws a figure; what comes back is that figure, with its artists, and not its files."""

    def drawn(draw: Callable[..., Any], *arguments: Any) -> Figure:
        module = sys.modules[draw.__module__]
        monkeypatch.setattr(module, "finished_drawing", lambda name, title, caption, figure, rows: figure)
        with paper_style():
            figure: Figure = draw(*arguments)
        return figure

    return drawn


@pytest.fixture
def write_records(tmp_path: Path, write_records_in: Callable[..., Records]) -> Callable[..., Records]:
    """`write_records_in` with the test's own folder."""
    return partial(write_records_in, tmp_path)


@pytest.fixture(scope="session")
def write_records_in() -> Callable[..., Records]:
    """Write a study whose arms have the given test accuracies by seed; the first is the baseline of all."""

    def write(
        root: Path,
        accuracies: dict[str, list[float]],
        *,
        epochs: int = 20,
        rising: tuple[str, ...] = (),
        **plan: Any,
    ) -> Records:
        records = Records(root / "runs" / "studies" / "demo", root / "runs" / "trials")
        arms = []
        for index, (arm, values) in enumerate(accuracies.items()):
            trials = []
            for seed, accuracy in enumerate(values):
                trial_id = hashlib.sha256(f"{arm}/{seed}".encode()).hexdigest()[:16]
                records.ids[arm, seed] = trial_id
                trials.append({"seed": seed, "trial_id": trial_id})
                _write_trial(
                    records.trials / trial_id, trial_id, arm, index, seed, accuracy, epochs, arm in rising
                )
            switches = {} if index == 0 else {"mixer": arm}
            matching = (
                {"target": 120_000, "achieved": 120_096, "mismatch": 0.0008, "what": "params"}
                if index
                else None
            )
            arms.append(
                {
                    "name": arm,
                    "mixer": f"{arm}(width=1)",
                    "switches": switches,
                    "matching": matching,
                    "budget": "20 epochs of 1,077 images, batch 64",
                    "trials": trials,
                }
            )
        baseline, *others = accuracies
        content = {
            "schema_version": 1,
            "study": {
                "name": "demo_study",
                "question": "Does 100% of it need the SSM?",
                "varied": "the mixer",
                "fixed": "the rest",
                "cost": "seconds",
                "answer": "",
            },
            "metric": {
                "name": "accuracy",
                "unit": "%",
                "difference_unit": "points",
                "higher_is_better": True,
            },
            "margin": 1.0,
            "alpha": 0.05,
            "match": "params",
            "task": "digits",
            "skeleton": "mambaout-nano",
            "command": "run_ablation.py --study demo_study",
            "comparisons": [{"arm": arm, "baseline": baseline} for arm in others],
            "arms": arms,
        }
        records.study.mkdir(parents=True, exist_ok=True)
        (records.study / "plan.json").write_text(json.dumps(content | plan))
        return records

    return write


def _write_trial(
    folder: Path, trial_id: str, arm: str, index: int, seed: int, accuracy: float, epochs: int, rising: bool
) -> None:
    examples = 400
    rng = np.random.default_rng([seed, index])
    right = round(accuracy / 100 * examples)
    target = np.random.default_rng(seed).integers(0, 10, examples)
    wrong = rng.permutation(examples)[: examples - right]
    prediction = target.copy()
    prediction[wrong] = (prediction[wrong] + 1) % 10
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "predictions.npz",
        example=np.random.default_rng([seed, 99]).permutation(1797)[:examples],
        target=target,
        prediction=prediction,
    )
    (folder / "result.json").write_text(
        json.dumps(
            {
                "schema_version": 1,
                "trial_id": trial_id,
                "status": "ok",
                "error": None,
                "trial": {
                    "mixer": {"name": arm, "options": {}},
                    "skeleton": {},
                    "task": {},
                    "train": {"epochs": epochs, "cooldown_epochs": 0},
                    "seed": seed,
                },
                "metrics": {
                    "test": {"accuracy": accuracy, "loss": 0.1},
                    "validation": {"accuracy": accuracy + 0.3, "loss": 0.1},
                    "train": {"accuracy": 99.0, "loss": 0.02},
                },
                "selected_epoch": epochs,
                "costs": {
                    "params": 120_000 + 96 * index,
                    "params_mixer": 20_000,
                    "params_rest": 100_000 + 96 * index,
                    "macs": 2_500_000 * (index + 1),
                    "macs_mixer": 400_000,
                    "macs_convention": "forward, one example, scan included",
                    "state_bytes": 4096 if index else None,
                    "state_note": "float32",
                },
                "data": {"fingerprint": f"data{seed}", "train": 1077, "validation": 360, "test": examples},
                "provenance": {
                    "backend": {"scan": "cpu"} if index else {},
                    "device": "cpu",
                    "hardware": "a laptop",
                    "threads": 2,
                    "versions": {"torch": "2.13.0", "numpy": "2.4.0"},
                    "code": "abc1234",
                },
            }
        )
    )
    (folder / "timing.json").write_text(
        json.dumps(
            {
                "started": "2026-11-23T10:00:00",
                "finished": "2026-11-23T10:01:00",
                "train_seconds": 60.0 + seed,
                "examples_per_second": 900.0 / (index + 1) + seed,
                "peak_memory_bytes": 300_000_000 + seed,
                "host": "laptop",
            }
        )
    )
    epoch = np.arange(1, epochs + 1)
    shape = epoch / epochs if rising else np.minimum(1, 1 - np.exp(-epoch / epochs * 8))
    validation = 20 + (accuracy - 20) * shape + rng.normal(0, 0.15, epochs)
    lines = ["epoch,learning_rate,train_loss,validation_loss,validation_accuracy"]
    lines += [f"{e},0.001,{1 / e:.4f},{1.2 / e:.4f},{v:.4f}" for e, v in zip(epoch, validation, strict=True)]
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
