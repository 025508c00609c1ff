"""How many seeds a verdict takes: the power table of docs/power.md.

python -m analysis.power > docs/power.md
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

SEEDS = (3, 4, 5, 7, 10, 15, 20)
SIZES = (0.5, 1.0, 2.0, 3.0, 5.0)
QUANTILES = 20_000  # of the standard deviation's distribution


def power_of_difference(effect: float, n: int, alpha: float = 0.05) -> float:
    """Chance that the paired t test calls a true difference of `effect` standard deviations one.

    Given the standard deviation s, the mean must lie beyond ``t(1 - alpha / 2, n - 1) s / sqrt(n)`` on either
    side; the average of that chance over quantiles of s (Cohen 1988, ch. 2).
    """
    critical, shift = stdtrit(n - 1, 1 - alpha / 2) * _sd_quantiles(n), effect * math.sqrt(n)
    return float(np.mean(ndtr(shift - critical) + ndtr(-shift - critical)))


def power_of_equivalence(margin: float, n: int, alpha: float = 0.05) -> float:
    """Chance that two one-sided t tests call two equal arms equivalent; `margin` in standard deviations.

    Given the standard deviation s, the mean must lie within ``margin - t(1 - alpha, n - 1) s / sqrt(n)``;
    the average of that chance over quantiles of s (Schuirmann 1987).
    """
    critical, room = stdtrit(n - 1, 1 - alpha) * _sd_quantiles(n), margin * math.sqrt(n)
    return float(np.mean(2 * ndtr(np.maximum(0.0, room - critical)) - 1))


def _sd_quantiles(n: int) -> NDArray[np.float64]:
    """Equally likely values of the standard deviation of n normal numbers, in units of the true one."""
    tail = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.sqrt(chdtri(n - 1, tail) / (n - 1))


def page() -> str:
    """docs/power.md."""
    return "\n".join(
        [
            "# How many seeds",
            "",
            "Printed by `python -m analysis.power`. One comparison at 5 %, of pairs of seeds whose",
            "differences are normal with standard deviation sd. Holm's adjustment over several comparisons",
            "asks for more. The sd of a study of yours is in its `table.csv`; where a verdict is undecided,",
            "the report says how large a difference it could have seen, and how many seeds would decide.",
            "",
            "Chance to see a difference (helps or hurts), by its true size:",
            "",
            *_table("difference / sd", power_of_difference),
            "",
            "Chance to call two arms equivalent that do not differ, by the margin:",
            "",
            *_table("margin / sd", power_of_equivalence),
            "",
        ]
    )


def _table(what: str, power: Callable[[float, int], float]) -> list[str]:
    heading = " | ".join(f"{what} = {size:g}" for size in SIZES)
    rows = [" | ".join(f"{100 * power(size, n):.0f} %" for size in SIZES) for n in SEEDS]
    return [
        f"| seeds | {heading} |",
        "|---:" * (len(SIZES) + 1) + "|",
        *(f"| {n} | {row} |" for n, row in zip(SEEDS, rows, strict=True)),
    ]


if __name__ == "__main__":
    print(page(), end="")
