"""What a study resolves to: its checked-in records are of the trials that it still asks for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import study as studies
from experiments.plan import Origin, PlannedArm
from experiments.resolve_study import resolve

RECORDS = Path(__file__).parents[2] / "experiments" / "results" / "cpu"


def with_rate(arm: PlannedArm, lr: float) -> PlannedArm:
    """As a search chooses it after the study is resolved."""
    train = dataclasses.replace(arm.template.train, lr=lr)
    return dataclasses.replace(arm, template=dataclasses.replace(arm.template, train=train))


@pytest.mark.parametrize(
    "name", ["digits-ladder", "induction-heads-small", "mqar-small", "selective-copying-small"]
)
def test_records_are_of_what_the_study_asks_for(name: str) -> None:
    """File, defaults of all options, sizes, ids and data: of none may anything have changed unnoticed."""
    stored = json.loads((RECORDS / "studies" / name / "plan.json").read_bytes())
    plan = resolve(name, studies.load(studies.find(name)))
    assert {key: stored[key] for key in plan.details} == plan.details, "else a report writes the plan anew"
    every = [json.loads(path.read_bytes()) for path in (RECORDS / "studies").glob("*/plan.json")]
    assert {frozenset(each) for each in every} == {frozenset(plan.to_dict(Origin("")))}
    assert (plan.study.margin, plan.study.alpha) == (stored["margin"], stored["alpha"])
    comparisons, families = plan.comparisons()
    assert (comparisons, families) == (stored["comparisons"], stored["families"])
    assert [arm.name for arm in plan.arms] == [arm["name"] for arm in stored["arms"]]
    for arm, before in zip(plan.arms, stored["arms"], strict=True):
        assert arm.matching == before["matching"]
        arm = with_rate(arm, before["template"]["train"]["lr"])
        for trial in before["trials"]:
            assert arm.trial(trial["seed"]).id == trial["trial_id"], arm.name
        folder = RECORDS / "trials" / before["trials"][0]["trial_id"]
        data = json.loads((folder / "result.json").read_bytes())["data"]
        assert data["fingerprint"] == plan.fingerprints[str(arm.template.task)]
