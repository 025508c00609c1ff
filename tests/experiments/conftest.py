"""Small trials for the tests of the study machinery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments import build
from experiments.skeletons import SKELETONS
from experiments.store import Store
from experiments.tasks import TASKS
from experiments.trial import Recipe, Trial
from mixers import MIXERS

TINY = {"epochs": 2, "batch_size": 64, "warmup_epochs": 1}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def tiny_trial() -> Callable[..., Trial]:
    """A trial of about half a second; keyword arguments change its recipe."""

    def make(mixer: str = "conv", seed: int = 0, skeleton: str = "isotropic-nano", **recipe: object) -> Trial:
        return build.resolve(
            MIXERS.parse_pattern(mixer),
            SKELETONS.parse(skeleton),
            TASKS.parse("digits(canvas=8, validation=200, test=1200)"),
            Recipe(**{**TINY, **recipe}),
            seed,
        )

    return make
