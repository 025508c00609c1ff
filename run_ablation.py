"""Does this task need the SSM? The command line: parse, call, print. `--help` names the commands.

Exit codes: 0 done, 1 some trials failed, 2 bad input; 130 interrupted and 143 told to end (SIGTERM, as in
pre-emption), both after saving: the same command continues, except for a bench, which begins anew.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from experiments import plain_signs


class Terminated(KeyboardInterrupt):
    """SIGTERM, which saves and ends like Ctrl-C but leaves its own exit code."""


def end(signum: int, frame: FrameType | None) -> None:
    """Handle the first Ctrl-C or SIGTERM; more would only cut short what ends the command in order."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # to the end
    plain_signs.allow()
    signal.signal(signal.SIGTERM, end)
    # not where it is ignored, as behind nohup
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    try:
        return _run(given)
    except KeyboardInterrupt as stopped:
        by_signal = isinstance(stopped, Terminated)
        what = "told to end (SIGTERM)" if by_signal else "interrupted"
        then = "finished trials are kept, the same command continues"
        if given[:1] == ["bench"]:
            then = "what was measured is kept until the same command measures all of it anew"
        print(f"\n{what}; {then}", file=sys.stderr)
        return 143 if by_signal else 130


def _run(arguments: list[str]) -> int:
    if sys.platform == "win32":  # its locks and signals are others
        print("run_ablation.py: on Windows this runs in WSL, not in Windows itself", file=sys.stderr)
        return 2
    from experiments import commands  # half a second, in which Ctrl-C is heard already
    from experiments.ranks import RanksLost
    from experiments.store import NO_SPACE, DiskFull
    from mixers.registry import InputError

    try:
        try:
            return commands.run(arguments)
        finally:
            sys.stdout.flush()  # a full disk or a closed pipe shows here and not when Python ends
    except InputError as error:
        print(f"run_ablation.py: {error}", file=sys.stderr)
        return 2
    except DiskFull as error:
        print(
            f"run_ablation.py: {error}; make room, then the same command continues from what was kept",
            file=sys.stderr,
        )
        return 1
    except RanksLost as error:
        print(
            f"run_ablation.py: the processes that torchrun started lost one another ({error}); that is no "
            "result of the trial, the same command continues from its last checkpoint",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        _leave_output()
        sys.stderr.close()  # which may be the same pipe
        return 0
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        print("run_ablation.py: no space is left for the output; make room and run it again", file=sys.stderr)
        _leave_output()
        return 1


def _leave_output() -> None:
    """What is still to be printed goes nowhere: Python would fail on it once more while it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
