"""How a command line is read into the request of its command. Free of torch."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TypeVar

import tyro

from analysis.terminal_lines import fit
from experiments import study as studies
from experiments.request import EvaluateRequest, Request, require_at_least
from experiments.trial import Recipe
from mixers import MIXERS
from mixers.registry import InputError, suggest

Form = TypeVar("Form")

COMMANDS = {
    "plan": "what would run, and in what the arms differ; trains nothing",
    "status": "how far a study is, while it runs here or elsewhere; trains nothing",
    "report": "table, figures, verdict and report again; --paper for the paper's own",
    "long": "which stages of any backbone see long sequences, at any resolution",
    "evaluate": "accuracy of trained weights on a data set",
    "look": "what a token can see, mixer by mixer, before and after training",
    "bench": "latency and memory of mixers against length and width",
    "demo": "a page to play with trained models",
    "list": "mixers, skeletons, tasks and studies; with a name, all of it",
    "doctor": "which kernels run on this machine",
}
"""What each does, by its name; without one, a study is run."""
HELP = ("-h", "--help")

DOTTED = ("task", "skeleton", "train")
"""Parts of a trial whose fields go by dotted name: `--task.canvas 20`."""


def parse_evaluate(arguments: Sequence[str]) -> EvaluateRequest:
    """Read the command line of `evaluate`.

    Raises:
        InputError: a flag that does not fit.
        SystemExit: after printing help.
    """
    rest, options = _take_dotted(arguments)
    if options.pop("train"):
        raise InputError("evaluate trains nothing: it takes no --train options")
    asked = read(EvaluateRequest(), rest, "run_ablation.py evaluate")
    require_at_least(1, asked, "threads")
    require_at_least(0, asked, "loaders")
    return dataclasses.replace(asked, options=options)


def parse(arguments: Sequence[str], verb: str = "run") -> Request:
    """Read the command line; the study's recipe supplies the defaults of `--train.*`.

    Raises:
        InputError: anything that does not fit, as far as it shows without building a model.
        SystemExit: after printing help.
    """
    rest, options = _take_dotted(arguments)
    _check_values(rest)
    if "lr" in options["train"] and _value_of("--lr-grid", rest) is not None:
        raise InputError("--train.lr and --lr-grid exclude each other: one rate, or those to choose from")
    chosen = _value_of("--study", rest) or studies.DEFAULT
    recipe = studies.changed_recipe(
        studies.load(studies.find(chosen)).train, options.pop("train"), "--train."
    )
    program = "run_ablation.py" if verb == "run" else f"run_ablation.py {verb}"
    about = _overview() if verb == "run" else f"{COMMANDS[verb][0].upper()}{COMMANDS[verb][1:]}."
    asked = read(Request(train=recipe), rest, program, about)
    return dataclasses.replace(asked, options=options)


def _overview() -> str:
    """What a command line without a command does, and the commands, a line for each."""
    lines = (f"  {name:9} {what}" for name, what in COMMANDS.items())
    title = "Commands, each with a --help of its own; a study is run without one:"
    return "\n".join([_about(Request), "", title, *lines])


def _about(form: type) -> str:
    """What the docstring of a dataclass of flags says, on one line."""
    return " ".join((form.__doc__ or "").split())


def _check_values(arguments: Sequence[str]) -> None:
    """Refuse what would be passed over in silence.

    Raises:
        InputError: an empty name, or no mixer after --mixer.
    """
    for flag in ("--mixer", "--baseline", "--study", "--task", "--skeleton"):
        value = _value_of(flag, [*arguments, "--"])
        if value is not None and (not value or value.startswith("--")):
            raise InputError(f"{flag} is empty: it takes a name (see list)")
    if _value_of("--match", arguments) == "None":
        raise InputError("--match None: say --match none for arms that are not matched")


def read(default: Form, arguments: Sequence[str], program: str, about: str | None = None) -> Form:
    """The flags of a command as its dataclass; those not given are taken from `default`.

    Args:
        default: an instance of the dataclass.
        arguments: of the command line.
        program: what the help calls the command.
        about: what the help says first; what the dataclass says by default.

    Raises:
        InputError: an unknown flag, one given twice, a list of nothing, or a value that does not fit.
        SystemExit: after printing help.
    """
    _check_once(arguments)
    _check_lists(default, arguments)
    if _value_of("--runs", arguments) == "":
        raise InputError("--runs is empty: it takes a folder")
    if set(HELP) & set(arguments):  # tyro would leave it in a single line, however wide the terminal
        print(f"{fit(about or _about(type(default)))}\n")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default), args=list(arguments), default=default, prog=program, description=""
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        message = _unboxed(said.getvalue())
        raise InputError(f"{message}{_nearest_flag(message, default)} (see --help)") from None


def _check_once(arguments: Sequence[str]) -> None:
    """Refuse a flag that is given twice: the first of them would be passed over in silence.

    Raises:
        InputError: there is one.
    """
    flags = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    for flag, times in Counter(flags).items():
        if times > 1 and flag != "--":
            raise InputError(f"{flag} is given {times} times: it is given once, with all its values")


def _check_lists(form: object, arguments: Sequence[str]) -> None:
    """Refuse a flag that takes several values and gets none: that is not what its absence means.

    Raises:
        InputError: there is one.
    """
    lists = {each.name for each in dataclasses.fields(form) if "tuple[" in str(each.type)}  # type: ignore[arg-type]
    for argument, following in itertools.pairwise([*arguments, "--"]):
        name = argument.removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in lists and following.startswith("--"):
            raise InputError(f"{argument} is empty: it takes one value or more")


def _nearest_flag(message: str, form: object) -> str:
    """What an unrecognized flag, or a name without one, probably stands for, in the words of `suggest`."""
    unknown = re.search(r"Unrecognized options?: (--[\w.-]+|[^ ,]+)", message)
    if unknown is None:
        return ""
    if not unknown.group(1).startswith("--"):
        return _without_its_flag(unknown.group(1)) if isinstance(form, Request) else ""
    flags = [f"--{each.name.replace('_', '-')}" for each in dataclasses.fields(form)]  # type: ignore[arg-type]
    if isinstance(form, Request):
        flags += [f"--train.{each.name.replace('_', '-')}" for each in dataclasses.fields(Recipe)]
    wanted = unknown.group(1)
    dotted = [flag for flag in flags if flag.endswith(f".{wanted.removeprefix('--')}")]
    return f"; did you mean {dotted[0]!r}?" if dotted else suggest(wanted, flags)


def _unboxed(message: str) -> str:
    """What tyro says in the first part of its box, as one line; the box is of "-" if output is not UTF-8."""
    _title, *lines = (line.strip("│╭╮╰╯ ") for line in message.splitlines())
    inside = itertools.dropwhile(_is_rule, lines)
    return " ".join(itertools.takewhile(lambda line: not _is_rule(line), inside))


def _is_rule(line: str) -> bool:
    """Whether a line of a box only divides it."""
    return not line.strip("-─")


def _take_dotted(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Split `--task.x v`, `--skeleton.x v` and `--train.x v` off the rest."""
    rest: list[str] = []
    options: dict[str, dict[str, str]] = {name: {} for name in DOTTED}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        match = re.fullmatch(r"--(\w+)\.([\w-]+)(?:=(.*))?", argument)
        if match and match.group(1) == "mixer":
            raise InputError(f"{argument}: a mixer's options go with its name: --mixer 'ssm(d_state=8)'")
        if match is None or match.group(1) not in DOTTED:
            rest.append(argument)
            continue
        kind, option, value = match.groups()
        if value is None:
            words = list(itertools.takewhile(lambda word: not word.startswith("--"), remaining))
            values = words if kind == "train" else words[:1]  # --train.betas 0.9 0.98
            if not values:
                raise InputError(f"{argument} needs a value")
            del remaining[: len(values)]
            value = ",".join(values)
        if option.replace("-", "_") in options[kind]:
            raise InputError(f"--{kind}.{option} is given 2 times: it is given once")
        options[kind][option.replace("-", "_")] = value
    return rest, options


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def late_verb(arguments: Sequence[str]) -> str:
    """What to add to an error where a command stands behind options; "" where none does."""
    found = next((word for word in arguments if word in COMMANDS), None)
    if found is None or not arguments[0].startswith("-"):
        return ""
    return f"; the command comes first: run_ablation.py {found} {arguments[0]} ..."


def split_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb ("run" if none is given) and what follows it.

    Raises:
        InputError: a first word that is no verb.
    """
    if not arguments or arguments[0].startswith("-"):
        return "run", list(arguments)
    verb, *rest = arguments
    if verb == "help":
        return "run", ["--help"]
    if verb not in COMMANDS:
        hint = "; a study is run without a command" if verb in ("run", "train") else suggest(verb, COMMANDS)
        raise InputError(
            f"unknown command {verb!r}{_without_its_flag(verb) or hint} (known: {', '.join(COMMANDS)})"
        )
    return verb, rest


def _without_its_flag(word: str) -> str:
    """Which flag a name was probably meant for, in the words of `suggest`; "" for any other word."""
    from experiments.skeletons import SKELETONS
    from experiments.tasks import TASKS

    known: dict[str, Collection[str]] = {
        "mixer": [*MIXERS],
        "study": studies.names(),
        "task": [*TASKS],
        "skeleton": [*SKELETONS],
    }
    name = word.partition("(")[0].strip()
    flags = [flag for flag, names in known.items() if name in names]
    if word.endswith(".toml"):
        flags.append("study")
    return f"; did you mean '--{flags[0]} {word}'?" if flags else ""
