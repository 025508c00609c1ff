"""The one place where a mixer meets a skeleton and a task, and where unknown options fail."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn

from experiments import cost, pretrained
from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.base import Skeleton
from experiments.tasks import TASKS
from experiments.tasks import contract as task_contract
from experiments.tasks.base import Task, generator
from experiments.trial import Recipe, Trial, stream
from mixers import MIXERS, Component, InputError, backends, contract
from mixers.base import TokenMixer
from mixers.registry import is_own, suggest

SMALL_MODEL = 1_000_000  # parameters
SMALL_GRID = 4096  # tokens or pixels


def resolve(
    mixer: tuple[Component, ...],
    skeleton: Component,
    task: Component,
    train: Recipe,
    seed: int,
) -> Trial:
    """Fill in every option, so that the trial says all that determines its number.

    Raises:
        InputError: an unknown option, a wrong type, a value out of range.
    """
    task = _settled(TASKS.resolve(task))
    spec = create_task(task).spec
    if train.mixup or train.cutmix:
        if spec.input != "image":
            raise InputError(f"mixup and cutmix mix images, but task {task.name} has {spec.input}")
        if train.batch_size % 2:
            raise InputError(f"mixup and cutmix mix pairs: a batch of {train.batch_size} is no even number")
        if spec.output != "one":
            raise InputError(
                f"mixup and cutmix mix labels of whole images, but task {task.name} asks for {spec.output}"
            )
    if train.label_smoothing and spec.output == "instances":
        raise InputError(
            f"task {task.name} is trained with losses that know no label smoothing; set "
            "--train.label-smoothing 0"
        )
    skeleton = SKELETONS.resolve(skeleton, option_defaults(skeleton, spec.output))
    rank = len(spec.grid)
    mixers = tuple(
        MIXERS.resolve(each, MIXERS.load(each.name).place_defaults(rank, spec.causal)) for each in mixer
    )
    for chosen in {each.name: each for each in mixers if is_own(each.name)}.values():
        contract.check(chosen.name, MIXERS.load(chosen.name), chosen.options, rank)
    if train.weights is not None:
        train = dataclasses.replace(train, weights=pretrained.with_source(train.weights, skeleton.name))
    return Trial(mixers, skeleton, task, train, seed)


def _settled(task: Component) -> Component:
    """The task with the options filled in that only its data can tell, if it has such."""
    settle = getattr(TASKS.load(task.name), "settle", None)
    return task if settle is None else Component(task.name, settle(task.options))


def create_task(component: Component) -> Task:
    """The task of a trial, without its data.

    Raises:
        InputError: it is a class of the user's that does not say what a task must.
    """
    if is_own(component.name):
        return task_contract.create(component.name, lambda: TASKS.create(component))
    return TASKS.create(component)


def build_model(trial: Trial, *, new_head: bool = True) -> Skeleton:
    """The model of a trial, initialised from its seed alone, or from the weights that its recipe names.

    Each mixer initialises itself under a seed of its layer; each parameter of the skeleton has its own
    stream. So a parameter that two arms share in name and shape starts at the same value in both.

    Args:
        trial: whose.
        new_head: whether weights for another number of classes are taken without their classifier.

    Raises:
        InputError: the mixer does not fit the skeleton, or sees the future of a causal task; or the weights
            are not there or are another model's.
    """
    spec = create_task(trial.task).spec
    model = assemble(trial.mixer, trial.skeleton, f"task {trial.task.name}", spec, trial.seed)
    if trial.train.weights is not None and not next(model.parameters()).is_meta:
        pretrained.load(model, trial.train.weights, trial.skeleton.name, new_head=new_head)
    return model


def assemble(
    mixers: tuple[Component, ...], skeleton: Component, asked_by: str, spec: TaskSpec, seed: int
) -> Skeleton:
    """Mixers in a skeleton, all options resolved, for any task, which error messages call `asked_by`.

    Raises:
        InputError: the mixer does not fit the skeleton, sees the future of a causal task, or cannot be built
            on the meta device.
    """
    entry = SKELETONS.load(skeleton.name)
    places: set[int] = set()

    def mixer(dim: int, *, grid_rank: int, stage: int, layer: int) -> TokenMixer:
        place = stage if entry.pattern_over == "stage" else layer
        places.add(place)
        chosen = mixers[place % len(mixers)]
        torch.manual_seed(stream(seed, "init", "mixer", layer))
        try:
            built = MIXERS.load(chosen.name)(dim, grid_rank, **chosen.options)
        except ValueError as error:
            raise InputError(f"mixer {chosen.name}: {error}") from None
        except Exception as error:
            if is_own(chosen.name):  # which could be built small, and on the meta device
                raise contract.too_special(chosen.name, dim, error) from error
            if torch.get_default_device().type != "meta" or not isinstance(error, RuntimeError):
                raise
            raise contract.needs_values(chosen.name, error) from error
        if spec.causal and not built.causal:
            raise InputError(
                f"{asked_by} is causal, but mixer {chosen} sees later tokens; choose a causal one such as "
                "causal-conv, causal-attention or ssm, for --mixer and for --baseline"
            )
        return built

    make: Callable[..., Skeleton] = entry  # the arguments are those of its subclasses
    with torch.random.fork_rng(devices=[]):
        model = make(mixer, spec, **skeleton.options)
    _check_pattern(mixers, skeleton.name, entry.pattern_over, len(places))
    model.init_weights(lambda parameter: generator(stream(seed, "init", parameter)))
    return model


def _check_pattern(mixers: tuple[Component, ...], skeleton: str, over: str, places: int) -> None:
    """Several mixers fit if each has its place: one per stage, or a pattern that repeats over the layers.

    Raises:
        InputError: they do not.
    """
    count = len(mixers)
    if count == 1 or (over == "stage" and count == places) or (over == "layer" and count <= places):
        return
    wanted = (
        f"one mixer or {places}, one per stage" if over == "stage" else f"at most {places}, one per layer"
    )
    raise InputError(f"{skeleton} takes {wanted}; {count} mixers were given")


def choose_backend(model: nn.Module, requested: str, device: torch.device) -> dict[str, str]:
    """Settle which kernels the model's scans and convolutions run on.

    Args:
        model: its modules are told.
        requested: "auto" or a name; an operation that has no backend of that name is left at "auto".
        device: where the model is.

    Returns:
        The backend of every operation of the model that has a choice on such a device.

    Raises:
        InputError: a backend that nothing has, or one that cannot run here (with the fix).
    """
    chosen: dict[str, str] = {}
    for module in model.modules():
        if isinstance(module, backends.HasBackend) and module.operation is not None:
            if module.operation not in chosen:
                chosen[module.operation] = backend_of(module.operation, requested, device)
            module.backend = chosen[module.operation]
    return {key: name for key, name in chosen.items() if backends.OPERATIONS[key].has_choice(device.type)}


def backend_of(operation: str, requested: str, device: torch.device) -> str:
    """What `choose_backend` settles for one operation.

    Raises:
        InputError: as there.
    """
    known = [name for each in backends.OPERATIONS.values() for name in each.backends]
    if requested in known and requested not in backends.OPERATIONS[operation].backends:
        requested = "auto"
    if requested not in ("auto", *known):
        names = ", ".join(dict.fromkeys(("auto", *known)))
        raise InputError(f"unknown backend {requested!r}{suggest(requested, known)} (known: {names})")
    try:
        return backends.resolve(requested, device, operation=operation)[0]
    except (ValueError, backends.BackendUnavailable) as error:
        raise InputError(str(error)) from None


def count_costs(trial: Trial) -> cost.Costs:
    """What the trial's model costs, without allocating it."""
    with torch.device("meta"):
        return cost.costs_of(build_model(trial), create_task(trial.task).spec)


def count_params(trial: Trial) -> int:
    """`count_costs(trial).params`, without running the model on anything."""
    with torch.device("meta"):
        return cost.count_params(build_model(trial))


def mixer_channels(trial: Trial) -> list[int]:
    """Channels of the trial's token mixers, each width once, from the first layer on."""
    with torch.device("meta"):
        return list(dict.fromkeys(mixer.dim for _, mixer in cost.token_mixers(build_model(trial))))


def check(trial: Trial, tested_on: tuple[int, ...] | None = None) -> None:
    """Build the trial's model and run it on nothing, so that what does not fit fails before anything trains.

    The weights that it starts from are compared with it, too.

    A small model really runs, on zeros: what torch imports to run a model of the meta device takes longer.

    Args:
        trial: whose model.
        tested_on: the grid of the further test set that is compared; None for the test split.

    Raises:
        InputError: as `build_model`, or from a part of the model that refuses the shape of what it is trained
            or tested on.
    """
    spec = create_task(trial.task).spec
    grids = [spec.grid] if tested_on is None else [spec.grid, tested_on]
    small = max(map(math.prod, grids)) <= SMALL_GRID and count_params(trial) <= SMALL_MODEL
    with torch.device("cpu" if small else "meta"):
        model = assemble(trial.mixer, trial.skeleton, f"task {trial.task.name}", spec, trial.seed)
        for grid in grids:
            cost.run_on_nothing(model, dataclasses.replace(spec, grid=grid))
    if trial.train.weights is not None:
        try:
            pretrained.fitted(model, trial.train.weights, trial.skeleton.name, new_head=True)
        except InputError as error:
            raise InputError(f"mixer {','.join(each.name for each in trial.mixer)}: {error}") from None
