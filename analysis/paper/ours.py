"""Our own trials, beside which the published numbers are put: every study that has records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.records import RecordError, Study, load_study
from analysis.summary import ArmSummary, summarise
from analysis.verdict import Comparison, judge

CHECKED_IN = Path(__file__).parents[2] / "experiments" / "results" / "cpu"
"""Records of the studies that come with this project, a runs folder like any other."""


@dataclass(frozen=True)
class OurStudy:
    """A study, its arms, its comparisons, and the runs folder that it was read from."""

    study: Study
    arms: dict[str, ArmSummary]
    comparisons: list[Comparison]
    folder: Path

    @property
    def in_percent(self) -> bool:
        """Whether its numbers may stand beside accuracies."""
        return self.study.metric.unit == "%"

    @property
    def finished(self) -> bool:
        return any(arm.test.n for arm in self.arms.values())


def find_studies(folders: Sequence[Path]) -> tuple[list[OurStudy], list[str]]:
    """The studies of some runs folders that have results, by name, and a sentence for each unreadable one.

    A study that several folders have is taken from the first.
    """
    found: dict[str, OurStudy] = {}
    notes = []
    for folder in folders:
        for plan in sorted((folder / "studies").glob("*/plan.json")):
            name = plan.parent.name
            if name in found:
                continue
            try:
                study = load_study(plan.parent, folder / "trials")
            except RecordError as error:
                notes.append(f"{name} is left out: {str(error).replace(f'{folder}/', '')}")
                continue
            arms = summarise(study)
            ours = OurStudy(study, arms, judge(study, arms), folder)
            if ours.finished:
                found[name] = ours
    return [found[name] for name in sorted(found)], notes
