"""Which files of this project a trial's mixers and task are made of: stored with its result. Free of torch.

A trial's id says what was asked for, names and options, and not the code behind the names that come with
this project: so records outlive a refactoring. Of a class of the user's own the hash over its files is part
of the name; what it takes from this project, a base class and the like, is here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from experiments.code_version import ROOT
from experiments.tasks import TASKS
from mixers import MIXERS
from mixers.own_files import imported_names

PACKAGES = ("mixers", "experiments.tasks")
"""That hold definitions of mixers and tasks; the rest of the project is how they are compared."""


def digests(mixers: Iterable[str], task: str) -> dict[str, str]:
    """The files that some mixers and a task are made of, with 12 hexadecimal digits over each.

    Args:
        mixers: their names.
        task: its name.
    """
    modules = TASKS.modules(task).union(*(MIXERS.modules(name) for name in mixers))
    files = {path for module in modules for path in _files(module)}
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(files)
    }


def _files(module: str) -> set[Path]:
    """The file of a module and those of its package that it imports, and that these import in turn.

    Kernels, which change no definition, are not among them: `mixers.backends` imports those by name.
    """
    package = next((each for each in PACKAGES if module.startswith(f"{each}.")), None)
    if package is None:
        return set()
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = ROOT / f"{waiting.pop().replace('.', '/')}.py"
        if path.is_file() and path not in found:
            found.add(path)
            names = imported_names(path.read_bytes(), package)
            waiting += [name for name in names if name.startswith(f"{package}.")]
    return found
