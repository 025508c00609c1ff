"""Which numbers a study may compare, and in whose place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.choose_metric import choose_metric, choose_test_metric, extra_test_of, is_part_of
from experiments.tasks.base import Metric
from mixers.registry import InputError

ACCURACY = Metric("accuracy", "%", "points", True)
KEY = Metric("key_accuracy", "%", "points", True)
ERROR = Metric("error", "%", "points", False)
BITS = Metric("bits", "bits", "bits", True)
TASK: Any = SimpleNamespace(metric=ACCURACY, other_metrics=(KEY, ERROR, BITS))
DATA: Any = SimpleNamespace(extra_tests={"64": (64,), "1024": (1024,)})


def test_the_first_metric_unless_another_is_named() -> None:
    assert choose_metric(TASK, "t", None) == ACCURACY
    assert choose_metric(TASK, "t", "error") == ERROR
    with pytest.raises(InputError, match="task t has no metric 'eror'; did you mean 'error'") as raised:
        choose_metric(TASK, "t", "eror")
    assert "(it has accuracy, key_accuracy, error, bits)" in str(raised.value)


@pytest.mark.parametrize(
    ("wanted", "extra", "part"),
    [
        ("accuracy", None, True),
        ("accuracy_64", "64", True),
        ("key_accuracy", None, False),
        ("key_accuracy_1024", "1024", False),
    ],
)
def test_a_number_of_the_test_split_in_a_metrics_place(wanted: str, extra: str | None, part: bool) -> None:
    found = choose_test_metric(TASK, DATA, "case 64: metric", wanted, like=ACCURACY)
    assert found == Metric(wanted, "%", "points", True)
    assert extra_test_of(found, DATA) == extra
    assert is_part_of(found, ACCURACY) == part


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("accuracy_32", "case 64: metric 'accuracy_32' is not measured"),
        (
            "error_64",
            "'error_64' cannot take the place of accuracy: it is in %, lower is better, and not in %, h",
        ),
        ("bits", "'bits' cannot take the place of accuracy: it is in bits, higher is better"),
    ],
)
def test_what_cannot_take_its_place(wanted: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        choose_test_metric(TASK, DATA, "case 64: metric", wanted, like=ACCURACY)
