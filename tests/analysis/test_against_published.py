"""How a number of ours stands to a published one, at every edge of the tolerance, and what the table says."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.against_published import DIFFERS, MATCH, NOT_COMPARABLE, OPEN, published_table, stand
from analysis.read_records import load_study
from analysis.records import PublishedRow
from analysis.statistics import Estimate
from analysis.summary import summarise

Write = Callable[..., Any]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (9.0, 11.0, MATCH),
        (9.5, 10.0, MATCH),
        (8.75, 10.0, OPEN),
        (10.0, 11.25, OPEN),
        (8.0, 12.0, OPEN),
        (8.0, 9.0, OPEN),
        (11.0, 12.0, OPEN),
        (8.0, 8.75, DIFFERS),
        (11.25, 12.0, DIFFERS),
    ],
)
def test_of_an_interval_all_a_part_or_none_is_within_the_tolerance(
    low: float, high: float, word: str
) -> None:
    row = PublishedRow("ssm", 10.0, "A, Table 1", "best of 3", 1.0, None)
    arm: Any = SimpleNamespace(test=Estimate(3, (low + high) / 2, 1.0, low, high))
    assert (stand(row, arm).word, stand(row, arm).reason) == (word, "tolerance 1")


@pytest.mark.parametrize(
    ("n", "word", "why"), [(0, NOT_COMPARABLE, "has finished"), (1, OPEN, "single seed")]
)
def test_without_an_interval_it_cannot_be_told(n: int, word: str, why: str) -> None:
    row = PublishedRow("ssm", 10.0, "A, Table 1", "best of 3", 1.0, None)
    arm: Any = SimpleNamespace(test=Estimate(n, 10.0, math.nan, math.nan, math.nan))
    standing = stand(row, arm)
    assert standing.word == word
    assert why in standing.reason


def test_a_row_of_the_table(write_records: Write) -> None:
    row = {
        "entry": "ssm",
        "value": 95.0,
        "source": "A, Table 1",
        "convention": "best of 3",
        "tolerance": 0.5,
        "not_comparable": None,
    }
    records = write_records({"conv": [95.0, 96.0], "ssm": [96.0, 97.0]}, published=[row], alpha=0.025)
    study = load_study(records.study, records.trials)
    table = published_table(study, summarise(study))
    assert table is not None
    assert [(column.heading, column.numeric) for column in table.columns] == [
        ("arm", False),
        ("ours (%)", True),
        ("published (%)", True),
        ("difference (points)", True),
        ("standing", False),
        ("source", False),
    ]
    (cells,) = [[found[column.key] for column in table.columns] for found in table.rows]
    reach = 0.5 * math.tan(math.pi * (0.5 - 0.0125))  # t of one degree of freedom is Cauchy's
    ours = f"[{96.5 - reach:.2f}, {96.5 + reach:.2f}] (2)"
    assert [cell.line for cell in cells] == [
        "ssm",
        f"96.50 {ours}",
        "95.00",
        "+1.50",
        "open (tolerance 0.5)",
        "A, Table 1 (best of 3)",
    ]
    assert [cell.value for cell in cells[1:4]] == [96.5, 95.0, 1.5]
    assert "97.5 % t interval" in table.caption[0]


def test_a_study_that_names_none_has_no_table(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [96.0]})
    study = load_study(records.study, records.trials)
    assert published_table(study, summarise(study)) is None
