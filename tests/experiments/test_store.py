"""What is stored is whole or absent, and what cannot be used is set aside, not lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.store import (
    HEARTBEAT,
    RESULT_FIELDS,
    DiskFull,
    Store,
    TrialFolder,
    holding,
    write_bytes,
    write_json,
)
from experiments.trial import SCHEMA_VERSION, Trial
from mixers.registry import InputError


def a_result(trial_id: str, **changes: object) -> dict[str, object]:
    fields = {key: {} for key in RESULT_FIELDS}
    return {**fields, "schema_version": SCHEMA_VERSION, "trial_id": trial_id, "status": "ok", **changes}


@pytest.fixture
def folder(store: Store) -> TrialFolder:
    return store.folder("0123456789abcdef")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(28, "No space left"), DiskFull), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == len(b"new"), "what waits for the disk is all of it"
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(expected):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new", durable=False)
    assert path.read_bytes() == b"new", "what can be made again does not wait for the disk"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_progress_that_fails_leaves_nothing(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskFull):
        folder.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)
    assert not list(folder.path.glob(".*"))

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "unlink", broken)
    with pytest.raises(DiskFull, match=os.strerror(number)):
        folder.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)


def test_what_a_killed_process_had_half_written_goes(tiny_trial: Callable[..., Trial], store: Store) -> None:
    """Not what another process may be writing now, nor a file of somebody else's."""
    trial = tiny_trial()
    folder = store.folder(trial.id)
    folder.path.mkdir(parents=True)
    half, now, other = (folder.path / n for n in (".checkpoint.pt.0123abcd", ".log.4567cdef", ".nfs0123abcd"))
    for file in (half, now, other):
        file.write_bytes(b"half")
    for file in (half, other):
        os.utime(file, (time.time() - 2 * HEARTBEAT,) * 2)
    folder.begin(trial)
    assert not half.exists()
    assert now.exists()
    assert other.exists()
    os.utime(now, (time.time() - 2 * HEARTBEAT,) * 2)
    folder.finish(a_result(trial.id), {})
    assert not now.exists()


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})


def test_a_result_comes_back(folder: TrialFolder) -> None:
    assert folder.result() is None
    folder.finish(a_result(folder.trial_id), {"train_seconds": 1.0})
    assert folder.result() == a_result(folder.trial_id)
    assert folder.timing() == {"train_seconds": 1.0}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([-128, 127], "int8"),
        ([-129, 0], "int16"),
        ([-100, 128], "int16"),
        ([0, 70_000], "int32"),
        ([-1, 2**40], "int64"),
    ],
)
def test_answers_take_no_more_room_than_they_need(folder: TrialFolder, values: list[int], kind: str) -> None:
    scores = np.array([0.25, np.nan])
    folder.answer({"prediction": np.array([values]), "scores": scores, "none": np.empty((0, 3), np.int64)})
    with np.load(folder.predictions) as stored:
        assert stored["prediction"].dtype == kind
        assert stored["prediction"].tolist() == [values]
        np.testing.assert_array_equal(stored["scores"], scores)
        assert stored["none"].shape == (0, 3)


@pytest.mark.parametrize("failed", [False, True])
def test_a_result_is_written_last(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:
    """Killed before it is there, a trial goes on from its checkpoint."""
    write_bytes(folder.checkpoint, b"weights")
    folder.report_progress(epoch=1, epochs=1, fraction=1.0, seconds=1.0)
    replace, written = Path.replace, list[tuple[str, bool]]()

    def watch(temporary: Path, path: Path) -> Path:
        written.append((path.name, folder.checkpoint.exists()))
        return replace(temporary, path)

    monkeypatch.setattr(Path, "replace", watch)
    if failed:
        folder.fail(a_result(folder.trial_id, status="failed"))
    else:
        folder.finish(a_result(folder.trial_id), {})
    assert written == [("timing.json", True)] * (not failed) + [("result.json", True)]
    assert folder.checkpoint.exists() == failed
    assert folder.progress() is None, "nobody is at work any more"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not readable"),
        ('{"schema_version": 1, "trial', "not readable"),
        ("[1, 2]", "not a JSON object"),
        (json.dumps(a_result("0123456789abcdef", schema_version=SCHEMA_VERSION + 1)), "schema version"),
        (json.dumps({"schema_version": SCHEMA_VERSION}), "without trial_id"),
        (json.dumps(a_result("another")), "the result of trial another"),
    ],
)
def test_an_unusable_result_is_set_aside(folder: TrialFolder, content: str, reason: str) -> None:
    write_bytes(folder.path / "result.json", content.encode())
    assert reason in (folder.unusable_result() or "")
    assert folder.result() is None
    kept = folder.set_aside()
    assert kept is not None
    assert kept.read_text() == content
    assert folder.unusable_result() is None
    write_bytes(folder.path / "result.json", b"again")
    assert folder.set_aside() != kept


def test_of_two_commands_one_sets_a_result_aside(folder: TrialFolder) -> None:
    """Both have seen it; and the new result of whoever is at work on the trial stays where it is."""
    result = folder.path / "result.json"
    write_bytes(result, b"old")
    assert folder.set_aside("outdated") is not None
    assert folder.set_aside("outdated") is None
    write_bytes(result, b"new")
    with folder.lock():
        assert folder.set_aside("outdated") is None
    assert result.read_bytes() == b"new"
    seen, new = (a_result(folder.trial_id, metrics={"test": number}) for number in (1, 2))
    write_json(result, new)
    assert folder.set_aside() is None, "it was unusable when this command looked, and is not any more"
    assert folder.set_aside("outdated", seen) is None
    assert folder.result() == new
    assert folder.set_aside("outdated", new) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_timing_that_cannot_be_read_is_none(folder: TrialFolder, content: str) -> None:
    write_bytes(folder.path / "timing.json", content.encode())
    assert folder.timing() == {}


def test_one_holder_at_a_time(folder: TrialFolder) -> None:
    assert folder.is_free()
    with folder.lock() as first, folder.lock() as second:
        assert first
        assert not second
        assert not folder.is_free()
    assert folder.is_free()


def test_an_unwritable_runs_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the runs folder"):
        Store(tmp_path / "file")


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(InputError, match=r"No locks available; its file system has no locks \(flock\)"):
        Store(tmp_path)


def test_who_may_not_write_sees_what_runs(
    store: Store, folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, read_only_disk: Callable[[], None]
) -> None:
    """Here, and by the clock of this machine elsewhere."""
    folder.path.mkdir(parents=True)
    folder.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)
    with folder.lock():
        read_only_disk()
        assert not folder.is_free()
    assert folder.is_free()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert folder.runs_elsewhere()
    reported = time.time()
    monkeypatch.setattr("time.time", lambda: reported + 2 * HEARTBEAT)
    assert not folder.runs_elsewhere()
    assert Store(store.root, read_only=True).folder(folder.trial_id) == folder
    with pytest.raises(InputError, match="Read-only file system; status can do without"):
        Store(store.root)


def test_two_who_look_do_not_take_each_other_for_who_works(folder: TrialFolder) -> None:
    with folder.lock():
        pass
    with open(folder.path / "lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert folder.is_free()


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"epoch": 1}'])
def test_progress_that_cannot_be_read_is_none(folder: TrialFolder, content: str) -> None:
    folder.path.mkdir(parents=True)
    folder.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)
    assert folder.progress() is not None
    (folder.path / "progress.json").write_text(content)
    assert folder.progress() is None
    assert not folder.runs_elsewhere()


@pytest.mark.parametrize(
    ("ahead", "elsewhere"),
    [(0.0, True), (-HEARTBEAT / 2, True), (-2 * HEARTBEAT, False), (2 * HEARTBEAT, False)],
)
def test_progress_is_as_old_as_the_file_system_says(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, ahead: float, elsewhere: bool
) -> None:
    """Whatever this machine's clock says; what was written before a clock was set back is not recent."""
    folder.path.mkdir(parents=True)
    folder.report_progress(epoch=1, epochs=2, fraction=0.5, seconds=1.0)
    path = folder.path / "progress.json"
    now = path.stat().st_mtime
    os.utime(path, (now + ahead, now + ahead))
    monkeypatch.setattr("time.time", lambda: now + 10 * HEARTBEAT)
    assert not folder.runs_elsewhere(), "it runs here"
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert folder.runs_elsewhere() == elsewhere


@pytest.mark.parametrize("in_the_way", ["trials/{}", "trials/{}/lock/folder"])
def test_a_folder_that_cannot_be_used_is_said(store: Store, folder: TrialFolder, in_the_way: str) -> None:
    """A file in place of the folder, or a folder in place of its lock."""
    folder.check()
    assert not folder.path.exists(), "looking leaves nothing behind"
    write_bytes(store.root / in_the_way.format(folder.trial_id), b"")
    assert folder.unusable_result() is None
    with pytest.raises(InputError, match=f"no trial can be run in {folder.path}: .*; move it away"):
        folder.check()


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_machine_holds(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As most file systems say it, and as SMB does."""

    def held(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", held)
    with folder.lock() as taken:
        assert not taken


def test_a_folder_that_cannot_be_locked_is_said(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's or a study's, as where the lock service of a network file system is gone; errors meanwhile
    are not taken for that."""
    with pytest.raises(OSError, match="something else"), holding(folder.path):
        raise OSError(errno.ENOLCK, "something else")
    with pytest.raises(OSError, match="something else"), folder.lock():
        raise OSError(errno.ENOLCK, "something else")

    def gone(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", gone)
    with pytest.raises(InputError, match=f"no trial can be run in {folder.path}: No locks available; "):
        folder.is_free()
    said = f"no study can be stored in {folder.path}: No locks available; "
    with pytest.raises(InputError, match=said), holding(folder.path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_study_whose_lock_cannot_be_opened_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a full disk, or in a folder that another user made."""

    def refused(path: Path, mode: str) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("builtins.open", refused)
    kind, said = (DiskFull, "no space left") if code == errno.ENOSPC else (InputError, "Permission denied")
    with pytest.raises(kind, match=said), holding(tmp_path):
        pass


def test_files_are_for_whom_the_umask_allows(tmp_path: Path) -> None:
    """A runs folder may be shared."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
