"""Which files of this project a trial's mixers and task are made of: stored with its result. Free of torch.

A trial's id says what was asked for, names and options, and not the code behind the names that come with
this project: so records outlive a refactoring. A class of the user's own needs none of this: the hash over
its files is part of its name.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from experiments.code_version import ROOT
from experiments.tasks import TASKS
from mixers import MIXERS


def digests(mixers: Iterable[str], task: str) -> dict[str, str]:
    """The files that some mixers and a task are made of, with 12 hexadecimal digits over each.

    Args:
        mixers: their names.
        task: its name.
    """
    modules = {MIXERS.module(name) for name in mixers} | {TASKS.module(task)}
    files = {path for module in modules if module is not None for path in _files(module)}
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(files)
    }


def _files(module: str) -> set[Path]:
    """The file of a module and those of its package that it imports, and that these import in turn.

    What a function imports when it is called is left out: those are kernels, which change no definition.
    """
    package = module.rpartition(".")[0]
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = ROOT / f"{waiting.pop().replace('.', '/')}.py"
        if path.is_file() and path not in found:
            found.add(path)
            waiting += [name for name in _imports(path) if name.startswith(f"{package}.")]
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))
