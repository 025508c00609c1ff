"""What the finite test set adds to the error of a difference, from the stored answers of both arms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.predictions import STORED, load_predictions
from analysis.records import Study, Trial
from analysis.statistics import ExampleScores, Floats, Scored, pooled_sampling_error, sampling_error

TestSets = Literal["the same", "overlapping", "disjoint"]


@dataclass(frozen=True)
class SamplingErrors:
    """Standard errors that come from the finite test sets, in difference units; NaN without predictions."""

    one_seed: float = math.nan  # root mean square over seeds
    mean: float = math.nan  # of the difference averaged over seeds
    test_sets: TestSets | None = None  # of several seeds, and so how much of this error their interval holds
    identical_predictions: bool = False  # the two arms predict the same on every example of every seed
    unreadable: str = ""  # stored predictions that are damaged, or missing where other trials have theirs


@dataclass(frozen=True)
class Answers:
    """What a baseline's trial answered on its test split, and how many targets of each example were right."""

    scored: Scored
    prediction: NDArray[Any]
    right: Floats


Baselines = dict[str, Answers | None]
"""By id of the trial: many arms share a baseline, which is read once."""


def sampling_errors(
    study: Study, finished: list[tuple[Trial, Trial]], baselines: Baselines
) -> SamplingErrors:
    """Sampling error of the test set, if the metric is an accuracy and all pairs have stored predictions."""
    if "accuracy" not in study.metric.name or not finished:
        return SamplingErrors()
    scale = 100.0 if study.metric.unit == "%" else 1.0
    scores, identical = [], True
    for a, b in finished:
        if b.trial_id not in baselines:
            baselines[b.trial_id] = _answers(b)
        of_a, of_b = load_predictions(a, ("example", "prediction")), baselines[b.trial_id]
        if of_a is None or of_b is None:
            return SamplingErrors(unreadable=_unreadable(a if of_a is None else b, finished))
        if not np.array_equal(of_a["example"], of_b.scored.example):
            return SamplingErrors()
        try:
            pair = ExampleScores(of_b.scored, of_b.scored.right(of_a["prediction"]) - of_b.right)
        except ValueError:  # shapes that do not fit: not predictions of these targets
            return SamplingErrors()
        # Predictions that do not reproduce the recorded difference belong to another checkpoint: no error is
        # better than a wrong one.
        recorded = a.metric("test", study.metric.name) - b.metric("test", study.metric.name)
        if not abs(scale * pair.difference - recorded) <= 1e-4 * scale:
            return SamplingErrors()
        scores.append(pair)
        identical = identical and np.array_equal(of_a["prediction"], of_b.prediction)
    return SamplingErrors(
        one_seed=scale * math.sqrt(sum(sampling_error(s) ** 2 for s in scores) / len(scores)),
        mean=scale * pooled_sampling_error(scores),
        test_sets=_test_sets([score.scored.example for score in scores]),
        identical_predictions=identical,
    )


def _unreadable(trial: Trial, finished: list[tuple[Trial, Trial]]) -> str:
    """What cannot be read of a trial; nothing where none of its like has predictions."""
    stored = any((each.folder / STORED).exists() for pair in finished for each in pair)
    return str(trial.folder / STORED) if stored and not trial.own_metric else ""


def _answers(baseline: Trial) -> Answers | None:
    stored = load_predictions(baseline, ("example", "target", "prediction"))
    if stored is None:
        return None
    try:
        scored = Scored.of(stored["example"], stored["target"])
        return Answers(scored, stored["prediction"], scored.right(stored["prediction"]))
    except ValueError:
        return None


def _test_sets(examples: list[NDArray[np.int64]]) -> TestSets | None:
    """How the test sets of the seeds share examples; None of a single seed."""
    if len(examples) < 2:
        return None
    distinct = len(np.unique(np.concatenate(examples)))
    if distinct == max(len(each) for each in examples):
        return "the same"
    return "disjoint" if distinct == sum(len(each) for each in examples) else "overlapping"
