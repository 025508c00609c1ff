"""Does this task need the SSM? The command line: parse, call, print.

    run_ablation.py                        the default study
    run_ablation.py --mixer ssm            one arm and the baseline it is judged against
    run_ablation.py --study NAME|FILE.toml a study that is checked in, or your own
    run_ablation.py plan ...               what would run, without running it
    run_ablation.py status ...             how far it is, while it runs here or elsewhere
    run_ablation.py report ...             tables, figures and report again, without running anything
    run_ablation.py report --paper         the MambaOut paper's figures and tables, ours beside theirs
    run_ablation.py long                   which stages of any backbone see long sequences, at any resolution
    run_ablation.py evaluate               accuracy of trained weights on a data set
    run_ablation.py look                   what a token can see, mixer by mixer, before and after training
    run_ablation.py bench                  latency and memory of mixers against length and width
    run_ablation.py demo                   a page to play with trained models
    run_ablation.py list [NAME]            mixers, skeletons, tasks, studies; or one of them in full
    run_ablation.py doctor                 which kernels run on this machine

Exit codes: 0 done, 1 some trials failed, 2 bad input; 130 interrupted and 143 told to end (SIGTERM, as in
pre-emption), both after saving: the same command continues.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, which saves and ends like Ctrl-C but leaves its own exit code."""


def terminate(signum: int, frame: FrameType | None) -> None:
    """Handle SIGTERM."""
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, terminate)
    try:
        return _run(given)
    except KeyboardInterrupt as stopped:
        by_signal = isinstance(stopped, Terminated)
        what = "told to end (SIGTERM)" if by_signal else "interrupted"
        print(f"\n{what}; finished trials are kept, the same command continues", file=sys.stderr)
        return 143 if by_signal else 130


def _run(arguments: list[str]) -> int:
    from experiments import commands  # half a second, in which Ctrl-C is heard already
    from experiments.ranks import RanksLost
    from experiments.store import DiskFull
    from mixers.registry import InputError

    try:
        return commands.run(arguments)
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
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
