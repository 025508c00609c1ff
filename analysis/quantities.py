"""How quantities are written: numbers with the decimals, signs and units of the study.

Everything printed for people goes through here, so that a difference reads the same in the terminal, the
table and the report. The true minus sign (U+2212) is used throughout; `analysis.latex_table` turns it into
LaTeX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
IN_WORDS = {
    "key_accuracy": "accuracy for the framed digit",
    "own_accuracy": "accuracy for a digit itself",
    "miou": "mIoU",
    "miou_multiscale": "mIoU, multi-scale",
}
"""Metrics whose names are no words without their underscores."""


def decimals_for(margin: float | None, unit: str) -> int:
    """Decimals that resolve a hundredth of the equivalence margin: margin 1 -> 2, margin 0.01 -> 4."""
    if margin is None or not margin > 0:
        return 2 if unit == "%" else 3
    return min(6, max(0, 2 - round(math.log10(margin))))


def number(value: float | None, decimals: int) -> str:
    """A plain number: ``97.21``; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    # A rounded zero has no sign: "-0.00" would suggest a direction that is not there.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float | None, decimals: int) -> str:
    """A difference: ``+1.32``, ``−0.40``, ``0.00``."""
    text = number(value, decimals)
    return f"+{text}" if value is not None and text[0].isdigit() and float(text) > 0 else text


def interval(low: float, high: float, decimals: int) -> str:
    """An interval of a difference: ``[+0.40, +2.24]``."""
    return f"[{signed(low, decimals)}, {signed(high, decimals)}]"


def p_value(p: float | None, level: float | None = None) -> str:
    """``0.012``, ``< 0.001``, or a dash where the test is undefined.

    With as many decimals as it takes to lie on its side of the level that it is held against: ``0.0166``.
    """
    if p is None or not math.isfinite(p):
        return MISSING
    if p < 0.001:
        return "< 0.001"
    decimals = 3 if p < 0.0995 else 2
    while level is not None and (float(f"{p:.{decimals}f}") <= level) != (p <= level) and decimals < 6:
        decimals += 1
    return f"{p:.{decimals}f}"


def p_equation(p: float, level: float | None = None) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    text = p_value(p, level)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def percent(level: float) -> str:
    """A confidence level: 0.95 -> ``95 %``, 0.975 -> ``97.5 %``, 59 in 60 -> ``98.33 %``."""
    return f"{100 * level:.4g} %"


def count(value: float | None, trim: bool = False) -> str:
    """A count with three digits and an SI letter: ``812``, ``10.2 k``, ``1.50 M`` (trimmed: ``1.5 M``)."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.5 is where three digits round up to the next letter.
        if abs(value) >= size * 0.9995:
            return f"{f'{value / size:.3g}' if trim else _three_digits(value / size)} {letter}"
    return f"{value:.0f}" if value == int(value) else _three_digits(value)


def byte_size(value: float | None) -> str:
    """Bytes in binary units: ``512 B``, ``8.00 KiB``, ``1.25 GiB``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 1024:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 999.5 or unit == "TiB":
            break
    return f"{_three_digits(value)} {unit}"


def amount(value: float) -> str:
    """A setting as a person would write it: 1.0 -> ``1``, 0.25 -> ``0.25``."""
    return f"{value:.6g}".replace("-", MINUS)


def with_unit(value: float, unit: str) -> str:
    """An amount and its unit: ``1 point``, ``0.5 points``, ``0.01 bits per byte``."""
    singular = unit.removesuffix("s") if value == 1 and " " not in unit else unit
    return f"{amount(value)} {singular}"


def shortened(text: str, width: int) -> str:
    """Cut out the middle if need be: the ends tell ``ssm(d_state=16, scan=forward)`` from its like."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def metric_in_words(name: str) -> str:
    """The name of a metric as a figure says it: ``bits per byte`` for ``bits_per_byte``."""
    return IN_WORDS.get(name, name.replace("_", " "))


def size_in_words(size: str) -> str:
    """What arms are matched on: ``parameters`` for ``params``, ``MACs`` for ``macs``."""
    return {"params": "parameters", "macs": "MACs"}.get(size, size)


def plural(n: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listing(items: list[str] | tuple[str, ...], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``; where an item has a comma of its own, ``a, mean; b; and c``."""
    if len(items) < 2:
        return "".join(items)
    if any(", " in re.sub(r"\(.*\)", "", item) for item in items):  # in brackets it divides no items
        return f"{'; '.join(items[:-1])}; {last} {items[-1]}"
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def first_of(items: list[str], most: int) -> str:
    """All of them, or the first of many and how many more there are: ``a, b and 3 more``."""
    more = [f"{len(items) - most} more"] if len(items) > most else []
    return listing([*items[:most], *more])


def seeds_listed(seeds: Sequence[int]) -> str:
    """``seed 3``, ``seeds 0, 1 and 4``."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listing([str(seed) for seed in seeds])}"


def _three_digits(value: float) -> str:
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, min(2, digits))}f}"
