"""The processes that read: what ends them, and what does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 120  # seconds
TRAINER = """
import signal, sys
from experiments.tasks.reading import Reading
from experiments.tasks.images import Images

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # as a worker that will save and end
    data = Images(data=sys.argv[1], size=16, held_out=0.1).load(0)
    data.read_with(Reading(workers=2))
    batches = data.train_batches(0, 4)
    for _ in sys.stdin:
        print(len(next(batches).inputs), flush=True)
"""


@pytest.fixture
def trainer(digit_folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that reads a batch for each line that it gets."""
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    process = subprocess.Popen(
        [sys.executable, str(path), str(digit_folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def read_batch(trainer: subprocess.Popen[str]) -> int:
    assert trainer.stdin is not None
    assert trainer.stdout is not None
    trainer.stdin.write("\n")
    trainer.stdin.flush()
    return int(trainer.stdout.readline())


def of_session(session: int) -> list[int]:
    """The processes of a session, by their ids."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_readers_end_with_a_trainer_that_is_killed(trainer: subprocess.Popen[str]) -> None:
    """Also if nothing can be said to them any more, as by the kernel when memory runs out."""
    assert read_batch(trainer) == 4
    assert len(of_session(trainer.pid)) >= 4, "trainer, fork server and two readers"
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + PATIENCE
    while of_session(trainer.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert of_session(trainer.pid) == []


def test_reading_goes_on_when_all_processes_are_told_to_end(trainer: subprocess.Popen[str]) -> None:
    """By torchrun or SLURM: the trainer must get its batch to reach the place where it saves."""
    assert read_batch(trainer) == 4
    os.killpg(trainer.pid, signal.SIGTERM)
    time.sleep(1)
    for _ in range(6):
        assert read_batch(trainer) == 4
