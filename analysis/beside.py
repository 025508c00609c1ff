"""Two parts of a large report at once, on the second core that every machine has."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Result = TypeVar("Result")


def beside(work: Callable[[], Result], worth_it: bool) -> Callable[[], Result]:
    """Start on something in a fork of this process, which needs no copy of what it works on.

    Where there is no safe fork (anywhere but on Linux), and should the fork die, it is done here instead,
    when it is asked for.

    Args:
        work: computes something that can be pickled.
        worth_it: whether it takes longer than starting a fork.

    Returns:
        What waits for the result, or raises what `work` raised.
    """
    if not worth_it or sys.platform != "linux":
        return work
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work), daemon=True)
    process.start()
    sender.close()

    def wait() -> Result:
        try:
            result, error = receiver.recv()
        except EOFError:
            return work()
        finally:
            process.join()
            receiver.close()
        if error is not None:
            raise error
        return result

    return wait


def _send(sender: Connection, work: Callable[[], Result]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent, too, whose end ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        sender.send((work(), None))
    except Exception as error:
        sender.send((None, error))
