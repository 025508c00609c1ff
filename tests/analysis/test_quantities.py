"""How quantities and lists are written."""

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
    ("said", "expected"),
    [
        ([q.decimals_for(margin, "%") for margin in (None, 0.0, 1.0, 0.5, 0.01, 100.0)], [2, 2, 2, 2, 4, 0]),
        (q.decimals_for(None, "bits per byte"), 3),
        ([q.number(value, 2) for value in (97.211, -0.4, -0.001, None)], ["97.21", "−0.40", "0.00", "–"]),
        ([q.signed(value, 2) for value in (1.32, -0.4, 0.001, None)], ["+1.32", "−0.40", "0.00", "–"]),
        (
            [q.p_value(p) for p in (0.0009, 0.001, 0.0994, 0.0996, 0.5, float("nan"), None)],
            ["< 0.001", "0.001", "0.099", "0.10", "0.50", "–", "–"],
        ),
        ([q.p_equation(p) for p in (0.0001, 0.012)], ["p < 0.001", "p = 0.012"]),
        ([q.percent(level) for level in (0.95, 0.975, 59 / 60)], ["95 %", "97.5 %", "98.33 %"]),
        (
            [q.count(value) for value in (812, 999, 999.6, 10_200, 1.5e6, 2e9, 3e12, 0.25, 0, None)],
            ["812", "999", "1.00 k", "10.2 k", "1.50 M", "2.00 G", "3.00 T", "0.25", "0", "–"],
        ),
        ([q.count(value, trim=True) for value in (812, 10_200, 1.5e6)], ["812", "10.2 k", "1.5 M"]),
        (
            [q.byte_size(value) for value in (512, 1023, 1024, 8192, 1.25 * 2**30, 999.6 * 2**10, 2.0**51)],
            ["512 B", "1023 B", "1.00 KiB", "8.00 KiB", "1.25 GiB", "0.98 MiB", "2048 TiB"],
        ),
        (
            [
                q.with_unit(*each)
                for each in ((1, "points"), (0.5, "points"), (-1, "points"), (1, "bits per byte"))
            ],
            ["1 point", "0.5 points", "−1 points", "1 bits per byte"],
        ),
        ([q.shortened("abcdefgh", width) for width in (8, 7, 4)], ["abcdefgh", "abc…fgh", "a…gh"]),
        (q.plural(1, "seed"), "1 seed"),
        (q.plural(1257, "example"), "1,257 examples"),
    ],
)
def test_what_is_said(said: object, expected: object) -> None:
    assert said == expected


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
