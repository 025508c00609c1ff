"""From a command line to the study that it asks for: a checked-in one, or one of its own. Free of torch."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from experiments import study as studies
from experiments.request import Request
from experiments.study import MOST_SEEDS, Arm, Study
from experiments.trial import LEAST_SEEDS, digest
from mixers.registry import InputError


def requested_study(request: Request) -> tuple[str, Study]:
    """The study to run and the name of its folder.

    A study that the command line changes gets a name of its own, so that it does not overwrite the
    original: `first_of_name`, the arms if they were chosen, and a hash of whatever else was changed. Another
    number of seeds is still the same study.

    Raises:
        InputError: the result is not a valid study.
    """
    path = studies.find(request.study)
    original = studies.load(path)
    if request.seeds is not None and not 1 <= request.seeds <= MOST_SEEDS:
        raise InputError(f"--seeds must be at least 1 and at most {MOST_SEEDS:,}, got {request.seeds}")
    looks = original.looks if request.looks is None else _looks(request.looks)
    if request.margin is not None and not 0 < request.margin < float("inf"):
        raise InputError(f"--margin must be positive and finite, got {request.margin:g}")
    for kind in ("task", "skeleton"):
        _check_cases_follow(original, kind, request)
    for rate in request.lr_grid or ():
        if not 0 < rate < float("inf"):
            raise InputError(f"--lr-grid takes positive, finite learning rates, got {rate:g}")
    changed = _with_rates(_with_arms(original, request), original, request)
    study = dataclasses.replace(
        changed,
        task=_with_options("task", request.task or original.task, request),
        skeleton=_with_options("skeleton", request.skeleton or original.skeleton, request),
        match=request.match or original.match,
        margin=request.margin or original.margin,
        seeds=request.seeds or (looks[0] if looks else original.seeds),
        looks=looks,
    )
    study.check("command line")
    changes = []
    if (study.all_arms(), study.baseline) != (original.all_arms(), original.baseline):
        changes += [_slug(arm.name) for arm in study.all_arms()]
    ours, theirs = (_apart_from_arms_and_seeds(each) for each in (study, original))
    if ours != theirs:
        changes.append(digest(ours)[:6])
    name = "-".join([first_of_name(request, study.task), *changes])
    return name, _retold(study, original) if changes else study


def first_of_name(request: Request, task: str) -> str:
    """What the name of a study's folder begins with.

    That is the name of the study file; but where the default study lends another task its recipe, since no
    other was named, the task's.

    Args:
        request: what was asked for.
        task: the study's, with its options.
    """
    file = studies.find(request.study)
    if request.study != studies.DEFAULT or _bare(task) == _bare(studies.load(file).task):
        return file.stem
    return _slug(_bare(task))


def _bare(component: str) -> str:
    """The name of a component without options; of a class of the user's, without its file."""
    return component.partition("(")[0].rpartition(":")[2].strip()


def _retold(study: Study, original: Study) -> Study:
    """A changed study without what its file says of the original: cost, answer, and what no longer holds."""
    names = ", ".join(arm.name for arm in study.all_arms())
    same = (study.all_arms(), study.baseline) == (original.all_arms(), original.baseline)
    varied = original.varied if same else f"The token mixer: {names}."
    moved = (study.task, study.skeleton) != (original.task, original.skeleton)
    return dataclasses.replace(
        study,
        question=f"Does {study.task} in {study.skeleton} need the SSM?" if moved else original.question,
        varied=varied,
        fixed="Everything else." if moved else original.fixed,
        cost="",
        answer="",
    )


def _apart_from_arms_and_seeds(study: Study) -> dict[str, Any]:
    kept = ["task", "skeleton", "match", "margin", "train", "lr_grid", *(["looks"] if study.looks else [])]
    return {key: value for key, value in dataclasses.asdict(study).items() if key in kept}


def _looks(asked: tuple[int, ...]) -> tuple[int, ...]:
    """The looks that a command line asks for.

    Raises:
        InputError: too few or too many seeds for one of them.
    """
    for look in asked:
        if not LEAST_SEEDS <= look <= MOST_SEEDS:
            raise InputError(
                f"--looks must be at least {LEAST_SEEDS}, which a verdict takes, and at most "
                f"{MOST_SEEDS:,}, got {look}"
            )
    return asked


def _with_arms(original: Study, request: Request) -> Study:
    """The arms and the baseline that the command line chose; a name of the study's means its arm."""
    if not request.mixer and request.baseline in (None, original.baseline):
        return original
    known = {arm.name: arm for arm in original.all_arms()}
    baseline = request.baseline or original.baseline
    chosen = request.mixer or tuple(known)
    names = list(dict.fromkeys((baseline, *chosen)))
    arms = tuple(known.get(name, Arm(name, name)) for name in names)
    kept = tuple(pair for pair in original.comparisons if request.mixer and set(pair) <= set(names))
    return dataclasses.replace(original, baseline=baseline, mixers=(), arms=arms, comparisons=kept)


def _with_rates(study: Study, original: Study, request: Request) -> Study:
    """The recipe that was asked for; a learning rate given by hand leaves nothing to search."""
    if request.lr_grid is not None and len(request.lr_grid) > 1:
        return dataclasses.replace(study, train=request.train, lr_grid=request.lr_grid)
    train = dataclasses.replace(request.train, lr=request.lr_grid[0]) if request.lr_grid else request.train
    by_hand = train.lr != original.train.lr or request.lr_grid is not None
    return dataclasses.replace(study, train=train, lr_grid=() if by_hand else study.lr_grid)


def _check_cases_follow(study: Study, kind: str, request: Request) -> None:
    """Refuse to change a task or skeleton that the cases of the study replace: it would change nothing.

    Raises:
        InputError: it is replaced.
    """
    replaced = [case.name for case in study.cases if isinstance(getattr(case, kind), str)]
    if replaced and (getattr(request, kind) is not None or request.options.get(kind)):
        raise InputError(
            f"--{kind} has no effect on study {request.study}: its cases have their own "
            f"({', '.join(replaced)}); copy the study file and change it there"
        )


def _with_options(kind: str, text: str, request: Request) -> str:
    """The component's text with the options that were given by dotted name."""
    given = request.options.get(kind, {})
    if not given:
        return text
    from experiments.skeletons import SKELETONS
    from experiments.tasks import TASKS

    registry = TASKS if kind == "task" else SKELETONS
    merged = registry.parse(text).with_options(given)
    registry.check_names(merged)
    return str(merged)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.=]+", "_", text.lower()).strip("_")
