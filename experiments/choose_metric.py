"""Which metric of a task a study compares: its first, one by name, or one of a further test set."""

from __future__ import annotations

import dataclasses

from experiments.interface import Metric
from experiments.tasks.base import Task, TaskData
from mixers.registry import InputError, suggest


def choose_metric(task: Task, name: str, wanted: str | None) -> Metric:
    """The metric of that name, or the task's first.

    Args:
        task: the task.
        name: of the task, for the message.
        wanted: name of one of its metrics; None for the first.

    Raises:
        InputError: the task has no such metric.
    """
    known = {metric.name: metric for metric in (task.metric, *task.other_metrics)}
    if wanted is None:
        return task.metric
    if wanted not in known:
        raise InputError(
            f"task {name} has no metric {wanted!r}{suggest(wanted, known)} (it has {', '.join(known)})"
        )
    return known[wanted]


def choose_test_metric(task: Task, data: TaskData, asked_by: str, wanted: str, like: Metric) -> Metric:
    """A number of the test split by name, of further test sets too ("accuracy_1024").

    Args:
        task: the task.
        data: of any seed.
        asked_by: for the message.
        wanted: its name.
        like: the metric in whose place it is compared.

    Raises:
        InputError: there is no such number, or it is in another unit or better the other way.
    """
    own = [task.metric, *task.other_metrics]
    further = [
        dataclasses.replace(metric, name=f"{metric.name}_{name}")
        for name in data.extra_tests
        for metric in own
    ]
    known = {metric.name: metric for metric in (*own, *further)}
    if wanted not in known:
        raise InputError(
            f"{asked_by} {wanted!r} is not measured{suggest(wanted, known)} (known: {', '.join(known)})"
        )
    found = known[wanted]
    if (found.unit, found.higher_is_better) != (like.unit, like.higher_is_better):
        raise InputError(
            f"{asked_by} {wanted!r} cannot take the place of {like.name}: it is in {found.unit}, "
            f"{_better(found)}, and not in {like.unit}, {_better(like)}"
        )
    return found


def _better(metric: Metric) -> str:
    return f"{'higher' if metric.higher_is_better else 'lower'} is better"


def is_part_of(metric: Metric, whole: Metric) -> bool:
    """Whether a number is that metric, or that metric on some of what is asked or on a further test set."""
    return metric.name == whole.name or metric.name.startswith(f"{whole.name}_")


def extra_test_of(metric: Metric, data: TaskData) -> str | None:
    """The further test set that a number of `choose_test_metric` is of; None for the test split."""
    return next((name for name in data.extra_tests if metric.name.endswith(f"_{name}")), None)
