"""Giving the arms the same size, by the block's hidden width and by nothing else.

A block that hands a fixed number of channels to its mixer leaves the mixer as it is. Mamba's block
(`conv_ratio="all"`) hands over all hidden channels: there matched arms differ in the width of their mixers
too, and the plan says in which (`mixer_widths`).
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from analysis.quantities import size_in_words
from experiments.build import count_costs, count_params, mixer_channels
from experiments.trial import Trial
from mixers import InputError

TOLERANCE = 0.02
"""Mismatch above which an arm is refused."""
STEP = 1e-3
"""Resolution of the expansion ratio."""
STEPS_MAX = 64_000
CHORD_STEPS = 4
"""With a fixed mixer width, the second step is already within one or two channels."""

Size = Literal["params", "macs"]


@dataclass(frozen=True)
class Matching:
    """How near an arm came to the size it was given.

    Attributes:
        what: "params" or "macs".
        target: that of the baseline.
        achieved: that of the arm.
    """

    what: Size
    target: int
    achieved: int

    @property
    def mismatch(self) -> float:
        """Relative and signed: positive when the arm is larger."""
        return self.achieved / self.target - 1

    def to_dict(self) -> dict[str, Any]:
        """As stored in a plan."""
        return {**dataclasses.asdict(self), "mismatch": self.mismatch}


def mixer_widths(baseline: Trial, trial: Trial) -> dict[str, Any]:
    """Channels of the mixers of a matched trial and of its target, as stored in a plan; empty where alike."""
    target, achieved = mixer_channels(baseline), mixer_channels(trial)
    return {} if achieved == target else {"mixer_channels": {"target": target, "achieved": achieved}}


def size_of(trial: Trial, size: Size) -> int:
    """The size of a trial's model."""
    return count_params(trial) if size == "params" else count_costs(trial).macs


def match(trial: Trial, what: Size, target: int) -> tuple[Trial, Matching]:
    """Choose the skeleton's `expansion_ratio` so that the trial's size is nearest to `target`.

    Where the mixer's width is fixed, size is linear in the hidden width apart from rounding to whole
    channels, and a few chord steps are enough. Where the mixer gets all hidden channels
    (`conv_ratio="all"`), size is quadratic in them, jumps with every further head of an attention, and some
    widths fit no head at all. It grows with the width all the same, so the nearest size is next to where it
    passes the target, which bisection finds. Ties go to a ratio found by the chord search, so that recorded
    trials keep their ids.

    Raises:
        InputError: no ratio comes within 2 %, e.g. when the mixer alone is larger than the target.
    """
    own = size_of(trial, what)
    if own == target:
        return trial, Matching(what, target, target)
    search = _Search(trial, what, target)
    search.step_along_chord()
    met = sorted(search.sizes)
    search.bisect()
    best = min([*met, *search.sizes], key=search.distance, default=None)
    matched = trial if best is None else _at_ratio(trial, best)
    matching = Matching(what, target, own if best is None else search.sizes[best])
    if abs(matching.mismatch) > TOLERANCE:
        too_large = all(size > target for size in search.sizes.values())
        wider = "a larger expansion_ratio of the skeleton leaves more, " if too_large else ""
        raise InputError(
            f"mixer {trial.mixer_text} cannot be matched on {size_in_words(what)}, which is done by the "
            f"hidden width of its block: nearest {matching.achieved:,} against {target:,} "
            f"({matching.mismatch:+.2%}, more than {TOLERANCE:.0%}); {wider}another --baseline may be nearer "
            "in size, and --match none compares anyway"
        )
    return matched, matching


class _Search:
    """For the expansion ratio at which a trial's size is nearest to the target.

    Attributes:
        sizes: by the ratio, in steps of `STEP`; of those that were tried and that the mixer takes.
    """

    def __init__(self, trial: Trial, what: Size, target: int) -> None:
        self.trial = trial
        self.what = what
        self.target = target
        handed_over = trial.skeleton.options.get("conv_ratio")  # a block is no narrower than that
        self.narrowest = round(handed_over / STEP) if isinstance(handed_over, float) else 1
        self.sizes: dict[int, int] = {}

    def distance(self, step: int) -> int:
        """Of a known size from the target."""
        return abs(self.sizes[step] - self.target)

    def step_along_chord(self) -> None:
        """Start at the trial's own ratio; stop at a width that the mixer does not take."""
        guess = round(float(self.trial.skeleton.options["expansion_ratio"]) / STEP)
        unit = round(1 / STEP)
        if not (self._takes(guess) and self._takes(guess + unit)):
            return
        slope = (self.sizes[guess + unit] - self.sizes[guess]) / unit
        for _ in range(CHORD_STEPS if slope else 0):  # none in a block without hidden channels
            guess = round(guess + (self.target - self.sizes[guess]) / slope)
            guess = min(max(guess, self.narrowest), STEPS_MAX)
            if not self._takes(guess):
                return

    def bisect(self) -> None:
        """Find the largest size up to the target and the smallest above it."""
        below = [step for step, size in self.sizes.items() if size <= self.target]
        above = [step for step, size in self.sizes.items() if size > self.target]
        low, high = max(below, default=self.narrowest - 1), min(above, default=STEPS_MAX + 1)
        while high - low > 1:
            middle = (low + high) // 2
            step = next((step for step in range(middle, low, -1) if self._takes(step)), None)
            if step is not None and self.sizes[step] > self.target:
                high = step
            else:
                low = middle  # from `step` to there the mixer takes no width

    def _takes(self, step: int) -> bool:
        """Whether the trial can be built at that ratio; then its size there is known."""
        if step not in self.sizes:
            with suppress(InputError):
                self.sizes[step] = size_of(_at_ratio(self.trial, step), self.what)
        return step in self.sizes


def _at_ratio(trial: Trial, step: int) -> Trial:
    ratio = round(step * STEP, 6)
    skeleton = trial.skeleton.with_options({"expansion_ratio": ratio})
    return dataclasses.replace(trial, skeleton=skeleton)
