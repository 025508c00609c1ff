"""How lists are written."""

from __future__ import annotations

import pytest

from analysis import quantities as q


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (["conv"], "conv"),
        (["conv", "ssm"], "conv and ssm"),
        (["conv", "ssm(d_state=4, scan=forward)", "1,024"], "conv, ssm(d_state=4, scan=forward) and 1,024"),
        (["attention, mean", "ssm"], "attention, mean; and ssm"),
        (["attention, mean", "conv", "ssm, last"], "attention, mean; conv; and ssm, last"),
    ],
)
def test_a_comma_within_an_item_divides_no_items(items: list[str], said: str) -> None:
    assert q.listing(items) == said


def test_seeds_are_listed_with_their_noun() -> None:
    assert (q.seeds_listed([3]), q.seeds_listed([0, 1, 4])) == ("seed 3", "seeds 0, 1 and 4")
