"""What a token can see: scan orders, single mixers, whole models before and after training, and what a model
answers where it must have seen far.

Every map is a grid of numbers. For a mixer, the influence of an input token on the output at the centre is
the mean absolute gradient of random projections of that output; for a model, the effective receptive field
(Luo et al., arXiv 1701.04128) is that of the centre feature with respect to the pixels, over test images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.build import create_task
from experiments.skeletons.base import Skeleton
from experiments.tasks.base import IGNORE
from experiments.tasks.scenes import QUESTIONS, Scenes, SceneSegmentation, as_batch
from experiments.trained import Trained, trained
from mixers import MIXERS
from mixers.registry import InputError
from mixers.scan_orders import scan_pattern

DIM = 16
DRAWS = 8  # initialisations, inputs and projections that an influence is averaged over
IMAGES = 64
PIXELS = 2**18  # of large images fewer are taken
CANVASES = 3
ORDER_GRID = (8, 8)
SCANS: dict[str, dict[str, int]] = {
    "forward": {},
    "bidirectional": {},
    "cross": {},
    "local": {"window": 4},
    "continuous": {},
    "atrous": {"atrous_step": 2},
}


@dataclass(frozen=True)
class Cell:
    """One number of one map.

    Attributes:
        figure: "scan_orders", "influence", "receptive_fields" or "scenes".
        panel: which map: a scan, a mixer, an arm of a study, or "canvas" and "truth".
        part: which of the maps of a panel: an order and its segment, "before" and "after" training, or a
            canvas and what its pixels are asked, "1 own".
        row: from the top.
        column: from the left.
        value: the step of a visit; an influence, of which the largest in a map is 1; the brightness of a
            canvas, or the class answered.
    """

    figure: str
    panel: str
    part: str
    row: int
    column: int
    value: float


def look(mixers: Sequence[str], runs: Path, study: str | None, side: int) -> list[Cell]:
    """All the maps.

    Args:
        mixers: texts of mixers, e.g. ``ssm(scan=cross)``.
        runs: folder whose trained trials are looked at.
        study: only those of this study; None for every image study.
        side: of the square grid that a single mixer is looked at on.

    Raises:
        InputError: an unknown study, mixer or option, or one that does not fit the grid.
    """
    models = list(trained(runs, study))
    cells = list(scan_orders())
    for text in mixers:
        cells += _cells("influence", text, "", mixer_influence(text, side))
    cells += scene_answers(models)
    for each in models:
        if create_task(each.trial.task).spec.input == "image":
            for part, model in (("before", each.initial()), ("after", each.load())):
                cells += _cells("receptive_fields", each.name, part, receptive_field(each, model))
    return cells


def scan_orders() -> Iterator[Cell]:
    """Each walk of each scan over a small grid: the step at which a token is visited."""
    for name, options in SCANS.items():
        pattern = scan_pattern(name, 2, window=options.get("window"), atrous_step=options.get("atrous_step"))
        for number, make_order in enumerate(pattern.orders):
            order = make_order(ORDER_GRID, None)
            step = 0
            for segment, tokens in enumerate(order.tokens.split(order.segments)):
                for token in tokens.tolist():
                    row, column = divmod(token, ORDER_GRID[1])
                    part = f"order {number + 1}, segment {segment + 1}"
                    yield Cell("scan_orders", name, part, row, column, step)
                    step += 1


def mixer_influence(text: str, side: int) -> Tensor:
    """(side, side): what the output at the centre depends on in a fresh mixer, the largest being 1.

    Raises:
        InputError: the mixer is unknown, or does not take images.
    """
    component = MIXERS.parse(text)
    mixer_class = MIXERS.load(component.name)
    resolved = MIXERS.resolve(component, mixer_class.place_defaults(2, False))
    total = torch.zeros(side, side)
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        try:
            mixer = MIXERS.create(resolved, DIM, 2)
        except ValueError as error:
            raise InputError(f"mixer {text}: {error}") from None
        x = torch.randn(1, side, side, DIM, requires_grad=True)
        y = mixer.eval()(x)[0, side // 2, side // 2]  # (C,)
        (y @ torch.randn(DIM)).backward()
        if x.grad is not None:
            total += x.grad[0].abs().sum(-1)
    return _scaled(total)


def receptive_field(each: Trained, model: Skeleton) -> Tensor:
    """(H, W): what the feature at the centre depends on in the pixels of test images, the largest being 1."""
    task = create_task(each.trial.task)
    count = max(1, min(IMAGES, PIXELS // math.prod(task.spec.grid)))
    batch = next(iter(task.load(each.trial.seed).batches("test", count)))
    images = torch.stack(list(batch.inputs)).requires_grad_()  # (B, channels, H, W)
    features = model.forward_features(images)  # (B, *grid, C)
    height, width = features.shape[1:3]
    features[:, height // 2, width // 2].sum().backward()
    assert images.grad is not None
    return _scaled(images.grad.abs().sum((0, 1)))


def scene_answers(models: Sequence[Trained]) -> Iterator[Cell]:
    """What every model answers at the digits of the same few canvases, beside the canvas and the truth.

    Models of other tasks are passed over, and so are those that were tested on other canvases than the first.
    """
    shown: Scenes | None = None
    for each in models:
        task = create_task(each.trial.task)
        if not isinstance(task, SceneSegmentation):
            continue
        data = task.load(each.trial.seed)
        scenes = Scenes(*(tensor[:CANVASES] for tensor in data.scenes("test")))
        batch = as_batch(scenes, torch.arange(CANVASES))
        if shown is None:
            shown = scenes
            yield from _canvases(scenes, batch.targets)
        if not torch.equal(scenes.images, shown.images):
            continue
        with torch.inference_mode():
            answers = task.answers(each.load()(batch.inputs), scenes.images.shape[1:])
        for question, answer in answers.items():
            yield from _where_asked(each.name, question, answer, batch.targets)


def _canvases(scenes: Scenes, targets: dict[str, Tensor]) -> Iterator[Cell]:
    for number, image in enumerate(scenes.images.clamp(0, 1), start=1):
        yield from _cells("scenes", "canvas", str(number), image)
    for question in QUESTIONS:
        yield from _where_asked("truth", question, targets[question], targets)


def _where_asked(panel: str, question: str, answer: Tensor, targets: dict[str, Tensor]) -> Iterator[Cell]:
    for number, row, column in (targets[question] != IGNORE).nonzero().tolist():
        value = float(answer[number, row, column])
        yield Cell("scenes", panel, f"{number + 1} {question}", row, column, value)


def _scaled(influence: Tensor) -> Tensor:
    largest = influence.max()
    return influence / largest if largest > 0 else influence


def _cells(figure: str, panel: str, part: str, values: Tensor) -> Iterator[Cell]:
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            yield Cell(figure, panel, part, row, column, value)
