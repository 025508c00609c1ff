"""One trial on two processes: the loss curve of one, and one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import launch, ranks
from experiments.divided_batches import check_share
from experiments.executors import torchrun
from experiments.ranks import Ranks, RanksLost
from experiments.runtime import Runtime
from experiments.store import Store, TrialFolder
from experiments.tasks.base import chosen
from experiments.train import run_trial
from experiments.trial import Recipe, Trial
from mixers import InputError

ROOT = Path(__file__).resolve().parent.parent.parent


def rows(path: Path) -> list[float]:
    return [float(value) for line in path.read_text().splitlines()[1:] for value in line.split(",")]


def test_two_ranks_give_the_curve_of_one(digit_folder: Path, tmp_path: Path) -> None:
    """Through the command line, with mixup, an average and accumulation; images are read in shares."""
    command = (
        "-m torch.distributed.run --standalone --nproc-per-node 2 run_ablation.py --mixer conv "
        f"--baseline conv --seeds 1 --match none --skeleton mambaout-nano --task images --loaders 1 "
        f"--task.data {digit_folder} "
        "--task.size 16 --task.held-out 0.2 --train.epochs 2 --train.warmup-epochs 0 --train.batch-size 16 "
        "--train.mixup 0.8 --train.cutmix 1.0 --train.ema-decay 0.9 --train.lr 1e-3 --micro-batch 4 "
        f"--device cpu --runs {tmp_path / 'two'}"
    )
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("1 of 1 trials to run") == 1, "one process speaks"
    (folder,) = (tmp_path / "two" / "trials").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["provenance"]["ranks"] == 2
    trial = Trial.from_dict(json.loads((folder / "trial.json").read_text()))
    alone = Store(tmp_path / "one").folder(trial.id)
    run_trial(trial, alone, Runtime(device="cpu", micro_batch=4))
    assert rows(folder / "curve.csv") == pytest.approx(rows(alone.curve), abs=1e-5)
    single = alone.result()
    assert single is not None
    assert result["metrics"]["test"] == pytest.approx(single["metrics"]["test"], abs=1e-5)
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.path.iterdir()} | {"lock"}


class Torn(Ranks):
    """Two processes that cannot reach each other."""

    def gather(self, value: Any) -> list[Any]:
        raise RuntimeError("Application timeout caused pair closure")


def test_a_trial_has_not_failed_because_the_processes_lost_each_other(
    tiny_trial: Callable[..., Trial], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(trial: Trial, folder: TrialFolder, *_: object) -> None:
        folder.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)
        raise MemoryError("here")

    monkeypatch.setattr("experiments.train.run_trial", fails)
    trial = tiny_trial("identity")

    def together(trial: Trial, folder: TrialFolder, runtime: Runtime, stop: Callable[[], bool]) -> None:
        torchrun._run_together(trial, folder, runtime, stop, Torn(0, 2))

    with pytest.raises(RanksLost, match="MemoryError: here"):
        launch.work([trial], store, Runtime(), "session", run_trial=together)
    assert store.folder(trial.id).result() is None
    assert store.folder(trial.id).progress() is None, "nobody is at work any more"


@pytest.mark.parametrize(
    ("variables", "count", "first"),
    [
        ({}, 1, True),
        ({"WORLD_SIZE": "4", "RANK": "3"}, 1, True),  # of another launcher, as MPI's and SLURM's
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "RANK": "0"}, 1, True),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "3"}, 4, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0"}, 4, True),
    ],
)
def test_who_was_launched_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], count: int, first: bool
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (ranks.count_launched(), ranks.launched(), ranks.is_first()) == (count, count > 1, first)


def test_what_torchrun_decides_is_refused() -> None:
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}
    code = (
        "from experiments import command_line, study_commands as commands; "
        "commands._check(command_line.parse(['--workers', '3'], 'run'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "torchrun runs one trial at a time on all its processes: --executor, --workers" in done.stderr


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"a batch of 6 cannot be divided among 4 processes: .* multiple of 4"
    ):
        check_share(Recipe(batch_size=6), Ranks(0, 4))
    with pytest.raises(InputError, match=r"among 2 processes, in pairs for mixup: .* multiple of 4"):
        check_share(Recipe(batch_size=6, mixup=0.5), Ranks(0, 2))
    check_share(Recipe(batch_size=8, mixup=0.5), Ranks(0, 2))


def test_examples_are_taken_from_any_form_of_a_batch() -> None:
    places = torch.tensor([0, 2])
    batch = {"images": [torch.zeros(1), torch.ones(2), torch.ones(3)], "labels": torch.arange(3)}
    taken = chosen(batch, places)
    assert [len(image) for image in taken["images"]] == [1, 3]
    assert taken["labels"].tolist() == [0, 2]
