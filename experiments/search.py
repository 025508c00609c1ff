"""Choosing learning rates: the same grid and the same number of trials for every arm of a case.

A mixer that is only shown a rate that suits another one is not compared but handicapped. The rate of an
arm is the one with the best mean validation metric; of several that differ by less than noise (a quarter
of the study's margin) it is the middle one, which does not stand at a cliff. Its test split and the
reported seeds have no part in it. But where every seed divides one pool of examples anew (digits, textures,
bytes), its validation split holds examples that reported seeds test on; generated tasks have no such pool.

While the best rate of any arm of a case lies at an edge of the grid, the grid of that case grows there, for
all of its arms. An edge that is better than the inside by less than noise does not count, or arms at chance
and arms at 100 % would let it grow for ever.

Everything here is a function of stored results: asked again, it gives the same answer, and an interrupted
search goes on where it was. Free of torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.plan import Plan, PlannedArm
from experiments.store import Store
from experiments.study import MOST_SEEDS
from experiments.trial import Trial

FIRST_SEED = MOST_SEEDS
"""Of those that the choice rests on: none of them is ever reported."""

NOISE_OF_MARGIN = 0.25
"""Differences below this share of the margin neither decide between rates nor let a grid grow."""


@dataclass(frozen=True)
class Search:
    """The learning rates of a plan as far as its stored results settle them.

    Attributes:
        plan: with the chosen rates, once all are chosen; before that as it was.
        open: trials that are needed before more can be said; empty once all rates are chosen.
        labels: what to call each trial of the search, by its id.
        failed: those that count as worst because they failed.
    """

    plan: Plan
    open: dict[str, Trial]
    labels: dict[str, str]
    failed: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """The arms of one case on one grid."""

    arms: list[PlannedArm]
    grid: list[float]
    values: dict[str, list[float]]  # by arm: mean validation metric at each rate, higher is better
    noise: float  # in the metric's unit

    def best(self, arm: str) -> int:
        """Index of the chosen rate: the middle one of those that reach the best value but for noise.

        Those inside the grid go before its edges, and of two in the middle the better one.
        """
        values = self.values[arm]
        if math.isinf(max(values)):
            return 0  # none has a value
        best = [index for index, value in enumerate(values) if max(values) - value <= self.noise]
        best = [index for index in best if 0 < index < len(values) - 1] or best
        middle = best[(len(best) - 1) // 2 : len(best) // 2 + 1]
        return max(middle, key=values.__getitem__)

    def edge(self, arm: str) -> str | None:
        """At which edge of the grid the arm's best rate lies; at none where no rate has a value."""
        if math.isinf(max(self.values[arm])):
            return None
        return {0: "low", len(self.grid) - 1: "high"}.get(self.best(arm))


def settle(plan: Plan, store: Store, retry: Callable[[Trial], bool] = lambda trial: False) -> Search:
    """What stored results say about the learning rates.

    A trial without any result is always waited for: that it was not run says nothing about its rate.

    Args:
        plan: a study's plan; without a grid nothing is chosen.
        store: where results are.
        retry: whether a failed trial will be tried again, and is waited for; otherwise it counts as worst.
    """
    if not plan.study.lr_grid:
        return Search(plan, {}, {})
    needed: dict[str, Trial] = {}
    labels: dict[str, str] = {}
    settled: list[_Case] = []
    for case in plan.study.all_cases():
        arms = [arm for arm in plan.arms if arm.case == case.name]
        result = _search_case(plan, arms, store, retry, labels)
        if isinstance(result, _Case):
            settled.append(result)
        else:
            needed |= {trial.id: trial for trial in result}
    failed = [each for each in labels if each not in needed and _has_failed(each, store)]
    if needed:
        return Search(plan, needed, labels, failed)
    chosen = [_with_rate(arm, case.grid[case.best(arm.name)]) for case in settled for arm in case.arms]
    record = {
        "metric": plan.details["metric"]["name"],
        "seeds": _seeds(plan),
        "arms": [_record(plan, arm, case) for case in settled for arm in case.arms],
    }
    return Search(dataclasses.replace(plan, arms=tuple(chosen), search=record), {}, labels, failed)


def trial_ids(plan: Plan) -> list[str]:
    """The trials that the choice of learning rates rests on; until it is settled, those of the first grid."""
    if plan.search:
        return [trial for arm in plan.search["arms"] for point in arm["points"] for trial in point["trials"]]
    return [
        trial.id for arm in plan.arms for rate in plan.study.lr_grid for trial in _trials(plan, arm, rate)
    ]


def _search_case(
    plan: Plan,
    arms: list[PlannedArm],
    store: Store,
    retry: Callable[[Trial], bool],
    labels: dict[str, str],
) -> _Case | list[Trial]:
    """The settled case, or the trials that it waits for; what to call each is added to `labels`."""
    grid = sorted(plan.study.lr_grid)
    factor = grid[1] / grid[0]
    left = {"low": plan.study.lr_extensions, "high": plan.study.lr_extensions}
    while True:
        values: dict[str, list[float]] = {arm.name: [] for arm in arms}
        waiting = []
        for arm in arms:
            for rate in grid:
                trials = _trials(plan, arm, rate)
                found = [_value(plan, trial, store, retry) for trial in trials]
                for trial in trials:
                    labels.setdefault(trial.id, f"{arm.name} lr {rate:g} seed {trial.seed}")
                waiting += [trial for trial, value in zip(trials, found, strict=True) if value is None]
                values[arm.name].append(sum(value or 0.0 for value in found) / len(found))
        if waiting:
            return waiting
        case = _Case(arms, grid, values, NOISE_OF_MARGIN * plan.study.margin)
        growing = {edge for arm in arms if (edge := case.edge(arm.name)) and left[edge] > 0}
        if not growing:
            return case
        for edge in growing:
            left[edge] -= 1
        low = [_rounded(grid[0] / factor)] if "low" in growing else []
        high = [_rounded(grid[-1] * factor)] if "high" in growing else []
        grid = [*low, *grid, *high]


def _value(plan: Plan, trial: Trial, store: Store, retry: Callable[[Trial], bool]) -> float | None:
    """The validation metric, signed so that higher is better; None if it is still to come."""
    metric = plan.details["metric"]
    result = store.folder(trial.id).result()
    if result is not None and result["status"] == "ok":
        value = float(result["metrics"]["validation"][metric["name"]])
        return value if metric["higher_is_better"] else -value
    if result is None or (result["status"] == "failed" and retry(trial)):
        return None
    return -math.inf


def _has_failed(trial_id: str, store: Store) -> bool:
    result = store.folder(trial_id).result()
    return result is not None and result["status"] == "failed"


def _seeds(plan: Plan) -> list[int]:
    return list(range(FIRST_SEED, FIRST_SEED + plan.study.lr_seeds))


def _trials(plan: Plan, arm: PlannedArm, rate: float) -> list[Trial]:
    return [_with_rate(arm, rate).trial(seed) for seed in _seeds(plan)]


def _with_rate(arm: PlannedArm, rate: float) -> PlannedArm:
    train = dataclasses.replace(arm.template.train, lr=rate)
    return dataclasses.replace(arm, template=dataclasses.replace(arm.template, train=train))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _record(plan: Plan, arm: PlannedArm, case: _Case) -> dict[str, Any]:
    points = [{"lr": rate, "trials": [trial.id for trial in _trials(plan, arm, rate)]} for rate in case.grid]
    return {
        "name": arm.name,
        "chosen": case.grid[case.best(arm.name)],
        "at_edge": case.edge(arm.name),
        "points": points,
    }
