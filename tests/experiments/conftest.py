"""Small trials for the tests of the study machinery."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from experiments import build
from experiments.skeletons import SKELETONS
from experiments.store import Store
from experiments.tasks import TASKS
from experiments.tasks.base import Batch, TaskData, chosen, share
from experiments.tasks.reading import FilesRead, Reading
from experiments.trial import Recipe, Trial
from mixers import MIXERS

TINY = {"epochs": 2, "batch_size": 64, "warmup_epochs": 1}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@lru_cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, (n, 8, 8) in 0..240, and their labels."""
    found = load_digits()
    return (found.images * 15).astype(np.uint8), found.target


def digit(number: int, side: int = 32) -> Image.Image:
    """One of them as a grey photograph would be stored."""
    return Image.fromarray(digits()[0][number]).resize((side, side))


WriteDigits = Callable[..., Path]


@pytest.fixture(scope="session", name="digit")
def digit_fixture() -> Callable[..., Image.Image]:
    return digit


@pytest.fixture(scope="session")
def write_digits() -> WriteDigits:
    """Writes real digits in ImageNet's layout: `root/split/class/name.JPEG`, no digit in two splits."""

    def write(root: Path, per_class: dict[str, int], classes: int = 3, side: int = 32) -> Path:
        labels = digits()[1]
        for label in range(classes):
            numbers = iter(np.flatnonzero(labels == label))
            for split, count in per_class.items():
                folder = root / split / f"digit_{label}"
                folder.mkdir(parents=True)
                for _ in range(count):
                    number = int(next(numbers))
                    digit(number, side).convert("RGB").save(folder / f"{number}.JPEG", quality=95)
        return root

    return write


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory, write_digits: WriteDigits) -> Path:
    """72 training and 36 validation images of 3 classes."""
    return write_digits(tmp_path_factory.mktemp("digits"), {"train": 24, "val": 12})


@pytest.fixture(scope="session")
def to_timm() -> Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Gives the weights of a MambaOut model of ours with `conv` timm's names."""
    return lambda weights: {
        re.sub(r"(blocks\.\d+)\.mixer\.", r"\1.conv.", name): value for name, value in weights.items()
    }


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


@pytest.fixture
def check_reading() -> Callable[[Callable[[], TaskData]], None]:
    """Checks that processes read what none reads, and each rank its share of it."""

    def read(data: TaskData, reading: Reading) -> tuple[list[Batch], list[Batch]]:
        assert isinstance(data, FilesRead)
        data.read_with(reading)
        try:
            return list(data.train_batches(1, 4)), list(data.batches("test", 2))
        finally:
            data.close()

    def check(load: Callable[[], TaskData]) -> None:
        train, test = read(load(), Reading())
        assert train
        assert len(test) > 1
        for ranks in (1, 2):
            for rank in range(ranks):
                own_train, own_test = read(load(), Reading(1, rank, ranks))
                for one, other in zip(own_train, train, strict=True):
                    assert same(one, Batch(*(chosen(each, share(4, rank, ranks)) for each in other)))
                for one, other in zip(own_test, test[rank::ranks], strict=True):
                    assert same(one, other)

    return check


def same(one: Any, other: Any) -> bool:
    """Bit for bit, whatever a batch is made of."""
    mine, theirs = list(tensors(one)), list(tensors(other))
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        return
    for inner in value.values() if isinstance(value, dict) else value:
        yield from tensors(inner)
