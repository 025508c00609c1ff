"""What a stored plan is good for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import plan
from experiments.study import Arm, Published, Study

STUDY = Study(
    question="?", varied="", fixed="", cost="", answer="", task="digits", skeleton="isotropic-nano",
    baseline="conv", mixers=("conv", "identity", "pooling"), seeds=3, match="none", margin=1.0,
)  # fmt: skip

ORIGIN = plan.Origin("command")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan.write(plan.make("words", STUDY, path), path, ORIGIN)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "!", "answer": "yes"},
        {"seeds": 1_000},
        {"comparisons": (("pooling", "identity"),)},
        {"published": (Published("pooling", 99.0, "nowhere", "best of one", 1.0),)},
    ],
)
def test_other_words_seeds_or_comparisons_need_no_models(
    changes: dict[str, Any], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(STUDY, **changes)
    fresh = plan.make("words", wanted, stored.with_name("none"))
    monkeypatch.setattr(plan, "_resolve", lambda *_: pytest.fail("models were built"))
    assert plan.make("words", wanted, stored).to_dict(ORIGIN) == fresh.to_dict(ORIGIN)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "digits(canvas=8)"},
        {"baseline": "pooling"},
        {"match": "params"},
        {"margin": 2.0},
        {"lr_grid": (1e-3, 2e-3)},
        {"arms": (Arm("wide", "conv(kernel_size=9)"),)},
        {"train": replace(STUDY.train, epochs=3)},
    ],
)
def test_another_model_or_recipe_is_planned_anew(
    changes: dict[str, Any], stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Resolved(Exception):
        pass

    def resolve(*_: object) -> None:
        raise Resolved

    monkeypatch.setattr(plan, "_resolve", resolve)
    with pytest.raises(Resolved):
        plan.make("words", replace(STUDY, **changes), stored)
