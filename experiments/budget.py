"""Giving the arms the same size, by the block's hidden width and by nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.build import count_costs, count_params, with_options
from experiments.trial import Trial
from mixers import InputError

TOLERANCE = 0.02
"""Mismatch above which an arm is refused."""
STEP = 1e-3
"""Resolution of the expansion ratio."""
STEPS_MAX = 64_000
CHORD_STEPS = 4
"""The second already lands within a channel or two per block; the others choose among neighbours."""


@dataclass(frozen=True)
class Matching:
    """How near an arm came to the size it was given.

    Attributes:
        what: "params" or "macs".
        target: that of the baseline.
        achieved: that of the arm.
    """

    what: Literal["params", "macs"]
    target: int
    achieved: int

    @property
    def mismatch(self) -> float:
        """Relative and signed: positive when the arm is larger."""
        return self.achieved / self.target - 1

    def to_dict(self) -> dict[str, Any]:
        """As stored in a plan."""
        return {**dataclasses.asdict(self), "mismatch": self.mismatch}


def measure(trial: Trial, what: Literal["params", "macs"]) -> int:
    """The size of a trial's model."""
    return count_params(trial) if what == "params" else count_costs(trial).macs


def match(trial: Trial, what: Literal["params", "macs"], target: int) -> tuple[Trial, Matching]:
    """Choose the skeleton's `expansion_ratio` so that the trial's size is nearest to `target`.

    Size grows with the ratio in steps of one hidden channel and is otherwise linear in it, so that a
    few chord steps settle; the nearest size met on the way is taken.

    Raises:
        InputError: no ratio comes within 2 %, e.g. when the mixer alone is larger than the target.
    """
    sizes: dict[int, int] = {}

    def size(step: int) -> int:
        if step not in sizes:
            sizes[step] = measure(_at_ratio(trial, step), what)
        return sizes[step]

    if measure(trial, what) == target:
        return trial, Matching(what, target, target)
    handed_over = trial.skeleton.options.get("conv_ratio")  # a block is no narrower than that
    narrowest = round(handed_over / STEP) if isinstance(handed_over, float) else 1
    guess = round(float(trial.skeleton.options["expansion_ratio"]) / STEP)
    unit = round(1 / STEP)
    try:
        slope = (size(guess + unit) - size(guess)) / unit
        for _ in range(CHORD_STEPS):
            guess = min(max(round(guess + (target - size(guess)) / slope), narrowest), STEPS_MAX)
            size(guess)
    except InputError as error:
        raise InputError(
            f"mixer {trial.mixer_text} cannot be matched in {what}, which is done by the hidden width of its "
            f"block: {error}; a larger expansion_ratio of the skeleton leaves more, another --baseline may "
            "be nearer in size, and --match none compares anyway"
        ) from None
    best = min(sizes, key=lambda step: (abs(sizes[step] - target), step))
    matching = Matching(what, target, sizes[best])
    if abs(matching.mismatch) > TOLERANCE:
        raise InputError(
            f"mixer {trial.mixer_text} cannot be matched in {what}: nearest {matching.achieved:,} against "
            f"{target:,} ({matching.mismatch:+.1%}, more than {TOLERANCE:.0%}); --match none compares anyway"
        )
    return _at_ratio(trial, best), matching


def _at_ratio(trial: Trial, step: int) -> Trial:
    ratio = round(step * STEP, 6)
    skeleton = with_options(trial.skeleton, {"expansion_ratio": ratio})
    return dataclasses.replace(trial, skeleton=skeleton)
