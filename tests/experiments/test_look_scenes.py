"""Answers of trained models on a few canvases, as maps and as a figure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis import look as figures
from analysis.drawing import paper_style
from experiments import look
from experiments.build import resolve
from experiments.skeletons import SKELETONS
from experiments.tasks import TASKS
from experiments.tasks.base import IGNORE
from experiments.trained import _once
from experiments.trial import Recipe, Trial
from mixers import MIXERS


class Says(nn.Module):
    """Answers every pixel the same: a 3, and a framed 7."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 4, 4, 20)
        logits[..., 3] = logits[..., 10 + 7] = 1.0
        return logits


@dataclass
class Stored:
    name: str
    trial: Trial

    def load(self) -> nn.Module:
        return Says()


def trial(task: str, seed: int = 0) -> Trial:
    skeleton = SKELETONS.parse("isotropic-dense" if task.startswith("scenes") else "isotropic-nano")
    return resolve(MIXERS.parse_pattern("identity"), skeleton, TASKS.parse(task), Recipe(), seed)


def test_answers_stand_where_they_were_asked() -> None:
    task = "scenes(side=2, digits=2, test=5)"
    models = [Stored("one", trial("digits")), Stored("two", trial(task)), Stored("three", trial(task, 1))]
    cells = list(look.scene_answers(models))
    batch = next(TASKS.create(TASKS.parse(task)).load(0).batches("test", look.CANVASES))
    assert {cell.panel for cell in cells} == {"canvas", "truth", "two"}, "the third has other canvases"
    assert {cell.figure for cell in cells} == {"scenes"}
    for question, said in (("own", 3), ("key", 7)):
        labels = batch.targets[question]
        for number in range(look.CANVASES):
            found = {
                panel: {
                    (cell.row, cell.column): cell.value
                    for cell in cells
                    if (cell.panel, cell.part) == (panel, f"{number + 1} {question}")
                }
                for panel in ("truth", "two")
            }
            asked = (labels[number] != IGNORE).nonzero().tolist()
            assert found["truth"] == {(r, c): float(labels[number, r, c]) for r, c in asked}
            assert found["two"] == {(r, c): float(said) for r, c in asked}
    with paper_style():
        drawing = figures.scenes([dataclasses.asdict(cell) for cell in cells])
    assert drawing is not None
    assert len(drawing.files["csv"].splitlines()) == 1 + len(cells)
    assert figures.scenes([]) is None


def test_a_trial_behind_several_cases_comes_once_and_is_called_by_its_arm() -> None:
    planned = [("a @ own", "a", "1"), ("b @ own", "b", "2"), ("a @ key", "a", "1"), ("b @ key", "b", "3")]
    assert _once(planned) == [("a", "1"), ("b @ own", "2"), ("b @ key", "3")]
