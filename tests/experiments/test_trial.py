"""A trial's identity, and the streams of randomness that belong to it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import build, code_version
from experiments.trial import SCHEMA_VERSION, Purpose, Recipe, Trial, canonical_json, stream
from mixers.registry import Component


def a_trial(**changes: object) -> Trial:
    fields = {
        "mixer": (Component("ssm", {"d_state": 16, "scan": "forward"}),),
        "skeleton": Component("isotropic-nano", {"expansion_ratio": 2.667}),
        "task": Component("digits", {"canvas": 16}),
        "train": Recipe(),
        "seed": 0,
    }
    return Trial(**{**fields, **changes})


def test_the_id_is_that_of_the_content() -> None:
    assert a_trial().id == a_trial().id
    assert len(a_trial().id) == 16
    reordered = Component("ssm", {"scan": "forward", "d_state": 16})
    assert a_trial(mixer=(reordered,)).id == a_trial().id


@pytest.mark.parametrize(
    "changes",
    [
        {"mixer": (Component("ssm", {"d_state": 8, "scan": "forward"}),)},
        {"mixer": (Component("conv", {"d_state": 16, "scan": "forward"}),)},
        {"skeleton": Component("isotropic-nano", {"expansion_ratio": 2.668})},
        {"task": Component("digits", {"canvas": 20})},
        {"seed": 1},
        *({"train": dataclasses.replace(Recipe(), **change)} for change in (
            {"epochs": 31}, {"lr": 1e-3}, {"weight_decay": 0.1}, {"selection": "best"}, {"clip_grad": 1.0},
            {"betas": (0.9, 0.95)}, {"mixup": 0.1}, {"opt": "sgd"},
        )),
    ],
)  # fmt: skip
def test_everything_that_determines_the_number_is_in_the_id(changes: dict[str, object]) -> None:
    assert a_trial(**changes).id != a_trial().id


def test_every_field_of_the_recipe_is_in_the_stored_trial() -> None:
    stored = a_trial().to_dict()
    assert set(stored["train"]) == {field.name for field in dataclasses.fields(Recipe)}


def test_survives_json() -> None:
    trial = a_trial()
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))).id == trial.id


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema version"):
        Trial.from_dict({**a_trial().to_dict(), "schema_version": SCHEMA_VERSION + 1})


def test_nan_has_no_canonical_text() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@given(st.integers(0, 10**9), st.integers(0, 10**6))
def test_streams_are_distinct_and_repeatable(seed: int, index: int) -> None:
    drawn = [stream(s, p, i) for s in (seed, seed + 1) for p in ("init", "order") for i in (index, index + 1)]
    assert len(set(drawn)) == len(drawn)
    assert drawn[0] == stream(seed, "init", index)
    assert all(0 <= each < 2**63 for each in drawn)


def test_streams_are_those_of_all_stored_records() -> None:
    purposes = get_args(Purpose)
    assert purposes == ("init", "data", "order", "augmentation", "noise")
    assert [stream(0, purpose, 1, "a") for purpose in purposes] == [
        649327547335369117, 5202343320185836368, 5430583297123492172, 8732451971873545052, 1452606848812444092
    ]  # fmt: skip


@pytest.mark.parametrize("changed", get_args(Purpose))
def test_initial_weights_are_of_their_own_stream(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mixer draws and what the skeleton does, in every layer."""
    mixer, skeleton, task = (Component(name, {}) for name in ("ssm", "isotropic-nano", "digits"))
    trial = build.resolve((mixer,), skeleton, task, Recipe(), seed=0)
    before = build.build_model(trial).state_dict()
    monkeypatch.setattr(
        build, "stream", lambda seed, purpose, *index: stream(seed + (purpose == changed), purpose, *index)
    )
    after = build.build_model(trial).state_dict()
    random = [name for name, weight in before.items() if weight.unique().numel() == weight.numel() > 100]
    assert len([name for name in random if "mixer" in name]) >= 4
    assert len([name for name in random if "mixer" not in name]) >= 4
    equal = {torch.equal(before[name], after[name]) for name in random}
    assert equal == {changed != "init"}


def test_records_in_a_checkout_are_no_change_of_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    for folder in ("mixers", "experiments/results"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    version = code_version.code_version.__wrapped__
    clean = version()
    (tmp_path / "experiments" / "results" / "b").write_text("2")
    assert version() == clean
    (tmp_path / "mixers" / "a").write_text("2")
    assert version() == f"{clean}+changes"
