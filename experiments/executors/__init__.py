"""Who starts the workers: processes on this machine, tasks of a Ray cluster, or jobs of a SLURM queue.

They change where a trial runs, never what it gives.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from experiments.runtime import Placement, Runtime
from experiments.store import Store
from experiments.trial import Trial
from mixers.registry import InputError

PACKAGES = {"ray": "ray", "slurm": "submitit"}
"""What an executor needs beyond this project, by its name; the name is that of the extra, too."""


class Executor(Protocol):
    """What a module of this package has."""

    def check(self, runtime: Runtime, placement: Placement) -> None:
        """Raise an InputError if what is asked for is not to be had here; nothing is started."""

    def run(
        self,
        trials: Sequence[Trial],
        store: Store,
        runtime: Runtime,
        placement: Placement,
        watch: Callable[[], None],
    ) -> None:
        """Return once nothing is left to do; on Ctrl-C or SIGTERM let trials save before raising."""


def find(name: str) -> Executor:
    """The executor of that name.

    Raises:
        InputError: the package that it needs is not installed.
    """
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"--executor {name} needs {package}, which is not installed: uv sync --extra {name}")
    return cast(Executor, importlib.import_module(f"experiments.executors.{name}"))
