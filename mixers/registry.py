"""Names with typed options: how `ssm(d_state=8, scan=bidirectional)` becomes an object.

One `Registry` serves token mixers, skeletons and tasks. An entry is a class named by dotted path, so that
listing names costs no import. The keyword-only parameters of its `__init__` *are* its options: their
annotations are checked by pydantic, their defaults are the defaults, and a name that is not among them is an
error. Nothing is passed through `**kwargs`.

A mixer or task of the user's own needs no entry: `my_module:MyMixer(option=value)` names a class in a file on
the Python path or in the working directory. Resolved, its name carries the hash of that file and of those
beside it that it imports, `my_module:MyMixer@1f0c6e2a93b7`, because a trial must say all that determines its
number.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from mixers import own_files


class InputError(ValueError):
    """Something the user wrote cannot be used; the message is one sentence meant for them."""


@dataclass(frozen=True)
class Component:
    """A registered name with its options, e.g. `ssm` with `{"d_state": 8}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, options: Mapping[str, Any]) -> Component:
        """The same component with some options replaced."""
        return Component(self.name, {**self.options, **options})

    def __str__(self) -> str:
        """The text that `Registry.parse` reads back."""
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{key}={_as_text(value)}' for key, value in self.options.items())})"


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(_as_text(item) for item in value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'ssm'?"` when a known name is near, else an empty string."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near += difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """The known components of one kind, classes derived from `Entry`.

    Args:
        kind: what the entries are, in error messages: "mixer", "skeleton", "task".
        entries: name -> "package.module:attribute", imported when first used.
        own_base: dotted path of the class that a user's own components must derive from; None for a
            registry that takes none.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], own_base: str | None = None) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._own_base = own_base
        self._option_models: dict[str, type[BaseModel]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def parse(self, text: str) -> Component:
        """Read `name` or `name(option=value, ...)`; values stay text until `resolve` types them.

        Raises:
            InputError: malformed text or an unknown name.
        """
        match = re.fullmatch(r"\s*([\w.:@\-]+)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
        if match is None:
            hint = self._own_hint(text)
            raise InputError(f"{self.kind} {text!r} is not of the form name or name(option=value, ...){hint}")
        name, inside = match.group(1), match.group(2)
        self._require(name)
        options: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in (inside or "").split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or not key or not value:
                raise InputError(f"{self.kind} {name}: {item!r} is not of the form option=value")
            if key in options:
                raise InputError(f"{self.kind} {name}: option {key!r} is given twice")
            options[key] = None if value == "None" else value
        return Component(name, options)

    def parse_pattern(self, text: str) -> tuple[Component, ...]:
        """Read one component or several: `conv,conv,ssm(d_state=8),attention`, `ssm*7,attention`.

        Raises:
            InputError: malformed text, an unknown name, or a repetition that is not a small number.
        """
        if not text.strip():
            raise InputError(f"the name of a {self.kind} is empty")
        parts = re.split(r",(?![^(]*\))", text)  # at commas outside of parentheses
        components: list[Component] = []
        for part in parts:
            match = re.fullmatch(r"(.*?)(?:\*\s*(\d{1,3}))?\s*", part, flags=re.DOTALL)
            times = int(match.group(2)) if match and match.group(2) else 1
            if match is None or times == 0 or not match.group(1).strip():
                raise InputError(f"{self.kind} pattern {text!r} has an empty or zero-times entry")
            components += [self.parse(match.group(1))] * times
        return tuple(components)

    def load(self, name: str) -> type[Entry]:
        """Import the entry.

        Raises:
            InputError: unknown name; or an own component that is not there, not what it must be, or changed
                since its name was resolved.
        """
        self._require(name)
        if is_own(name):
            return self._load_own(name)
        return _imported(self._entries[name])

    def modules(self, name: str) -> set[str]:
        """Modules of this project that an entry is made of, or what in them; of a file that is gone, none.

        That is the one that it is in, or what an own component's files import.
        """
        if name in self._entries:
            return {self._entries[name].partition(":")[0]}
        try:
            return own_files.project_names(*_own_file(name)) if is_own(name) else set()
        except InputError:
            return set()

    def with_source(self, name: str) -> str:
        """The name of an own component with the hash of its file; any other name as it is.

        Raises:
            InputError: its file cannot be found.
        """
        return f"{name.partition('@')[0]}@{own_files.source_hash(*_own_file(name))}" if is_own(name) else name

    def resolve(self, component: Component, defaults: Mapping[str, Any] | None = None) -> Component:
        """Check and type every option and fill in those that were not given.

        Args:
            component: a name with some of its options, as text or typed.
            defaults: defaults that depend on the place and override those of the signature.

        Raises:
            InputError: an unknown option, a wrong type or a value out of range.
        """
        model = self._option_model(component.name)
        self.check_names(component)
        try:
            filled = model.model_validate({**(defaults or {}), **component.options})
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(str(part) for part in first["loc"][:1])
            if first["type"] == "missing":
                raise InputError(
                    f"{self.kind} {component.name}: option {option!r} has no default and was not given: "
                    f"{component.name}({option}=...)"
                ) from None
            raise InputError(
                f"{self.kind} {component.name}: {option}: {first['msg']} (got {first['input']!r})"
            ) from None
        return Component(self.with_source(component.name), filled.model_dump(mode="json"))

    def create(self, component: Component, *args: Any) -> Entry:
        """Call the entry with positional `args` and the resolved options."""
        make: Callable[..., Entry] = self.load(component.name)
        return make(*args, **self.resolve(component).options)

    def check_names(self, component: Component) -> None:
        """Refuse an option that the component does not have, naming those that it has."""
        known = list(self._option_model(component.name).model_fields)
        for option in component.options:
            if option not in known:
                have = f"it has {', '.join(known)}" if known else "it has none"
                raise InputError(
                    f"{self.kind} {component.name} has no option {option!r}{suggest(option, known)} ({have})"
                )

    def options(self, name: str) -> Mapping[str, FieldInfo]:
        """The options of an entry with their types, bounds and defaults."""
        return self._option_model(name).model_fields

    def _load_own(self, name: str) -> type[Entry]:
        path, _, planned = name.partition("@")
        module, file = _own_file(name)
        if planned and planned != own_files.source_hash(module, file):
            raise InputError(f"{self.kind} {path} has changed since this trial was planned; plan it again")
        try:
            imported = own_files.import_as_it_is(module, file)
        except (Exception, SystemExit) as error:  # whatever a file of the user's does when it is imported
            raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
        wanted = path.partition(":")[2]
        if not wanted:
            raise InputError(f"{path} names no class: write {path}Class")
        entry = getattr(imported, wanted, None)
        if entry is None:  # the file is named, since it need not be the one that was meant: random, code
            raise InputError(f"{module} has no {wanted}, going by {file}")
        base = _imported(self._own_base or "builtins:object")
        derived = inspect.isclass(entry) and issubclass(entry, base)
        if not derived:
            raise InputError(f"{path} is not a subclass of {self._own_base}, as a {self.kind} must be")
        return entry

    def _require(self, name: str) -> None:
        if is_own(name) and self._own_base is not None:
            return
        if name not in self._entries:
            known = ", ".join(self._entries)
            hint = self._own_hint(name) or suggest(name, self._entries)
            raise InputError(f"unknown {self.kind} {name!r}{hint} (known: {known})")

    def _own_hint(self, text: str) -> str:
        """How a text that looks like the path of a class of the user's is written; "" for any other text."""
        match = re.search(r"([\w.]+?)(?:\.py)?[.:](\w+)\s*$", text.partition("(")[0])
        if self._own_base is None or match is None:
            return ""
        return (
            f"; a class of your own is module:Class, here {match[1]}:{match[2]}, with the folder of its file "
            "on PYTHONPATH or as the working directory"
        )

    def _option_model(self, name: str) -> type[BaseModel]:
        known = name if "@" in name else self.with_source(name)  # in a notebook a file may change
        if known not in self._option_models:
            entry = self.load(name)
            parameters = inspect.signature(entry.__init__).parameters
            self._check_options(name, list(parameters.values()))
            options = [each for each in parameters.values() if each.kind is inspect.Parameter.KEYWORD_ONLY]
            self._option_models[known] = self._typed(name, entry, options)
        return self._option_models[known]

    def _typed(self, name: str, entry: type[Entry], options: Sequence[inspect.Parameter]) -> type[BaseModel]:
        """A model with a field for each option.

        Raises:
            InputError: the type of one is missing, not known where it stands, or nothing that a command line
                could give.
        """
        try:
            hints = get_type_hints(entry.__init__, include_extras=True)
        except NameError as error:
            raise InputError(f"{self.kind} {name}: a type in its __init__ is not known: {error}") from None
        fields: dict[str, Any] = {}
        for option in options:
            if option.name not in hints:
                raise InputError(
                    f"{self.kind} {name}: option {option.name!r} has no type: write {option.name}: int or "
                    "the like in __init__"
                )
            default = ... if option.default is inspect.Parameter.empty else option.default
            fields[option.name] = hints[option.name], default
        config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
        try:
            with warnings.catch_warnings():  # an option may be called what a method of the model is: copy
                warnings.simplefilter("ignore", UserWarning)
                return create_model(f"{name} options", __config__=config, **fields)
        except PydanticSchemaGenerationError as error:
            raise InputError(
                f"{self.kind} {name}: an option is of a type that no text stands for: options are numbers, "
                f"text, True, False, None or a Literal of them ({str(error).partition('. ')[0]})"
            ) from None

    def _check_options(self, name: str, parameters: Sequence[inspect.Parameter]) -> None:
        """Refuse an option that could not be set by name, and so would keep its default in silence.

        Raises:
            InputError: a positional parameter beyond those that the base class has.
        """
        if self._own_base is None:
            return
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        inherited = inspect.signature(_imported(self._own_base).__init__).parameters.values()
        base = [each.name for each in inherited if each.kind in by_place]
        positional = [each for each in parameters if each.kind in by_place]
        if len(positional) > len(base):
            option = positional[len(base)].name
            raise InputError(
                f"{self.kind} {name}: {option!r} cannot be set: options are keyword-only, behind a * in "
                f"__init__({', '.join([*base, '*', f'{option}=...'])})"
            )


def is_own(name: str) -> bool:
    """Whether a name stands for a class in a file of the user's."""
    return ":" in name


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _own_file(name: str) -> tuple[str, Path]:
    """The module of an own component and its file.

    Raises:
        InputError: there is no such file.
    """
    module = name.partition(":")[0]
    path = own_files.find(module)
    if path is None:
        hint = f"; write {name.replace('.py:', ':')}" if module.endswith(".py") else ""
        raise InputError(
            f"no module {module!r} in {Path.cwd()} or on the Python path (asked for {name}){hint}"
        )
    return module, path
