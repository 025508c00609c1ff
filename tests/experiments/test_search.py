"""The choice of learning rates, on results written by hand: fair, on validation alone, and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from experiments import search
from experiments import study as studies
from experiments.plan import Plan, PlannedArm
from experiments.search import FIRST_SEED
from experiments.store import RESULT_FIELDS, Store
from experiments.trial import SCHEMA_VERSION, Trial

MakeTrial = Callable[..., Trial]
CONTENT = {
    **dict.fromkeys(("question", "varied", "fixed", "cost", "answer"), "words"),
    "task": "digits",
    "skeleton": "isotropic-nano",
    "baseline": "conv",
    "mixers": ["conv", "ssm"],
    "margin": 1.0,
    "lr_grid": [1e-3, 1e-2],
    "lr_extensions": 2,
}


@pytest.fixture
def make_plan(tiny_trial: MakeTrial) -> Callable[..., Plan]:
    def make(higher_is_better: bool = True, **changes: object) -> Plan:
        study = studies.validate(CONTENT | changes, "test")
        arms = tuple(
            PlannedArm(arm.name, case.name, tiny_trial(arm.mixer, epochs=place + 2), None, "")
            for place, case in enumerate(study.all_cases())
            for arm in study.all_arms()
        )
        return Plan(
            "test", study, "key", arms, {"metric": {"name": "score", "higher_is_better": higher_is_better}}
        )

    return make


def finish(trial: Trial, store: Store, value: float, status: str = "ok") -> None:
    """Write what a trial would have left."""
    metrics = {"validation": {"score": value}, "test": {"score": -value}} if status == "ok" else {}
    written = {
        **{field: {} for field in RESULT_FIELDS},
        "schema_version": SCHEMA_VERSION,
        "trial_id": trial.id,
        "status": status,
        "metrics": metrics,
    }
    if status == "failed":
        store.folder(trial.id).fail(written)
    else:
        store.folder(trial.id).finish(written, {})


def peak_at(rate: float) -> Callable[[Trial], float]:
    """A validation curve with its top at this learning rate."""
    return lambda trial: -10 * abs(math.log10(trial.train.lr / rate))


def run(plan: Plan, store: Store, values: dict[str, Callable[[Trial], float]]) -> tuple[Plan, int]:
    """Play the trials until the search is settled; the settled plan and how many were played."""
    played = 0
    while (found := search.settle(plan, store)).open:
        for trial in found.open.values():
            finish(trial, store, values[trial.mixer[0].name](trial))
            played += 1
    return found.plan, played


def chosen(plan: Plan) -> dict[str, float]:
    return {arm.name: arm.template.train.lr for arm in plan.arms}


def test_each_arm_gets_its_best_rate(make_plan: Callable[..., Plan], store: Store) -> None:
    plan = make_plan(lr_grid=[1e-4, 1e-3, 1e-2, 1e-1])
    settled, played = run(plan, store, {"conv": peak_at(1e-2), "ssm": peak_at(1e-3)})
    assert chosen(settled) == {"conv": 1e-2, "ssm": 1e-3}
    assert played == 2 * 4


def test_the_grid_grows_for_all_arms_while_one_is_best_at_its_edge(
    make_plan: Callable[..., Plan], store: Store
) -> None:
    settled, played = run(make_plan(), store, {"conv": peak_at(1e-1), "ssm": peak_at(1e-2)})
    assert chosen(settled) == {"conv": 1e-1, "ssm": 1e-2}
    assert settled.search is not None
    grids = [[point["lr"] for point in arm["points"]] for arm in settled.search["arms"]]
    assert grids == [[1e-3, 1e-2, 1e-1, 1.0]] * 2, "one more than the best, the same for both"
    assert played == 2 * 4
    assert [arm["at_edge"] for arm in settled.search["arms"]] == [None, None]


def test_each_case_has_a_grid_of_its_own(make_plan: Callable[..., Plan], store: Store) -> None:
    """Which need not be in order; no rate is chosen in one case as long as another waits."""
    plan = make_plan(lr_grid=[1e-2, 3e-3, 1e-3], cases=[{"name": "a"}, {"name": "b"}], lr_seeds=2)

    def peak(trial: Trial) -> float:
        return peak_at({2: 3e-3, 3: 1e-1}[trial.train.epochs])(trial)

    opened = search.settle(plan, store).open
    assert len(opened) == 2 * 2 * 3 * 2, "of both cases"
    assert set(search.trial_ids(plan)) == set(opened)
    settled, _ = run(plan, store, {"conv": peak, "ssm": peak})
    assert settled.search is not None
    grids = {arm["name"]: [point["lr"] for point in arm["points"]] for arm in settled.search["arms"]}
    in_a, in_b = [1e-3, 3e-3, 1e-2], [1e-3, 3e-3, 1e-2, 0.03, 0.09]
    assert grids == {"conv @ a": in_a, "ssm @ a": in_a, "conv @ b": in_b, "ssm @ b": in_b}
    assert chosen(settled) == {"conv @ a": 3e-3, "ssm @ a": 3e-3, "conv @ b": 0.09, "ssm @ b": 0.09}
    assert [arm["at_edge"] for arm in settled.search["arms"]] == [None, None, "high", "high"]
    rested_on = search.trial_ids(settled)
    assert len(rested_on) == len(set(rested_on)) == 2 * 2 * (3 + 5)
    assert set(opened) < set(rested_on)


def test_a_rate_is_judged_by_the_mean_of_its_seeds(make_plan: Callable[..., Plan], store: Store) -> None:
    """Of which one may be far out; 0.2 points less in the mean are as good."""
    values = {1e-4: (99.0, 50.0), 1e-3: (90.0, 89.6), 1e-2: (89.8, 89.8), 1e-1: (89.9, 90.1), 1.0: (0.0, 0.0)}
    plan = make_plan(lr_grid=list(values), lr_seeds=2)
    settled, _ = run(
        plan, store, dict.fromkeys(("conv", "ssm"), lambda t: values[t.train.lr][t.seed - FIRST_SEED])
    )
    assert chosen(settled) == {"conv": 1e-2, "ssm": 1e-2}


def test_arms_at_chance_or_at_the_top_everywhere_do_not_let_it_grow(
    make_plan: Callable[..., Plan], store: Store
) -> None:
    plan = make_plan(lr_grid=[1e-4, 1e-3, 1e-2])
    noise = {1e-4: 6.2, 1e-3: 6.1, 1e-2: 6.0}
    settled, played = run(plan, store, {"conv": lambda t: noise[t.train.lr], "ssm": lambda t: 100.0})
    assert played == 2 * 3
    assert chosen(settled) == {"conv": 1e-3, "ssm": 1e-3}, "of equals the middle one"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((50.0, 99.9, 100.0), 1e-3),  # an edge that is no better than the inside is not taken
        ((100.0, 99.9, 50.0), 1e-3),
        ((50.0, 100.0, 99.9, 50.0), 1e-3),  # of two in the middle the better one
        ((50.0, 99.9, 100.0, 50.0), 1e-2),
        ((99.9, 99.8, 100.0, 100.0, 100.0), 1e-2),
        ((50.0, 99.8, 99.8, 100.0, 50.0), 1e-2),  # of three the middle one, though not the best
        ((50.0, 99.7, 99.7, 100.0, 50.0), 1e-1),  # those are worse by more than noise
    ],
)
def test_which_of_equal_rates(
    make_plan: Callable[..., Plan], store: Store, values: tuple[float, ...], expected: float
) -> None:
    by_rate = dict(zip((1e-4, 1e-3, 1e-2, 1e-1, 1.0), values, strict=False))
    plan = make_plan(lr_grid=list(by_rate))
    settled, played = run(plan, store, dict.fromkeys(("conv", "ssm"), lambda t: by_rate[t.train.lr]))
    assert chosen(settled) == {"conv": expected, "ssm": expected}
    assert played == 2 * len(values), "the grid does not grow"


def test_growing_ends_and_says_so(make_plan: Callable[..., Plan], store: Store) -> None:
    plan = make_plan(lr_grid=[1e-3, 3e-3])
    settled, _ = run(plan, store, {"conv": peak_at(1e9), "ssm": peak_at(1e-9)})
    assert settled.search is not None
    assert [arm["at_edge"] for arm in settled.search["arms"]] == ["high", "low"]
    rates = [point["lr"] for point in settled.search["arms"][0]["points"]]
    assert rates == [0.000111, 0.000333, 1e-3, 3e-3, 9e-3, 0.027], "as they are told"


def test_lower_may_be_better(make_plan: Callable[..., Plan], store: Store) -> None:
    plan = make_plan(higher_is_better=False, lr_grid=[1e-4, 1e-3, 1e-2])
    settled, _ = run(plan, store, {name: lambda trial: -peak_at(1e-3)(trial) for name in ("conv", "ssm")})
    assert chosen(settled) == {"conv": 1e-3, "ssm": 1e-3}


def test_a_rate_that_diverges_or_fails_is_the_worst(make_plan: Callable[..., Plan], store: Store) -> None:
    plan = make_plan(lr_grid=[1e-4, 1e-3, 1e-2], lr_extensions=0)
    opened = search.settle(plan, store).open
    failed = set()
    for trial in opened.values():
        status = {1e-2: "diverged", 1e-4: "failed", 1e-3: "ok"}[trial.train.lr]
        finish(trial, store, -50.0, status)
        failed |= {trial.id} if status == "failed" else set()
    again = search.settle(plan, store, lambda trial: True)
    assert set(again.open) == failed, "it may be tried again"
    assert not again.failed
    settled = search.settle(plan, store)
    assert not settled.open
    assert set(settled.failed) == failed, "and is told"
    assert {settled.labels[each] for each in failed} == {
        f"{arm} lr 0.0001 seed {FIRST_SEED}" for arm in ("conv", "ssm")
    }
    assert chosen(settled.plan) == {"conv": 1e-3, "ssm": 1e-3}


def test_an_arm_that_fails_at_every_rate_lets_no_grid_grow(
    make_plan: Callable[..., Plan], store: Store
) -> None:
    plan = make_plan(lr_grid=[1e-4, 1e-3, 1e-2])
    for trial in search.settle(plan, store).open.values():
        diverges = trial.mixer[0].name == "ssm"
        finish(trial, store, peak_at(1e-3)(trial), "diverged" if diverges else "ok")
    settled = search.settle(plan, store)
    assert not settled.open
    assert settled.plan.search is not None
    assert settled.plan.search["seeds"] == [FIRST_SEED]
    assert [arm["at_edge"] for arm in settled.plan.search["arms"]] == [None, None]
    assert chosen(settled.plan) == {"conv": 1e-3, "ssm": 1e-4}


def test_neither_reported_seeds_nor_the_test_split_take_part(
    make_plan: Callable[..., Plan], store: Store
) -> None:
    plan = make_plan(lr_seeds=2, seeds=50)
    opened = search.settle(plan, store).open
    assert {trial.seed for trial in opened.values()} == {FIRST_SEED, FIRST_SEED + 1}
    settled, _ = run(plan, store, {"conv": peak_at(1e-2), "ssm": peak_at(1e-2)})
    assert not set(opened) & {trial.id for trial in settled.trials()}


def test_an_interrupted_search_goes_on_where_it_was(make_plan: Callable[..., Plan], store: Store) -> None:
    plan = make_plan()
    first, *others = search.settle(plan, store).open.values()
    finish(first, store, 1.0)
    assert list(search.settle(plan, store).open) == [trial.id for trial in others]


def test_without_a_grid_nothing_is_chosen(make_plan: Callable[..., Plan], store: Store) -> None:
    plan = make_plan(lr_grid=[])
    found = search.settle(plan, store)
    assert not found.open
    assert found.plan == plan
