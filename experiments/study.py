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

from experiments.trial import LEAST_SEEDS, Recipe
from mixers.registry import InputError, suggest

FOLDER = Path(__file__).parent / "studies"
DEFAULT = "digits-ladder"

ALPHA = 0.05
"""The chance of a wrong claim that a study allows itself."""
MOST_SEEDS = 1_000
"""More have never been asked for; those that learning rates are chosen on are numbered from here."""
MOST_PROBLEMS = 8
"""Of a study file that are told at once."""

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
class Case:
    """One place where all arms are compared: a size, a length, a task. What it leaves out is the study's."""

    name: str
    at: float | None = None
    """Where it lies on the study's axis."""
    series: str | None = None
    """What tells it apart from other cases at the same place, e.g. "causal"."""
    task: str | dict[str, Option] = dataclasses.field(default_factory=dict)
    """A task in place of the study's, or options of it that change."""
    skeleton: str | dict[str, Option] = dataclasses.field(default_factory=dict)
    """A skeleton in place of the study's, or options of it that change."""
    train: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Fields of the recipe that change."""
    mixers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Mixers in place of those of the named arms: what an arm means here, e.g. its causal form."""
    metric: str | None = None
    """Number of the test split that is compared here, e.g. "accuracy_1024", in place of the study's."""


@dataclass(frozen=True, config=_STRICT)
class Published:
    """A number from a paper, to stand beside ours."""

    arm: str
    value: float
    source: str
    """Paper, number, table or figure."""
    convention: str
    """What was measured and how it was chosen."""
    tolerance: Annotated[float, Field(ge=0)]
    """Distance that is no contradiction, in the metric's unit."""
    case: str | None = None
    not_comparable: str | None = None
    """Why the two must not be held against each other; None if they may."""


@dataclass(frozen=True, config=_STRICT)
class Study:
    """What a study file may say.

    Its header is in words: question, varied, fixed, cost, answer. Arms are given either by `mixers`, which
    differ in nothing else, or by `arms`. With `cases`, every arm runs and is compared in every case.
    """

    question: str
    varied: str
    fixed: str
    task: str
    skeleton: str
    baseline: str
    """The arm that the others are judged against and matched to."""
    margin: Annotated[float, Field(gt=0, strict=True)]
    """Differences within this are called equivalent; in the metric's unit, fixed before the run."""
    cost: str = ""
    answer: str = ""
    """What it costs and what came out; filled in once that is known."""
    mixers: tuple[str, ...] = ()
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (arm, its baseline); by default every arm against `baseline`."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS, strict=True)] = 5
    looks: tuple[Annotated[int, Field(ge=LEAST_SEEDS, le=MOST_SEEDS, strict=True)], ...] = ()
    """Numbers of seeds, in place of `seeds`: the study goes on to the next while anything is undecided."""
    match: Literal["params", "macs", "none"] = "params"
    """What the arms have in common in size."""
    metric: str | None = None
    """Metric that is compared in place of the task's first."""
    train: Recipe = Recipe()
    axis: str = ""
    """What the cases vary, with its unit."""
    log_axis: bool = False
    cases: tuple[Case, ...] = ()
    lr_grid: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Learning rates to choose from, for every arm of a case the same; empty for that of the recipe."""
    lr_seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 1
    """Seeds that the choice rests on; none of them is among those reported."""
    lr_extensions: Annotated[int, Field(ge=0)] = 3
    """Points that the grid may grow by at either end while the best value of an arm lies there."""
    published: tuple[Published, ...] = ()

    @property
    def alpha(self) -> float:
        """The level of each test: a share for every look, so that all looks together keep to `ALPHA`.

        A wrong claim at any look is at most as likely as the sum over all of them (Bonferroni), whenever the
        study stops. Boundaries that use how looks depend on one another (Pocock 1977) would allow 2.9 % at
        each of two instead of 2.5 %, but for normal statistics, not for t statistics of a few seeds.
        """
        return ALPHA / max(1, len(self.looks))

    def all_arms(self) -> tuple[Arm, ...]:
        """The arms, those given as mixers first."""
        return (*(Arm(mixer, mixer) for mixer in self.mixers), *self.arms)

    def all_comparisons(self) -> tuple[tuple[str, str], ...]:
        """(arm, baseline) pairs."""
        others = tuple((arm.name, self.baseline) for arm in self.all_arms() if arm.name != self.baseline)
        return self.comparisons or others

    def all_cases(self) -> tuple[Case, ...]:
        """The cases; a single one without a name if the study has none."""
        return self.cases or (Case(""),)

    def check(self, source: str) -> None:
        """Check what the types cannot.

        Raises:
            InputError: arms or cases missing, without a name, named twice, unknown or off the axis; a grid of
                one learning rate; looks that do not go on.
        """
        arms = [arm.name for arm in self.all_arms()]
        cases = [case.name for case in self.cases]
        if not arms:
            raise InputError(f"{source}: no arms: give mixers or arms")
        for kind, names in (("arm", arms), ("case", cases)):
            for name in names:
                if not name.strip():
                    raise InputError(f"{source}: the name of one {kind} is empty")
                if names.count(name) > 1:
                    raise InputError(f"{source}: {kind} {name!r} is named twice")
        paired = [name for pair in self.comparisons for name in pair]
        replaced = [name for case in self.cases for name in case.mixers]
        for name in (self.baseline, *paired, *replaced, *(row.arm for row in self.published)):
            if name not in arms:
                raise InputError(f"{source}: {name!r} is not one of the arms ({', '.join(arms)})")
        for position, pair in enumerate(self.comparisons):
            if pair[0] == pair[1]:
                raise InputError(f"{source}: comparisons: {pair[0]!r} is compared with itself")
            if set(pair) in map(set, self.comparisons[:position]):
                raise InputError(f"{source}: comparisons: {pair[0]!r} and {pair[1]!r} are compared twice")
        for row in self.published:
            if (row.case or "") not in (cases or [""]):
                known = ", ".join(cases) or "there are none"
                which = "case is missing: one" if row.case is None else f"{row.case!r} is not one"
                raise InputError(f"{source}: published: {which} of the cases ({known})")
        for case in self.cases:
            if self.log_axis and case.at is not None and case.at <= 0:
                raise InputError(
                    f"{source}: case {case.name!r} is at {case.at:g}, where a logarithmic axis has no place"
                )
        if len(set(self.lr_grid)) == 1 or len(set(self.lr_grid)) < len(self.lr_grid):
            raise InputError(f"{source}: lr_grid needs at least two learning rates, each once")
        looks = ", ".join(map(str, self.looks))
        if len(self.looks) == 1 or list(self.looks) != sorted(set(self.looks)):
            raise InputError(f"{source}: looks must be at least two numbers of seeds, ascending, got {looks}")
        if self.looks and self.seeds not in self.looks:
            raise InputError(f"{source}: {self.seeds} seeds are none of the looks ({looks})")


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
    if path.is_file():
        return path
    if name_or_path and path.is_dir():
        raise InputError(f"study file {path} is a folder: --study takes a name or a .toml file")
    if path.suffix == ".toml":
        raise InputError(f"study file {path} does not exist")
    if not name_or_path:
        raise InputError("--study is empty: it takes a name or a .toml file")
    hint = suggest(name_or_path, names())
    raise InputError(f"unknown study {name_or_path!r}{hint} (known: {', '.join(names())}, or a .toml file)")


def load(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        InputError: unreadable, not TOML, an unknown key, or a value that does not fit; the file and
            the key are named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as some editors write it
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
        raise InputError(
            "\n".join(_describe(source, problem) for problem in error.errors()[:MOST_PROBLEMS])
        ) from None
    if study.looks and "seeds" in content:
        raise InputError(f"{source}: seeds and looks: give one of them")
    study = dataclasses.replace(study, seeds=study.looks[0]) if study.looks else study
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
    if len(location) > 1 and location[-1] in _fields_at(()):
        return (
            f"{source}: {location[-1]} is a key of the study, not of {'.'.join(map(str, location[:-1]))}: "
            "put it above the first [table]"
        )
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
