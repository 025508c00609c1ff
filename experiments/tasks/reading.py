"""Reading examples from files while a model trains, by processes of their own, ahead of whoever asks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from experiments.tasks.base import generator
from mixers.registry import InputError

Key = TypeVar("Key")
"""What stands for an example, and for what is to be made of it; small, as it is sent to the process."""
Read = TypeVar("Read")
"""A batch of examples as it comes back."""


@dataclass(frozen=True)
class Reading:
    """How data is read that lies in files.

    Attributes:
        workers: processes that read and augment; 0 for none beside the one that trains.
        rank: of this process among those that train one model together.
        ranks: how many those are.
        pin: whether batches come in pinned memory, from which a GPU copies while it computes.
    """

    workers: int = 0
    rank: int = 0
    ranks: int = 1
    pin: bool = False


@dataclass(frozen=True)
class Unreadable:
    """In the place of an example that could not be read: why."""

    problem: str


class FilesRead(Generic[Key, Read]):
    """What `TaskData` in files have in common: who reads them.

    A subclass yields from `train_batches` this rank's `share` of every batch, and from `batches` every
    ranks-th batch from its own on.

    Args:
        read_one: makes an example of a key; an InputError that it raises becomes an `Unreadable`.
        collate: makes a batch of examples and `Unreadable`s. Both are sent to the processes that read.

    Attributes:
        reading: how it is done.
        unreadable: files that were passed over so far, and why.
    """

    def __init__(self, read_one: Callable[[Key], Any], collate: Callable[[list[Any]], Read]) -> None:
        self._read_one, self._collate = read_one, collate
        self.reading = Reading()
        self.unreadable: dict[str, str] = {}

    def read_with(self, reading: Reading) -> None:
        """Read so from now on."""
        self.close()
        self.reading = reading

    def read(self, batches: Iterable[Sequence[Key]]) -> Iterator[Read]:
        """What the keys of each batch stand for, in order; one reading at a time."""
        self._plan.batches = map(list, batches)
        yield from self._loader

    def close(self) -> None:
        """End the processes that read, which do so by no signal; whoever reads again starts new ones.

        Torch leaves that to the iterator's `__del__`; at the end of Python it comes after the wait for them.
        """
        loader = self.__dict__.pop("_loader", None)
        if loader is not None and isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
            loader._iterator._shutdown_workers()

    @cached_property
    def _plan(self) -> _Plan:
        return _Plan()

    @cached_property
    def _loader(self) -> DataLoader[Any]:
        """One set of processes for all splits, kept over the epochs."""
        workers = self.reading.workers
        return DataLoader(
            _Dataset(self._read_one),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=self._collate,
            pin_memory=self.reading.pin,
            multiprocessing_context=_fork_server(self._read_one.__module__) if workers else None,
            worker_init_fn=_live_and_end_with_the_trainer,
            persistent_workers=workers > 0,
            generator=generator(0),  # unused, but the global one is left alone
        )


class _Dataset(Dataset[Any]):
    """What the reading processes hold."""

    def __init__(self, read_one: Callable[[Any], Any]) -> None:
        self._read_one = read_one

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._read_one(key)
        except InputError as error:
            return Unreadable(str(error))


class _Plan:
    """The batches that are to be read next."""

    batches: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)


def _fork_server(module: str) -> BaseContext:
    """A fresh process imports the module that reads, once; the readers are its forks.

    They are not forks of this one: numba's threads do not survive that. SIGTERM, which torchrun and SLURM
    send to all processes, does not reach the server: a trainer without readers could not go on to save.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    resource_tracker.ensure_running()  # which unblocks SIGTERM when it starts, so that it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _live_and_end_with_the_trainer(worker: int) -> None:
    """Ctrl-C and pre-emption reach every process; a reader ends when the trainer has saved, or died.

    Its parent is the fork server, which does not end as long as there are readers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        connection.wait([trainer.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def whole(read: Read | Unreadable) -> Read:
    """What was read.

    Raises:
        InputError: it could not be.
    """
    if isinstance(read, Unreadable):
        raise InputError(read.problem)
    return read
