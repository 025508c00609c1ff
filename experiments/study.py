"""A study: one question and the arms that answer it, read from a TOML file. Free of torch."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from experiments.trial import Recipe
from mixers.registry import InputError, suggest

FOLDER = Path(__file__).parent / "studies"
DEFAULT = "digits-ladder"
MINIMUM_SEEDS = 3
"""Below this no verdict is given."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Option = str | int | float | bool


@dataclass(frozen=True, config=_STRICT)
class Arm:
    """The trials that share everything but the seed; what is not named here is the study's."""

    name: str
    mixer: str
    skeleton: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Options of the skeleton that this arm changes."""
    task: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Options of the task that this arm changes."""
    train: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Fields of the recipe that this arm changes."""


@dataclass(frozen=True, config=_STRICT)
class Study:
    """What a study file may say.

    The first five fields are its header, in words. Arms are given either by `mixers`, which differ in
    nothing else, or by `arms`.
    """

    question: str
    varied: str
    fixed: str
    cost: str
    answer: str
    task: str
    skeleton: str
    baseline: str
    """The arm that the others are judged against and matched to."""
    margin: Annotated[float, Field(gt=0)]
    """Differences within this are called equivalent; in the metric's unit, fixed before the run."""
    mixers: tuple[str, ...] = ()
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (arm, its baseline); by default every arm against `baseline`."""
    seeds: Annotated[int, Field(ge=1)] = 5
    match: Literal["params", "macs", "none"] = "params"
    """What the arms have in common in size."""
    train: Recipe = Recipe()

    def all_arms(self) -> tuple[Arm, ...]:
        """The arms, those given as mixers first."""
        return (*(Arm(mixer, mixer) for mixer in self.mixers), *self.arms)

    def all_comparisons(self) -> tuple[tuple[str, str], ...]:
        """(arm, baseline) pairs."""
        others = tuple((arm.name, self.baseline) for arm in self.all_arms() if arm.name != self.baseline)
        return self.comparisons or others

    def check(self, source: str) -> None:
        """Check what the types cannot.

        Raises:
            InputError: arms missing, named twice or unknown.
        """
        names = [arm.name for arm in self.all_arms()]
        if not names:
            raise InputError(f"{source}: no arms: give mixers or arms")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{source}: arm {name!r} is named twice")
        for name in (self.baseline, *(name for pair in self.comparisons for name in pair)):
            if name not in names:
                raise InputError(f"{source}: {name!r} is not one of the arms ({', '.join(names)})")


def names() -> list[str]:
    """The studies that are checked in."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name_or_path: str) -> Path:
    """The file of a checked-in study, or the user's own.

    Raises:
        InputError: there is no such study or file.
    """
    if name_or_path in names():
        return FOLDER / f"{name_or_path}.toml"
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise InputError(f"study file {path} does not exist")
        return path
    hint = suggest(name_or_path, names())
    raise InputError(f"unknown study {name_or_path!r}{hint} (known: {', '.join(names())}, or a .toml file)")


def load(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        InputError: unreadable, not TOML, an unknown key, or a value that does not fit; the file and
            the key are named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read study file {path}: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    return validate(content, str(path))


def validate(content: dict[str, Any], source: str) -> Study:
    """A study from plain values; errors start with `source`."""
    try:
        study = TypeAdapter(Study).validate_python(content)
    except ValidationError as error:
        raise InputError("\n".join(_describe(source, problem) for problem in error.errors()[:2])) from None
    study.check(source)
    return study


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any], prefix: str) -> Recipe:
    """The recipe with some fields replaced, given typed or as text ("none", "0.9,0.95").

    Raises:
        InputError: an unknown field or a value that does not fit; fields are named after `prefix`.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in changes:
        if name not in known:
            raise InputError(
                f"unknown field {prefix}{name}{suggest(name, known)} (known: {', '.join(known)})"
            )
    read = {name: _from_text(value) for name, value in changes.items()}
    try:
        return TypeAdapter(Recipe).validate_python({**dataclasses.asdict(recipe), **read})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise InputError(f"{prefix}{name}: {problem['msg']} (got {changes.get(name)!r})") from None


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() == "none":
        return None
    return value.split(",") if "," in value else value


def _describe(source: str, problem: Any) -> str:
    """One validation error as a sentence that names the key and, for an unknown one, the nearest."""
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "missing":
        return f"{source}: {key} is missing"
    if problem["type"] != "unexpected_keyword_argument":
        return f"{source}: {key}: {problem['msg']} (got {problem['input']!r})"
    known = _fields_at(location[:-1])
    return f"{source}: unknown key {key!r}{suggest(str(location[-1]), known)} (known: {', '.join(known)})"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the dataclass at this place inside a study."""
    level: Any = Study
    for part in location:
        if isinstance(part, str):
            level = typing.get_type_hints(level).get(part, Recipe)
        if typing.get_origin(level) is tuple:
            level = typing.get_args(level)[0]
    return [field.name for field in dataclasses.fields(level)]
