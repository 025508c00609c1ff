"""What finite test sets add to the error of a difference, on predictions written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from analysis.read_records import load_study
from analysis.sampling import SamplingErrors
from analysis.summary import summarise
from analysis.verdict import judge

Write = Callable[..., Any]
EXAMPLES = 400


@pytest.fixture
def sampled(write_records: Write) -> Callable[..., SamplingErrors]:
    """Of an arm that alone is right on its `gains` first examples by seed, and alone wrong on 4 others."""

    def sampled(
        gains: Sequence[int], sets: Sequence[Sequence[int]], unit: str = "%", **metric: Any
    ) -> SamplingErrors:
        each = 100 / EXAMPLES if unit == "%" else 1 / EXAMPLES
        values = {"conv": [300 * each] * len(gains), "ssm": [(300 + gain - 4) * each for gain in gains]}
        named = {"name": "accuracy", "unit": unit, "difference_unit": unit, "higher_is_better": True}
        records = write_records(values, metric=named | metric)
        for seed, (gain, examples) in enumerate(zip(gains, sets, strict=True)):
            conv = np.zeros(EXAMPLES, dtype=int)
            conv[300:] = 1
            ssm = conv.copy()
            ssm[300 : 300 + gain] = 0
            ssm[:4] = 1
            for arm, prediction in (("conv", conv), ("ssm", ssm)):
                path = records.folder(arm, seed) / "predictions.npz"
                np.savez(path, example=examples, target=np.zeros(EXAMPLES, dtype=int), prediction=prediction)
                records.edit(arm, seed, metrics={"test": {"accuracy": values[arm][seed]}})
        study = load_study(records.study, records.trials)
        (comparison,) = judge(study, summarise(study))
        return comparison.sampling

    return sampled


def mcnemar(gain: int, loss: int = 4) -> float:
    """Variance of one seed's difference, as a fraction."""
    return (gain + loss) / EXAMPLES**2 - (gain - loss) ** 2 / EXAMPLES**3


FIRST, NEXT, LAST = range(400), range(400, 800), range(800, 1200)
ONE_INSIDE = range(399, 799)  # shares one example with the first


@pytest.mark.parametrize("unit", ["%", "fraction"])
def test_of_one_seed_it_is_the_root_mean_square_and_of_test_sets_apart_their_mean(
    sampled: Callable[..., SamplingErrors], unit: str
) -> None:
    found = sampled((10, 30, 60), (FIRST, NEXT, LAST), unit)
    variances = [mcnemar(gain) for gain in (10, 30, 60)]
    scale = 100 if unit == "%" else 1
    assert found.one_seed == pytest.approx(scale * math.sqrt(sum(variances) / 3))
    assert found.mean == pytest.approx(scale * math.sqrt(sum(variances)) / 3)
    assert not found.identical_predictions


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((FIRST,), None),
        ((FIRST, FIRST), "the same"),
        ((FIRST, FIRST[::-1]), "the same"),
        ((FIRST, NEXT), "disjoint"),
        ((FIRST, ONE_INSIDE), "overlapping"),
    ],
)
def test_how_test_sets_lie(
    sampled: Callable[..., SamplingErrors], sets: tuple[range, ...], said: str | None
) -> None:
    assert sampled((10,) * len(sets), sets).test_sets == said


def test_predictions_are_identical_only_if_they_are_on_every_seed(write_records: Write) -> None:
    records = write_records({"conv": [90.0, 91.0, 92.0], "ssm": [90.0, 91.0, 92.0]})
    for seed in (1, 2):
        stored = (records.folder("conv", seed) / "predictions.npz").read_bytes()
        (records.folder("ssm", seed) / "predictions.npz").write_bytes(stored)
    study = load_study(records.study, records.trials)
    (comparison,) = judge(study, summarise(study))
    assert comparison.sampling.test_sets is not None
    assert not comparison.sampling.identical_predictions


def test_predictions_for_examples_in_another_order_are_not_compared(write_records: Write) -> None:
    """Place by place they would be of different examples."""
    records = write_records({"conv": [90.0, 91.0, 92.0], "ssm": [91.0, 92.0, 94.0]})
    path = records.folder("ssm", 1) / "predictions.npz"
    stored = dict(np.load(path))
    np.savez(path, **(stored | {"example": stored["example"][::-1]}))
    study = load_study(records.study, records.trials)
    (comparison,) = judge(study, summarise(study))
    assert math.isnan(comparison.sampling.mean)
    assert not comparison.sampling.unreadable
