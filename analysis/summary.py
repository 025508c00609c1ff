"""What the records say arm by arm, before any comparison: spread, costs, provenance, under-training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.read_records import load_curve
from analysis.record_rows import backend_name
from analysis.records import OK, Arm, Study
from analysis.statistics import Estimate, late_rise, late_window, t_interval

# An arm is flagged as under-trained when it still gains more than this share of the equivalence margin per
# window of epochs: four such windows and the gain would be worth a verdict of its own.
RISE_LIMIT_OF_MARGIN = 0.25
RISE_WINDOW = 0.15  # of the epochs
RISE_LEVEL = 0.05  # one-sided level at which the rise must also exceed the noise between seeds


@dataclass(frozen=True)
class Rise:
    """Gain in the validation metric over the last window of epochs, in difference units; positive: better."""

    gain: float
    window: int  # epochs
    flagged: bool


@dataclass(frozen=True)
class Costs:
    """What one arm costs; None where not recorded, or for `state_bytes` where there is no recurrent form."""

    params: float | None
    params_mixer: float | None
    params_rest: float | None
    macs: float | None
    macs_mixer: float | None
    state_bytes: float | None
    state_note: str
    macs_convention: str
    peak_memory_bytes: float | None  # largest over seeds
    examples_per_second: float | None  # mean over seeds
    train_seconds: float | None  # mean over seeds


@dataclass(frozen=True)
class ArmSummary:
    """One row of every table and figure."""

    arm: Arm
    test: Estimate
    validation: Estimate
    costs: Costs
    backends: tuple[str, ...]
    curves: NDArray[np.float64]
    """(finished seeds whose curve can be read, epochs) of the validation metric; NaN where one is shorter."""
    rise: Rise | None
    unread_curves: tuple[int, ...] = ()  # seeds

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def spread(self) -> str:
        """``5``, or ``3 of 5`` where planned seeds have no number."""
        planned = len(self.arm.trials)
        return str(planned) if self.test.n == planned else f"{self.test.n} of {planned}"

    @property
    def under_trained(self) -> bool:
        return self.rise is not None and self.rise.flagged


def summarise(study: Study) -> dict[str, ArmSummary]:
    """Summarise every arm, in the order of the plan."""
    return {name: _arm_summary(arm, study) for name, arm in study.arms.items()}


def training_rise(curves: NDArray[np.float64], direction: int, margin: float | None) -> Rise | None:
    """Whether validation was still improving when training stopped; None if the curves are too short to tell.

    Flagged when the mean gain over the last 15 % of epochs (at least 2), against as many epochs before, is
    above a quarter of the margin and, given two seeds or more, above the noise: its one-sided 95 % t bound
    over seeds is above zero.
    """
    gains = direction * late_rise(curves, RISE_WINDOW) if curves.size else np.empty(0)
    gains = gains[np.isfinite(gains)]
    if not gains.size:
        return None
    estimate = t_interval(gains, 2 * RISE_LEVEL)
    above_noise = estimate.n < 2 or estimate.low > 0
    window = late_window(curves.shape[1], RISE_WINDOW)
    return Rise(estimate.mean, window, above_noise and estimate.mean > RISE_LIMIT_OF_MARGIN * (margin or 0.0))


def _arm_summary(arm: Arm, study: Study) -> ArmSummary:
    name = study.metric.name
    finished = arm.with_status(OK)
    same = not any(trial.own_metric for trial in arm.trials)
    read = {trial.seed: load_curve(trial, f"validation_{name}") for trial in finished}
    curves = _stack([curve for curve in read.values() if curve is not None])
    return ArmSummary(
        arm=arm,
        test=t_interval(list(arm.compared(name).values()), study.alpha),
        validation=t_interval(
            # of a case that reads another number off the test split, the validation split has none
            [v for v in arm.values("validation", name).values() if math.isfinite(v)] if same else [],
            study.alpha,
        ),
        costs=_costs(arm),
        backends=tuple(sorted({backend_name(trial.provenance) for trial in arm.trials if trial.result})),
        curves=curves,
        rise=training_rise(curves, study.metric.direction, study.margin),
        unread_curves=tuple(seed for seed, curve in read.items() if curve is None),
    )


def _stack(curves: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    longest = max((curve.size for curve in curves), default=0)
    stacked = np.full((len(curves), longest), math.nan)
    for row, curve in zip(stacked, curves, strict=True):
        row[: curve.size] = curve
    return stacked


def _costs(arm: Arm) -> Costs:
    recorded = next((trial.costs for trial in arm.trials if trial.costs), {})
    memory, speed, seconds = (
        [trial.timing[key] for trial in arm.trials if isinstance(trial.timing.get(key), int | float)]
        for key in ("peak_memory_bytes", "examples_per_second", "train_seconds")
    )
    counted = ("params", "params_mixer", "params_rest", "macs", "macs_mixer", "state_bytes")
    return Costs(
        **{name: recorded.get(name) for name in counted},
        state_note=str(recorded.get("state_note") or ""),
        macs_convention=str(recorded.get("macs_convention") or ""),
        peak_memory_bytes=max(memory, default=None),
        examples_per_second=sum(speed) / len(speed) if speed else None,
        train_seconds=sum(seconds) / len(seconds) if seconds else None,
    )
