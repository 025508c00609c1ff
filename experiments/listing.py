"""What there is to choose from, and what each of it is, read off signatures, docstrings and study headers."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from analysis.terminal_lines import fit
from experiments import study
from experiments.skeletons import SKELETONS, option_defaults
from experiments.tasks import TASKS
from mixers import MIXERS
from mixers.registry import Component, InputError, Registry, is_own, suggest

REGISTRIES = (MIXERS, SKELETONS, TASKS)
KINDS = {int: "integer", float: "number", bool: "True | False", str: "text", types.NoneType: "None"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def overview(width: int) -> str:
    """Mixers, skeletons and tasks with their options and defaults, and the studies' questions."""
    kinds = (f"{registry.kind}s" for registry in REGISTRIES)
    return "\n".join(
        [*(_all_of(kind, width) for kind in (*kinds, "studies")), "list NAME tells more of each"]
    )


def _all_of(kind: str, width: int) -> str:
    """All mixers, skeletons, tasks or studies."""
    if kind == "studies":
        questions = (f"  {each}: {study.load(study.find(each)).question}" for each in study.names())
        return fit("\n".join([kind, *questions]), width)
    registry = next(each for each in REGISTRIES if kind == f"{each.kind}s")
    components = (f"  {_with_defaults(registry, registry.parse(name))}" for name in registry)
    return fit("\n".join([f"{kind}, with their options", *components]), width)


def describe(name: str, width: int) -> str:
    """What a mixer, skeleton or task is and which values its options take; or the header of a study; or all
    of a kind, by its plural.

    Raises:
        InputError: there is nothing of that name.
    """
    if name in ("studies", *(f"{registry.kind}s" for registry in REGISTRIES)):
        return _all_of(name, width)
    bare = name.partition("(")[0].strip()
    for registry in REGISTRIES:
        if bare in registry:
            return _component(registry, registry.parse(name), width)
    if is_own(bare):
        owner = TASKS if _is_task(bare) else MIXERS
        return _component(owner, owner.parse(name), width)
    if name in study.names() or name.endswith(".toml"):
        return _study(name, width)
    known = [*(each for registry in REGISTRIES for each in registry), *study.names()]
    raise InputError(f"nothing is called {name!r}{suggest(name, known)} (list alone names everything)")


def _is_task(own: str) -> bool:
    """Whether a class of the user's is a task; whatever else it is, it should be a mixer."""
    try:
        TASKS.load(own)
    except InputError:
        return False
    return True


def _with_defaults(registry: Registry, component: Component) -> Component:
    return registry.resolve(component, option_defaults(component) if registry is SKELETONS else None)


def _component(registry: Registry, component: Component, width: int) -> str:
    entry = registry.load(component.name)
    what, *_ = re.split(r"^(?:Args|Raises|Returns|Attributes):$", _doc(entry), flags=re.MULTILINE)
    defaults = _with_defaults(registry, component).options
    said = [f"{registry.kind} {component.name}", "", _filled(what.strip(), width), ""]
    for option, field in registry.options(component.name).items():
        values = f"  {option}={defaults[option]}: {_values(field.annotation, field.metadata)}"
        said.append(fit(values, width))
        meaning = _meaning(entry, option)
        if meaning:
            said.append(textwrap.fill(meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(said).rstrip()


def _study(name: str, width: int) -> str:
    header = study.load(study.find(name))
    fields = ("question", "varied", "fixed", "cost", "answer")
    said = (f"  {field}: {' '.join(getattr(header, field).split())}" for field in fields)
    arms = f"  arms: {', '.join(arm.name for arm in header.all_arms())}; {header.seeds} seeds"
    return fit("\n".join([f"study {name}", *said, arms]), width)


def _doc(entry: Any) -> str:
    """Its own: what it inherits speaks of something else."""
    return inspect.cleandoc(vars(entry).get("__doc__") or "")


def _filled(text: str, width: int) -> str:
    """Paragraphs in lines of this width; what is indented is a picture and stays as it is."""
    return "\n\n".join(
        part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width)
        for part in text.split("\n\n")
    )


def _meaning(entry: Any, option: str) -> str:
    """What the docstrings of a class and of those that it derives from say of an argument."""
    for each in inspect.getmro(entry):
        found = re.search(
            rf"^    (?:\w+, )*{option}(?:, \w+)*: (.*(?:\n {{8,}}.*)*)", _doc(each), re.MULTILINE
        )
        if found:
            return " ".join(found.group(1).split())
    return ""


def _values(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """What an option takes, in words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, parts))
    if get_origin(annotation) is Annotated:
        return _values(parts[0], parts[1:])
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(map(_values, parts))
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for name, sign in BOUNDS.items()
        for bound in _bounds(constraints)
        if hasattr(bound, name)
    ]
    return " ".join([KINDS.get(annotation, str(annotation)), ", ".join(bounds)]).strip()


def _bounds(constraints: Iterable[Any]) -> list[Any]:
    return [
        bound for each in constraints for bound in (each.metadata if isinstance(each, FieldInfo) else [each])
    ]
