"""The four figures of a study, each with the data it was drawn from.

`seeds` shows every finished trial, `differences` what the verdict rests on, `curves` whether training was
done, `costs` the price. Arms are told apart by colour, marker and line style at once, so that a figure
survives grey printing and colour blindness.
"""

from __future__ import annotations

from analysis.comparison import Comparison
from analysis.drawing import Drawing, paper_style
from analysis.panel_figures import costs, curves
from analysis.records import Study
from analysis.row_figures import differences, seeds
from analysis.summary import ArmSummary


def draw_arms(study: Study, arms: dict[str, ArmSummary]) -> list[Drawing]:
    """Draw what the records allow without a verdict; a figure without any data is left out."""
    with paper_style():
        drawings = [draw(study, list(arms.values())) for draw in (seeds, curves, costs)]
    return [drawing for drawing in drawings if drawing is not None]


def draw_comparisons(
    study: Study, arms: dict[str, ArmSummary], comparisons: list[Comparison]
) -> list[Drawing]:
    """Draw what the verdict rests on, if there is any difference."""
    with paper_style():
        drawing = differences(study, list(arms.values()), comparisons)
    return [] if drawing is None else [drawing]
