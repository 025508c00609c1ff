"""The power table is what simulation gives, and the page in docs is the one that the code prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import power
from analysis import statistics as st

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("effect", "n"), [(1.0, 3), (2.0, 5), (0.5, 20)])
def test_differences(effect: float, n: int) -> None:
    draws = np.random.default_rng(3).normal(effect, 1, (3000, n))
    found = np.mean([st.t_test(x) <= 0.05 for x in draws])
    assert power.power_of_difference(effect, n) == pytest.approx(found, abs=0.03)


@pytest.mark.parametrize(("margin", "n"), [(2.0, 3), (2.0, 5), (0.5, 20)])
def test_equivalence(margin: float, n: int) -> None:
    draws = np.random.default_rng(4).normal(0, 1, (3000, n))
    found = np.mean([st.equivalence_test(x, margin) <= 0.05 for x in draws])
    assert power.power_of_equivalence(margin, n) == pytest.approx(found, abs=0.03)


def test_no_difference_is_found_5_times_in_100() -> None:
    # 20,000 quantiles stand for the distribution of the standard deviation
    assert power.power_of_difference(0.0, 5) == pytest.approx(0.05, abs=1e-6)


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "power.md").read_text() == power.page(), "run python -m analysis.power > docs/power.md"
