"""Accuracy of a trained image model, given as a file of weights, on a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from experiments import pretrained
from experiments.build import build_model, choose_backend, create_task, resolve
from experiments.evaluate import Evaluator
from experiments.machine import torch_device
from experiments.request import EvaluateRequest
from experiments.skeletons import SKELETONS
from experiments.tasks import TASKS
from experiments.tasks.images import Images
from experiments.tasks.reading import FilesRead, Reading
from experiments.trial import Recipe
from mixers import MIXERS, InputError

CLASSIFIER = "head.fc.bias"


@dataclass(frozen=True)
class Evaluated:
    """What a model reaches.

    Attributes:
        model: skeleton and mixers with every option, and weights with their hash.
        task: with every option.
        classes: that it has.
        examples: how many were answered.
        unreadable: images that were passed over.
        metrics: accuracy and top_5 in %, loss.
    """

    model: str
    task: str
    classes: int
    examples: int
    unreadable: int
    metrics: dict[str, float]


def evaluate_weights(asked: EvaluateRequest) -> Evaluated:
    """Build the model, read the weights, answer the test split.

    Raises:
        InputError: weights, model and data do not fit each other, or something is not there.
    """
    torch.set_num_threads(asked.threads)
    skeleton = SKELETONS.parse(asked.skeleton)
    component = TASKS.parse(asked.task).with_options(asked.options.get("task", {}))
    if component.name != "images":
        raise InputError(f"evaluate reads the task images, not {component.name}")
    weights = pretrained.read(asked.weights, skeleton.name)
    if CLASSIFIER not in weights:
        raise InputError(f"weights {asked.weights} have no classifier of images ({CLASSIFIER})")
    classes = len(weights[CLASSIFIER])
    trial = resolve(
        MIXERS.parse_pattern(asked.mixer),
        skeleton.with_options(asked.options.get("skeleton", {})),
        component.with_options({"classes": classes, **component.options}),
        Recipe(weights=asked.weights, precision=asked.precision),
        seed=0,
    )
    task = create_task(trial.task)
    assert isinstance(task, Images)
    data = task.load_test()
    assert isinstance(data, FilesRead)
    device = torch_device(asked.device)
    data.read_with(Reading(asked.loaders, pin=device.type == "cuda"))
    model = build_model(trial, new_head=False).to(device)
    choose_backend(model, "auto", device)
    try:
        metrics, answers = Evaluator(task, data, device, asked.precision).answer(model, "test")
    finally:
        data.close()
    return Evaluated(
        f"{trial.skeleton} with {trial.mixer_text}, weights {trial.train.weights}",
        str(trial.task),
        classes,
        len(answers["example"]),
        len(data.unreadable),
        metrics,
    )
