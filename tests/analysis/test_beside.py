"""Work in a fork gives what it gives here, errors included."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from analysis.beside import beside

forks = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def fails() -> None:
    raise ValueError("of the work")


@pytest.mark.parametrize("worth_it", [False, True])
def test_results_and_errors_come_back(worth_it: bool) -> None:
    given = {"answer": 42}
    assert beside(lambda: {**given, "more": 1}, worth_it)() == {"answer": 42, "more": 1}
    with pytest.raises(ValueError, match="of the work"):
        beside(fails, worth_it)()


@forks
def test_it_is_another_process() -> None:
    first, second = beside(os.getpid, True), beside(os.getpid, True)
    assert len({first(), second(), os.getpid()}) == 3


@forks
def test_what_a_fork_cannot_finish_is_done_here() -> None:
    parent = os.getpid()

    def work() -> int:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return 42

    assert beside(work, True)() == 42
