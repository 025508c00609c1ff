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


def summary(test: Estimate, diverged: int = 0) -> Any:
    arm = SimpleNamespace(
        with_status=lambda status: ["trial"] * diverged, trials=["trial"] * (test.n + diverged)
    )
    return SimpleNamespace(test=test, arm=arm)


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
    arm = summary(Estimate(3, (low + high) / 2, 1.0, low, high))
    assert (stand(row, arm).word, stand(row, arm).reason) == (word, "tolerance 1")


@pytest.mark.parametrize(
    ("found", "word", "why"),
    [
        (summary(Estimate(0, math.nan, math.nan, math.nan, math.nan)), NOT_COMPARABLE, "has finished"),
        (summary(Estimate(1, 10.0, math.nan, math.nan, math.nan)), OPEN, "1 seed finished"),
        (summary(Estimate(2, 10.0, 0.1, 9.1, 10.9)), OPEN, "2 seeds finished"),
        (summary(Estimate(3, 10.0, 0.0, 10.0, 10.0)), OPEN, "do not vary"),
        (summary(Estimate(4, 10.0, 0.1, 9.8, 10.2), diverged=1), OPEN, "1 of 5 trials diverged"),
    ],
)
def test_without_an_interval_to_go_by_it_cannot_be_told(found: Any, word: str, why: str) -> None:
    row = PublishedRow("ssm", 10.0, "A, Table 1", "best of 3", 1.0, None)
    standing = stand(row, found)
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
    records = write_records(
        {"conv": [95.0, 96.0, 97.0], "ssm": [96.0, 97.0, 98.0]}, published=[row], alpha=0.025
    )
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
    tail = 0.0125
    reach = (1 - 2 * tail) / math.sqrt(2 * tail * (1 - tail)) / math.sqrt(3)  # t of 2 degrees of freedom
    ours = f"[{97 - reach:.2f}, {97 + reach:.2f}] (3)"
    assert [cell.line for cell in cells] == [
        "ssm",
        f"97.00 {ours}",
        "95.00",
        "+2.00",
        "open (tolerance 0.5)",
        "A, Table 1 (best of 3)",
    ]
    assert [cell.value for cell in cells[1:4]] == [97.0, 95.0, 2.0]
    assert "97.5 % t interval" in table.caption[0]


def test_a_study_that_names_none_has_no_table(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [96.0]})
    study = load_study(records.study, records.trials)
    assert published_table(study, summarise(study)) is None
