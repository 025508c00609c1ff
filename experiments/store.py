"""Where trials live: one folder each, named by the trial's id. Free of torch.

    runs/trials/<id>/trial.json        the resolved trial, written when it starts
                     progress.json     how far it is, and where; gone when nobody works on it
                     metrics.jsonl     loss, learning rate and speed every so many steps
                     checkpoint.pt     to continue from; removed when the trial is finished
                     curve.csv         one row per epoch
                     predictions.npz   what it answered on every test example
                     weights.safetensors   the weights that were tested, unless told not to keep them
                     timing.json       what differs from run to run: seconds, speed, memory, host
                     result.json       what the trial gave; written last, so it means "done"
    runs/studies/<name>/               plan, tables, figures and report of a study
                     lock              held by the one command that stores its plan there, or reports it

Every file but the log and the metrics, which grow line by line, is written beside its place and renamed
into it, so that no reader ever sees half of one.
Who holds the lock of a trial's folder may write there. The lock is the kernel's (`flock`): it goes
when its holder does, however that ends. Where a network file system keeps locks to each machine, the age of
`progress.json` tells whether another machine is at it.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from experiments.trial import SCHEMA_VERSION, Trial, canonical_json
from mixers.registry import InputError

PROGRESS_FIELDS = {"epoch", "epochs", "fraction", "seconds", "host", "pid"}
RESULT_FIELDS = ("schema_version", "trial_id", "trial", "status", "metrics", "costs", "data", "provenance")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # the last two differ on macOS
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
HEARTBEAT = 60.0  # seconds after which a machine that reports no progress is taken for gone


class DiskFull(OSError):
    """A file could not be written for want of space (or quota); what was there before is there still."""


@contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Turn the system's ways of saying so into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(f"no space left to write {path}: {error.strerror}") from error
        raise


@contextmanager
def naming_unusable_folders(path: Path, use: str = "no trial can be run") -> Iterator[None]:
    """Turn what else the system says where a folder cannot be locked or written to into an `InputError`."""
    try:
        with naming_full_disks(path):
            yield
    except DiskFull:
        raise
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"{use} in {path}: {error.strerror or error}{file}; move it away or make it writable, or give "
            "another --runs"
        ) from None


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `path` so that it holds all of `content` or is untouched.

    Args:
        path: of the file; its folder is made.
        content: all of it.
        durable: whether it must outlast a power cut; what can be made again need not wait for the disk.

    Raises:
        DiskFull: there is no space for it; the path is untouched.
    """
    with naming_full_disks(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # for whom the umask allows, unlike mkstemp's
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # what went wrong first is what to say
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=sort_keys, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def _narrowest(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind != "i" or not values.size:
        return values
    low, high = values.min(), values.max()
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial."""

    path: Path
    trial_id: str

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def curve(self) -> Path:
        return self.path / "curve.csv"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.npz"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def begin(self, trial: Trial) -> None:
        """Write `trial.json`."""
        write_json(self.path / "trial.json", trial.to_dict())
        self._remove_abandoned(newest=self.path / "trial.json")

    def answer(self, answers: Mapping[str, NDArray[Any]]) -> None:
        """Write `predictions.npz`, integers as the narrowest that hold them.

        A report reads those of all trials, and most of what it would read of int64 is zeros.
        """
        buffer = io.BytesIO()
        narrow = {name: _narrowest(values) for name, values in answers.items()}
        np.savez_compressed(buffer, allow_pickle=False, **narrow)
        write_bytes(self.predictions, buffer.getvalue())

    def clear(self) -> None:
        """Remove what goes with a result: a run that starts anew may not come to all of that again."""
        for file in (self.curve, self.predictions, self.weights):
            file.unlink(missing_ok=True)

    def finish(self, result: dict[str, Any], timing: dict[str, Any]) -> None:
        """Write the result, which is the last thing a trial does."""
        write_json(self.path / "timing.json", timing)
        write_json(self.path / "result.json", result)
        self.checkpoint.unlink(missing_ok=True)
        self._remove_abandoned(newest=self.path / "result.json")
        self.rest()

    def _remove_abandoned(self, newest: Path) -> None:
        """Remove what was half written when a process was killed: a checkpoint may be as large as the model.

        Args:
            newest: a file that has just been written, which tells the time of the file system.
        """
        long_ago = newest.stat().st_mtime - HEARTBEAT
        for temporary in self.path.glob(f".*.{'[0-9a-f]' * 8}"):
            with suppress(OSError):  # somebody else may remove it, too
                if temporary.stat().st_mtime < long_ago:
                    temporary.unlink()

    def fail(self, result: dict[str, Any]) -> None:
        """Write a result that only says what went wrong; the checkpoint stays for the next attempt."""
        write_json(self.path / "result.json", result)
        self.rest()

    def report_progress(self, *, epoch: int, epochs: int, fraction: float, seconds: float) -> None:
        """Replace `progress.json`; not synced to disk, it is only for watching."""
        progress = {"epoch": epoch, "epochs": epochs, "fraction": fraction, "seconds": seconds}
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        write_bytes(self.path / "progress.json", canonical_json({**progress, **who}).encode(), durable=False)

    def rest(self) -> None:
        """Say that nobody works on the trial any more; its checkpoint waits."""
        (self.path / "progress.json").unlink(missing_ok=True)

    def note(self, text: str) -> None:
        """Append to the trial's log."""
        with naming_full_disks(self.log), open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def append_metrics(self, line: str) -> None:
        """Append to the live metrics; not synced to disk."""
        with naming_full_disks(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def progress(self) -> dict[str, Any] | None:
        """The last reported progress, or None if there is none that can be read."""
        stored = self._read("progress.json")
        return stored if stored.keys() >= PROGRESS_FIELDS else None

    def timing(self) -> dict[str, Any]:
        """Seconds, speed and memory of a finished trial; empty if they cannot be read."""
        return self._read("timing.json")

    def _read(self, name: str) -> dict[str, Any]:
        """A file that a trial can do without; empty if it cannot be read."""
        try:
            stored = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def result(self) -> dict[str, Any] | None:
        """The stored result, that of a failed trial included; None if there is none.

        A result that cannot be used (truncated, another schema version, another trial's) is not a
        result: `unusable_result` says why, `set_aside` moves it away.
        """
        return self._read_result()[0]

    def finished_result(self) -> dict[str, Any] | None:
        """The result that the trial came to; None if it failed, since it is then tried again."""
        result = self.result()
        return None if result is None or result["status"] == "failed" else result

    def unusable_result(self) -> str | None:
        """Why the stored result cannot be used; None if it can, or if there is none."""
        return self._read_result()[1]

    def _read_result(self) -> tuple[dict[str, Any] | None, str | None]:
        """The stored result if it can be used, and else why not; neither if there is none."""
        try:
            stored = json.loads((self.path / "result.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None, None
        except (OSError, ValueError) as error:
            return None, f"not readable as JSON ({error})"
        fault = self._fault(stored)
        return (stored, None) if fault is None else (None, fault)

    def _fault(self, stored: Any) -> str | None:
        if not isinstance(stored, dict):
            return "not a JSON object"
        if stored.get("schema_version") != SCHEMA_VERSION:
            return f"schema version {stored.get('schema_version')}, this code writes {SCHEMA_VERSION}"
        missing = [field for field in RESULT_FIELDS if field not in stored]
        if missing:
            return f"without {', '.join(missing)}"
        if stored["trial_id"] != self.trial_id:
            return f"the result of trial {stored['trial_id']}"
        return None

    def set_aside(self, why: str = "unusable", seen: Mapping[str, Any] | None = None) -> Path | None:
        """Rename `result.json` out of the way, keeping it under a name that says why.

        Args:
            why: what was found of it.
            seen: of which result, as `result` gave it: by now another command may have stored a new one,
                which stays.

        Returns:
            The new name; None if another command has been faster, or is at work on the trial.
        """
        source = self.path / "result.json"
        with self.lock() as held:
            if not held or self.result() != seen or not source.exists():
                return None
            for number in range(1, 1_000):
                target = self.path / f"result.{why}-{number}.json"
                if not target.exists():
                    source.rename(target)
                    return target
        raise OSError(f"{self.path}: a thousand results that were set aside lie here already")

    def check(self) -> None:
        """Fail before anything is trained if nobody can work on this trial.

        Raises:
            InputError: with the reason.
        """
        if self.path.exists():
            with self.lock():
                pass

    def is_free(self) -> bool:
        """Whether nobody works on this trial at the moment; whoever may read the folder may ask.

        Raises:
            InputError: the lock cannot be opened.
        """
        lock = self.path / "lock"
        with naming_unusable_folders(self.path):
            if not lock.exists():
                return True
            with open(lock) as file:
                return _is_taken(file, fcntl.LOCK_SH)

    def runs_elsewhere(self) -> bool:
        """Whether another machine reported progress lately, whose lock may not reach this one.

        By the clock of the file system, whose times both are: those of the machines may differ. (Who may not
        write, and so will not work on it either, asks by that of this machine.) A time well ahead of it, left
        from before a clock was set back, is not lately either.
        """
        progress = self.progress()
        if progress is None or progress["host"] == socket.gethostname():
            return False
        lock = self.path / "lock"
        try:
            reported = (self.path / "progress.json").stat().st_mtime
        except OSError:
            return False
        try:
            lock.touch()
            now = lock.stat().st_mtime
        except OSError:
            now = time.time()
        return abs(now - reported) < HEARTBEAT

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Try to hold this folder; yields whether it worked, without waiting.

        Raises:
            DiskFull: there is no space for the folder or its lock.
            InputError: the folder or its lock cannot be made, opened or locked, and so nobody can work on
                the trial.
        """
        with ExitStack() as opened:
            with naming_unusable_folders(self.path):
                file = opened.enter_context(_lock_file(self.path))
                held = _is_taken(file)
            yield held


def _lock_file(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return open(folder / "lock", "a")


def _is_taken(file: TextIO, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if nobody else has it; whether that worked."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what SMB says of one that another machine holds
        return False
    return True


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Wait for the lock of a study's folder, and hold it: what one command stores there, it also reports.

    Raises:
        DiskFull: there is no space for the folder or its lock.
        InputError: the folder or its lock cannot be made, opened or locked.
    """
    with ExitStack() as opened:
        with naming_unusable_folders(folder, "no study can be stored"):
            file = opened.enter_context(_lock_file(folder))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Store:
    """The runs folder.

    Args:
        root: where it is.
        read_only: whether it is left as it is, and may be one that cannot be written to.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root = root
        if read_only:
            return
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            self.studies.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.trials) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NOT_ALLOWED and self.studies.is_dir():
                hint = "; status can do without, for anything else copy it or give another --runs"
            else:
                hint = "; its file system has no locks (flock)" if error.errno in NO_LOCKS else ""
            raise InputError(
                f"cannot write to the runs folder {root}: {error.strerror or error}{hint}"
            ) from None

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    @property
    def studies(self) -> Path:
        return self.root / "studies"

    def folder(self, trial_id: str) -> TrialFolder:
        """The folder of one trial, which may not exist yet."""
        return TrialFolder(self.trials / trial_id, trial_id)
