"""Files of the user's: which a class of theirs is made of, the hash over them, and their import."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PROJECT = ("mixers", "experiments", "analysis", "run_ablation")
"""Not the user's, though it may lie beside their file."""

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
INSTALLED = {"site-packages", "dist-packages"}
"""Names of folders whose files have a version of their own, as the standard library's, and nobody's edits."""

_imported: dict[str, str] = {}
"""Hash of each module's files when it was last imported."""


def find(module: str) -> Path | None:
    """The file of a module on the Python path or in the working directory; None if there is none."""
    if str(Path.cwd()) not in sys.path:  # a script's own folder is on it, the working directory is not
        sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()  # the file may be seconds old
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None or not found.origin or not Path(found.origin).is_file():
        return None
    return Path(found.origin)


def source_hash(module: str, path: Path) -> str:
    """12 hexadecimal digits over the file of a module and the user's files that it imports.

    Of a file that imports none of them it is the SHA-256 of its bytes.
    """
    contents = [each.read_bytes() for _, each in sorted(_made_of(module, path).items())]
    if len(contents) > 1:
        contents = [hashlib.sha256(content).digest() for content in contents]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def project_names(module: str, path: Path) -> set[str]:
    """Full names of what a module and the user's files that it imports take from this project."""
    names = (name for each, file in _made_of(module, path).items() for name in _imports(each, file))
    return {name for name in names if name.partition(".")[0] in PROJECT}


def import_as_it_is(module: str, path: Path) -> ModuleType:
    """Import a module, with what it is made of again if a file has changed, as it does in a notebook."""
    source = source_hash(module, path)
    if _imported.get(module, source) != source:
        for name in _made_of(module, path):
            sys.modules.pop(name, None)
    found = importlib.import_module(module)
    _imported[module] = source
    return found


def _made_of(module: str, path: Path) -> dict[str, Path]:
    """A module and those that it imports, wherever in its text, and that lie beside it; and so on."""
    if STANDARD_LIBRARY in path.parents or INSTALLED.intersection(path.parts):
        return {module: path}
    depth = module.count(".") + (path.name == "__init__.py")
    folder = path.parents[depth]  # the one on the Python path
    found: dict[str, Path] = {}
    waiting = [(module, path)]
    while waiting:
        name, file = waiting.pop()
        if name not in found:
            found[name] = file
            for wanted in _imports(name, file):
                parts = wanted.split(".")
                if _is_taken_from(folder, parts[0]):  # a.b.c is a/__init__.py, a/b/__init__.py and a/b/c.py
                    names = (parts[: count + 1] for count in range(len(parts)))
                    waiting += [
                        (".".join(each), beside) for each in names if (beside := _beside(folder, each))
                    ]
    return found


def _is_taken_from(folder: Path, module: str) -> bool:
    """Whether it is there that Python finds a module: beside a file may lie a checkout of torch, too."""
    if module in PROJECT:
        return False
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # it was made by hand, as `__main__` is
        return False
    if spec is None:
        return False
    found = spec.submodule_search_locations or filter(None, [spec.origin])
    return any(Path(each).parent == folder for each in found)


def _beside(folder: Path, parts: list[str]) -> Path | None:
    base = folder.joinpath(*parts)
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)


def _imports(module: str, path: Path) -> frozenset[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imported_names(path.read_bytes(), package)


@functools.cache  # a plan asks for each file some ten times
def imported_names(source: bytes, package: str) -> frozenset[str]:
    """Full names of what a source imports, wherever in it, modules or what is in them.

    Args:
        source: of a module; of one that is no Python, nothing.
        package: that the module is in.
    """
    return frozenset(_names(source, package))


def _names(source: bytes, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # which its import will tell
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
