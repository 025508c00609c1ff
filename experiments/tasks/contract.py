"""The contract of a task, checked by running it: what stands between a user's own task and a trial.

The tasks that come with this project are held to more by their tests; a class from somebody's file is held to
what a comparison cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from experiments.interface import Metric, TaskSpec
from experiments.tasks.base import IGNORE, Batch, Classification, Task, TaskData
from mixers.registry import InputError

SEED = 0
BATCH = 64
"""Examples of each split that are looked at."""
AXES = {"image": 2, "tokens": 1}
"""Of the grid, by kind of input."""


def create(name: str, make: Callable[[], Task]) -> Task:
    """Make the task and look at what it says of itself, which costs nothing.

    Raises:
        InputError: it cannot be made, has no `load`, or its `spec` or `metric` is none.
    """
    try:
        task = make()
        spec, metric = task.spec, task.metric
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's code does
        raise InputError(f"task {name} fails: {_said(error)}") from error
    if not callable(getattr(task, "load", None)):
        raise InputError(f"task {name} has no load(seed), which gives its data")
    wrong = _wrong_spec(spec)
    if wrong is None and not isinstance(metric, Metric):
        wrong = f"metric is {metric!r}, not a Metric"
    if wrong is not None:
        raise InputError(f"task {name}: its {wrong}")
    return task


def check(name: str, task: Task) -> TaskData:
    """Load the data of one seed, twice, and hold them to what the task says of them.

    Args:
        name: how the user calls it, for the messages.
        task: made by `create`.

    Returns:
        The data, which may have taken minutes to load; never are both in memory at once.

    Raises:
        InputError: they cannot be loaded, a split is empty, inputs or targets are not what `spec` says, the
            loss cannot take them, or the same seed gives other examples.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = _examined(name, task)
            torch.manual_seed(1)  # what is drawn from the global generator is other now
            data = task.load(SEED)
            _require_the_same(name, first, _looked_at(data))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # as above
        raise InputError(f"task {name} fails: {_said(error)}") from error
    return data


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _wrong_spec(spec: object) -> str | None:
    if not isinstance(spec, TaskSpec):
        return f"spec is {spec!r}, not a TaskSpec"
    if spec.input not in AXES:
        return f"spec has input={spec.input!r}, which is neither 'image' nor 'tokens'"
    if spec.output not in ("one", "per-token"):
        return f"spec has output={spec.output!r}: a class per example is 'one', per token 'per-token'"
    sizes = spec.grid if isinstance(spec.grid, tuple) else ()
    if len(sizes) != AXES[spec.input] or not all(isinstance(size, int) and size > 0 for size in sizes):
        return f"spec has grid={spec.grid!r}: it is (H, W) of an image and (L,) of tokens, positive integers"
    if spec.channels < 1 or spec.classes < 2:
        return f"spec has channels={spec.channels} and classes={spec.classes}: at least 1 and 2 make sense"
    return None


def _examined(name: str, task: Task) -> list[tuple[str, Batch]]:
    """What is looked at of the data.

    Raises:
        InputError: they are what they must not be.
    """
    data = task.load(SEED)
    sizes = _sizes(data)
    for split, size in sizes.items():
        if size < 1:
            raise InputError(f"task {name} has no {split} examples: its sizes are {sizes}")
    batches = list(_looked_at(data))
    for split, batch in batches:
        wrong = _wrong_batch(batch, task, fixed=split != "train")
        if wrong is not None:
            raise InputError(f"task {name} {wrong}, in {split}")
    data.baselines()  # fails here, not in the plan
    wrong = _does_not_resume(data, sizes["train"])
    if wrong is not None:
        raise InputError(f"task {name} {wrong}")
    return batches


def _require_the_same(
    name: str, first: Iterable[tuple[str, Batch]], second: Iterable[tuple[str, Batch]]
) -> None:
    for (split, batch), (_, again) in zip(first, second, strict=True):
        if not (torch.equal(batch.inputs, again.inputs) and torch.equal(batch.targets, again.targets)):
            raise InputError(
                f"task {name} gives other examples when a seed is loaded again, in {split}, so that arms are "
                "not paired: randomness comes from trial.stream(seed, ...) or draw's generator"
            )


def _sizes(data: TaskData) -> dict[str, int]:
    return {split: data.sizes.get(split, 0) for split in ("train", "validation", "test")}


def _looked_at(data: TaskData) -> Iterator[tuple[str, Batch]]:
    """The first examples of each split."""
    yield "train", next(iter(data.train_batches(0, min(BATCH, _sizes(data)["train"]))))
    for split in ("validation", "test"):
        yield split, next(iter(data.batches(split, BATCH)))


def _does_not_resume(data: TaskData, examples: int) -> str | None:
    """Whether an epoch that goes on at its second batch goes on with another one."""
    size = min(BATCH, examples // 2)
    if size == 0:
        return None
    whole = list(islice(data.train_batches(0, size), 2))
    rest = next(iter(data.train_batches(0, size, start=1)), None)
    if rest is None or len(whole) < 2 or not torch.equal(whole[1].inputs, rest.inputs):
        return "does not go on where a trial was interrupted: train_batches(0, n, start=1) begins elsewhere"
    return None


def _wrong_batch(batch: object, task: Task, *, fixed: bool) -> str | None:
    """What is wrong with a batch; where training is concerned, examples may be of another size."""
    if not isinstance(batch, Batch):
        return f"gives {type(batch).__name__}, not a Batch"
    inputs, targets, spec = batch.inputs, batch.targets, task.spec
    return (
        _wrong_inputs(inputs, spec, fixed=fixed)
        or _wrong_targets(inputs, targets, spec)
        or _wrong_loss(targets, task)
    )


def _wrong_inputs(inputs: object, spec: TaskSpec, *, fixed: bool) -> str | None:
    if not isinstance(inputs, Tensor):
        return f"has inputs that are {type(inputs).__name__}, not a tensor"
    channels = (spec.channels,) if spec.input == "image" else ()
    meant = (*channels, *spec.grid)
    grid = tuple(inputs.shape[1 + len(channels) :])
    as_meant = inputs.ndim == 1 + len(meant) and tuple(inputs.shape[1 : 1 + len(channels)]) == channels
    if not as_meant or (fixed and grid != spec.grid):
        said = ", ".join(map(str, meant))
        return f"has inputs of shape {tuple(inputs.shape)}, where its spec says (n, {said})"
    if spec.input == "image":
        return None if inputs.is_floating_point() else f"has images of {_dtype(inputs)}: they must be floats"
    if inputs.dtype != torch.int64:
        return f"has tokens of {_dtype(inputs)}: they must be int64"
    return _out_of_range("tokens", inputs, spec.channels, "channels")


def _wrong_targets(inputs: Tensor, targets: object, spec: TaskSpec) -> str | None:
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        kind = _dtype(targets) if isinstance(targets, Tensor) else type(targets).__name__
        return f"has targets that are {kind}: they must be class ids, int64"
    meant = inputs.shape[:1] if spec.output == "one" else (len(inputs), *inputs.shape[-len(spec.grid) :])
    if tuple(targets.shape) != tuple(meant):
        return (
            f"has targets of shape {tuple(targets.shape)}, where output={spec.output!r} takes {tuple(meant)}"
        )
    asked = targets != IGNORE if spec.output == "per-token" else torch.ones_like(targets, dtype=torch.bool)
    if not asked.view(len(targets), -1).any(1).all():
        return f"has an example that asks nothing: all of its targets are {IGNORE}"
    return _out_of_range("targets", targets[asked], spec.classes, "classes")


def _wrong_loss(targets: Tensor, task: Task) -> str | None:
    """Whether the loss and the scorer cannot take what a model would answer."""
    spec = task.spec
    assert isinstance(task, Classification), "the registry takes no other class of the user's"
    answers = torch.zeros(*targets.shape, spec.classes)  # (n, classes) or (n, *grid, classes)
    try:
        task.loss(answers, targets)
        scorer = task.scorer()
        scorer.add(answers, targets, torch.arange(len(targets)))
        metrics = scorer.metrics()
    except Exception as error:  # of whatever kind
        per_token = "; a task with answers per token derives from TokenClassification"
        hint = per_token if spec.output == "per-token" else ""
        return f"has a loss or a measure that cannot take answers and targets ({_said(error)}{hint})"
    if task.metric.name not in metrics:
        return f"measures {', '.join(metrics)}, but not its metric {task.metric.name}"
    return None


def _out_of_range(what: str, values: Tensor, size: int, name: str) -> str | None:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < size:
        return None
    return f"has {what} from {low} to {high}, where {size} {name} are 0 to {size - 1}"


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
