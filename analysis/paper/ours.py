"""Our own trials, beside which the published numbers are put: every study that has records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import quantities as q
from analysis.comparison import Comparison
from analysis.read_records import load_study
from analysis.records import MISSING, RecordError, Study
from analysis.summary import ArmSummary, summarise
from analysis.verdict import judge

CHECKED_IN = Path(__file__).parents[2] / "experiments" / "results" / "cpu"
"""Records of the studies that come with this project, a runs folder like any other."""


Result = tuple[Path, str]
"""The folder of a trial, which another machine's result of the same trial does not share, and the metric."""


@dataclass(frozen=True)
class OurStudy:
    """A study, its arms, its comparisons, and the runs folder that it was read from."""

    study: Study
    arms: dict[str, ArmSummary]
    comparisons: list[Comparison]
    folder: Path

    @property
    def checked_in(self) -> bool:
        """Whether its records come with this project."""
        return self.folder.resolve() == CHECKED_IN.resolve()

    @property
    def label(self) -> str:
        """``ours: NAME``, or ``ours, checked in: NAME``."""
        return f"ours{', checked in' if self.checked_in else ''}: {self.study.name}"

    @property
    def place(self) -> str:
        """Tasks and skeletons without their options: ``digits in isotropic-nano``."""
        tasks, skeletons = (
            list(dict.fromkeys(text.partition("(")[0] for text in self.study.settings[what]))
            for what in ("task", "skeleton")
        )
        return f"{q.listing(tasks)} in {q.listing(skeletons)}"

    @property
    def in_percent(self) -> bool:
        """Whether its numbers may stand beside accuracies."""
        return self.study.metric.unit == "%"

    def compared(self, arm: str) -> str:
        """The metric by which an arm is compared."""
        return self.study.arms[arm].metric or self.study.metric.name

    @property
    def on_one_scale(self) -> bool:
        """Whether all its arms are measured by the same percentage on the same task."""
        study = self.study
        one_task = len(study.settings["task"]) == 1
        return self.in_percent and one_task and not any(arm.metric for arm in study.arms.values())

    @property
    def finished(self) -> bool:
        return any(arm.test.n for arm in self.arms.values())

    @property
    def results(self) -> set[Result]:
        """Of all its trials that have one."""
        metric = self.study.metric.name
        return {(trial.folder, trial.own_metric or metric) for trial in self.study.trials if trial.result}

    @property
    def complete(self) -> bool:
        """Whether every trial has come to something, if only to a failure."""
        return not any(arm.arm.with_status(MISSING) for arm in self.arms.values())

    def covers(self, other: OurStudy) -> bool:
        """Whether it has as many finished trials of every arm as another study has."""
        return all(
            name in self.arms and self.arms[name].test.n >= arm.test.n for name, arm in other.arms.items()
        )


def find_studies(folders: Sequence[Path]) -> tuple[list[OurStudy], list[str]]:
    """The studies of some runs folders that have results, by name, and a sentence for each that is not shown.

    A study that several folders have is taken from the first, unless a later one has more finished trials of
    some arm: one that is barely begun hides no complete one. One whose results are all part of another's in
    its folder is left out.
    """
    found: dict[str, OurStudy] = {}
    damaged: dict[str, str] = {}
    behind: dict[str, OurStudy] = {}
    for folder in folders:
        for plan in sorted((folder / "studies").glob("*/plan.json")):
            name = plan.parent.name
            try:
                study = load_study(plan.parent, folder / "trials")
            except RecordError as error:
                if name not in found:
                    damaged.setdefault(name, str(error).replace(f"{folder}/", ""))
                continue
            arms = summarise(study)
            ours = OurStudy(study, arms, judge(study, arms), folder)
            if name in found and not found[name].covers(ours):
                behind[name] = found.pop(name)
            if ours.finished:
                found.setdefault(name, ours)
    notes = [_not_read(name, error, found.get(name)) for name, error in sorted(damaged.items())]
    parts = _parts({name: ours.results for name, ours in found.items()})
    notes += [_behind(name, behind[name], found[name]) for name in sorted(behind)]
    notes += [f"{name} is left out: its trials are all part of {whole}" for name, whole in parts.items()]
    return [found[name] for name in sorted(found) if name not in parts], notes


def _parts(results: dict[str, set[Result]]) -> dict[str, str]:
    """The studies whose results are all among those of another, and which that is: the largest.

    Of several with the same results the shortest name stays: the command line adds to the name of a file
    what it changes.
    """
    largest_first = sorted(results, key=lambda name: (-len(results[name]), len(name), name))
    parts = {}
    for place, name in enumerate(largest_first):
        wholes = [other for other in largest_first[:place] if results[name] <= results[other]]
        if wholes:
            parts[name] = wholes[0]
    return dict(sorted(parts.items()))


def _not_read(name: str, error: str, shown: OurStudy | None) -> str:
    """What became of a study whose plan is damaged."""
    if shown is None:
        return f"{name} is left out: {error}"
    return f"{name}: yours cannot be read, {_which(shown)} is shown: {error}"


def _behind(name: str, own: OurStudy, shown: OurStudy) -> str:
    """What became of a study of which another folder has more."""
    have, has = (sum(arm.test.n for arm in ours.arms.values()) for ours in (own, shown))
    return f"{name}: of yours {q.plural(have, 'trial')} are finished, {_which(shown)} with {has} is shown"


def _which(shown: OurStudy) -> str:
    return "the checked-in one" if shown.checked_in else f"that of {shown.folder}"


def widest(studies: Sequence[OurStudy]) -> OurStudy | None:
    """The study to stand beside Figure 1(b): of the complete ones the user's own, and of these the best fit.

    Best is the paper's own task, then digits-ladder, then the most arms with results.
    """

    def fitness(ours: OurStudy) -> tuple[bool, bool, bool, bool, int]:
        paper = ours.study.settings["task"][0].partition("(")[0] == "images"
        arms = sum(arm.test.n > 0 for arm in ours.arms.values())
        ladder = ours.study.name == "digits-ladder"
        return ours.complete, not ours.checked_in, paper, ladder, arms

    return max((ours for ours in studies if ours.on_one_scale), key=fitness, default=None)
