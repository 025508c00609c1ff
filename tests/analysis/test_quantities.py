"""How lists and p values are written."""

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


@pytest.mark.parametrize(
    ("p", "level", "said"),
    [
        (0.01664, 0.05 / 3, "0.0166"),  # three decimals would be above the level, and the verdict is "helps"
        (0.0167, 0.05 / 3, "0.017"),
        (0.0502, 0.05, "0.0502"),
        (0.0498, 0.05, "0.050"),
        (0.0004, 0.05, "< 0.001"),
    ],
)
def test_a_p_value_lies_on_its_side_of_the_level(p: float, level: float, said: str) -> None:
    assert q.p_value(p, level) == said
