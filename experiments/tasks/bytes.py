"""Byte-level language modelling (as in MambaByte, arXiv 2401.13660) on the sources of Python itself.

The corpus is on every machine that runs this: the `.py` files of the standard library of the running
Python, without tests and without tables of codecs, which are nearly the same from file to file and would lie
on both sides of every split. It differs between Python versions; its hash is part of the data's fingerprint,
and numbers from different versions are not comparable.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from experiments.interface import Metric, TaskSpec
from experiments.tasks.base import (
    ACCURACY,
    Batch,
    TaskData,
    TokenClassification,
    example_ids,
    fingerprint,
    generator,
)
from experiments.trial import stream
from mixers.registry import InputError

LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "__pycache__"}
LEFT_OUT |= {"encodings", "pydoc_data"}  # tables: many files that are nearly the same, and one of help texts
HELD_OUT = 0.1  # share of documents in the validation split, and in the test split
BYTES = 256

Count = Annotated[int, Field(ge=1)]
Document = tuple[str, bytes]


class Bytes(TokenClassification):
    """Which byte comes next?

    Each seed splits the documents (files) anew, a tenth for validation and a tenth for testing. An example
    is a window of L + 1 bytes: the first L are read, and after each the next one is asked for. Training
    windows start anywhere in the training documents, new ones in every epoch; those of the other splits do
    not overlap.

    Args:
        length: L.
        train: windows per epoch.
        validation: windows for choosing.
        test: windows for reporting.
        corpus: folder whose `.py` files are read; "" for the standard library.

    Raises:
        InputError: no sources there, or too few for windows of that length.
    """

    metric = Metric("bits_per_byte", "bits", "bits", higher_is_better=False)
    other_metrics = (ACCURACY,)

    def __init__(
        self,
        *,
        length: Annotated[int, Field(ge=2)] = 1024,
        train: Count = 10_000,
        validation: Count = 200,
        test: Count = 500,
        corpus: str = "",
    ) -> None:
        self.length, self.train, self.validation, self.test = length, train, validation, test
        self.corpus = Path(corpus or sysconfig.get_paths()["stdlib"])

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("tokens", BYTES, (self.length,), BYTES, output="per-token", causal=True)

    def load(self, seed: int) -> TaskData:
        return BytesData(self, read_documents(self.corpus), seed)

    def measure(self, predictions: Tensor, targets: Tensor, mean_loss: float) -> dict[str, float]:
        return {
            "bits_per_byte": mean_loss / math.log(2),
            **super().measure(predictions, targets, mean_loss),
        }


class BytesData:
    """The documents of one seed's splits, and windows into them."""

    extra_tests: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, task: Bytes, documents: list[Document], seed: int) -> None:
        self._task, self._seed = task, seed
        self._corpus_hash = hashlib.sha256(b"".join(name.encode() + text for name, text in documents))
        order = torch.randperm(len(documents), generator=generator(stream(seed, "data", "split"))).tolist()
        held_out = max(1, round(HELD_OUT * len(documents)))
        parts = {
            "test": order[:held_out],
            "validation": order[held_out : 2 * held_out],
            "train": order[2 * held_out :],
        }
        texts = {
            split: b"".join(documents[index][1] for index in sorted(part)) for split, part in parts.items()
        }
        self._texts = {split: np.frombuffer(text, dtype=np.uint8) for split, text in texts.items()}
        self.documents = {
            split: sorted(documents[index][0] for index in part) for split, part in parts.items()
        }
        self._windows = {split: self._fixed_windows(split) for split in ("validation", "test")}

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": self._task.train, **{name: len(at) for name, at in self._windows.items()}}

    @property
    def fingerprint(self) -> str:
        first = next(self.train_batches(0, min(64, self._task.train)))
        corpus = np.frombuffer(self._corpus_hash.digest(), dtype=np.uint8)
        return fingerprint(corpus, *self._texts.values(), *self._windows.values(), first.inputs)

    def baselines(self, split: str = "test") -> dict[str, float]:
        """In bits per byte: bigrams counted in the training text; zlib on the test documents, one after the
        other, of which it remembers 32 KiB."""
        test = self._texts["test"]
        return {
            "bigram": bigram_bits_per_byte(self._texts["train"], test),
            "zlib -9": 8 * len(zlib.compress(test.tobytes(), 9)) / len(test),
        }

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        last = len(self._texts["train"]) - self._task.length
        for step in range(start, self._task.train // batch_size):
            random = generator(stream(self._seed, "data", "train", epoch, step))
            yield self._batch("train", torch.randint(last, (batch_size,), generator=random))

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        begins = self._windows[split]
        ids = example_ids(self._seed, split, len(begins)).split(batch_size)
        for begin, examples in zip(begins.split(batch_size), ids, strict=True):
            yield self._batch(split, begin)._replace(examples=examples)

    def _batch(self, split: str, begin: Tensor) -> Batch:
        """The windows that begin there: inputs and targets (B, L)."""
        at = begin[:, None] + torch.arange(self._task.length + 1)
        windows = torch.from_numpy(self._texts[split][at.numpy()]).long()  # (B, L + 1)
        return Batch(windows[:, :-1], windows[:, 1:], begin)

    def _fixed_windows(self, split: str) -> Tensor:
        """Beginnings of as many windows as were asked for, none overlapping, in order."""
        wanted = self._task.test if split == "test" else self._task.validation
        available = (len(self._texts[split]) - 1) // self._task.length
        if available < wanted:
            raise InputError(
                f"task bytes: the {split} documents hold {available} windows of {self._task.length} bytes, "
                f"fewer than the {wanted} asked for"
            )
        random = generator(stream(self._seed, "data", "windows", split))
        return torch.randperm(available, generator=random)[:wanted].sort().values * self._task.length


def read_documents(folder: Path) -> list[Document]:
    """Every source file below `folder` as (relative path, content), sorted by path.

    Raises:
        InputError: there are fewer than 10 of them, too few to split.
    """
    paths = (path for path in folder.rglob("*.py") if not LEFT_OUT & set(path.relative_to(folder).parts))
    documents = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(paths)]
    documents = [document for document in documents if document[1]]
    if len(documents) < 10:
        raise InputError(
            f"task bytes: {len(documents)} Python sources in {folder}, at least 10 are needed: this Python "
            "comes without its standard library's sources; --task.corpus names another folder"
        )
    return documents


def bigram_bits_per_byte(train: np.ndarray, test: np.ndarray) -> float:
    """Bits per byte of `test` under counts of pairs of bytes in `train`, one added to each count."""
    counts = np.ones((BYTES, BYTES))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[test[:-1], test[1:]].mean())
