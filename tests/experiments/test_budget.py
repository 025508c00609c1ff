"""Matching sizes, and what things cost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import run_ablation
from experiments import budget, build
from experiments.build import count_costs
from experiments.cost import training_memory
from experiments.skeletons import SKELETONS
from experiments.tasks import TASKS
from experiments.trial import Recipe, Trial
from mixers import MIXERS, InputError

MakeTrial = Callable[..., Trial]

GMACS = {"femto": 1.148, "kobe": 1.506, "tiny": 4.470, "small": 8.936, "base": 15.794}
RECORDS = Path(__file__).parents[2] / "experiments" / "results" / "cpu" / "studies"
MAMBA_BLOCK = "isotropic-nano(block=mamba)"
"""Its mixer gets all hidden channels, so that matching is by the mixer's own width."""


def _with_ratio(trial: Trial, ratio: float) -> Trial:
    skeleton = trial.skeleton.with_options({"expansion_ratio": ratio})
    return dataclasses.replace(trial, skeleton=skeleton)


@pytest.mark.parametrize(("size", "published"), GMACS.items())
def test_macs_of_the_released_models(
    tiny_trial: MakeTrial, size: str, published: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MambaOut at 224 x 224, convolutions and linear layers alone."""
    from experiments.interface import TaskSpec
    from experiments.tasks.digits import Digits

    imagenet = TaskSpec(input="image", channels=3, grid=(224, 224), classes=1000)
    monkeypatch.setattr(Digits, "spec", property(lambda self: imagenet))
    costs = count_costs(tiny_trial(skeleton=f"mambaout-{size}"))
    assert costs.macs / 1e9 == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize(
    ("skeleton", "what"),
    [("isotropic-nano", "params"), ("isotropic-nano", "macs"), ("mambaout-nano", "params")],
)
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in ("mila-attention",)])
def test_every_mixer_can_be_matched(tiny_trial: MakeTrial, mixer: str, skeleton: str, what: str) -> None:
    target = budget.size_of(tiny_trial(skeleton=skeleton), what)
    trial = tiny_trial(mixer, skeleton=skeleton)
    if budget.size_of(_with_ratio(trial, 1.0), what) > target * (1 + budget.TOLERANCE):
        with pytest.raises(InputError, match="cannot be matched"):
            budget.match(trial, what, target)
        return
    matched, matching = budget.match(trial, what, target)
    assert abs(matching.mismatch) <= budget.TOLERANCE
    assert getattr(count_costs(matched), what) == matching.achieved
    only_the_width = matched.skeleton.with_options({"expansion_ratio": 1.0})
    assert only_the_width == tiny_trial(skeleton=skeleton).skeleton.with_options({"expansion_ratio": 1.0})


def test_what_matches_already_is_left_alone(tiny_trial: MakeTrial) -> None:
    trial = tiny_trial(skeleton="isotropic-nano(readout=last)")
    assert budget.match(trial, "params", count_costs(tiny_trial()).params)[0] == trial


@pytest.mark.parametrize("mixer", ["attention", "gated-linear-attention", "mambavision", "mamba", "ssm"])
def test_the_nearest_width_is_found(tiny_trial: MakeTrial, mixer: str) -> None:
    """Against all widths: of stepped sizes, and of a mixer that takes only even ones."""
    target = budget.size_of(tiny_trial(skeleton=MAMBA_BLOCK), "params")
    trial = tiny_trial(mixer, skeleton=MAMBA_BLOCK)
    missed = []
    for hidden in range(16, 81):
        with contextlib.suppress(InputError):
            size = budget.size_of(_with_ratio(trial, (hidden + 0.5) / 32), "params")
            missed.append(abs(size / target - 1))
    if min(missed) > budget.TOLERANCE:
        with pytest.raises(InputError, match=rf"nearest .* \([+-]{min(missed):.2%}, more than 2%\)"):
            budget.match(trial, "params", target)
    else:
        assert abs(budget.match(trial, "params", target)[1].mismatch) == min(missed)


def test_a_block_without_hidden_channels_is_refused(tiny_trial: MakeTrial) -> None:
    skeleton = "isotropic-nano(block=metaformer, mlp=none)"
    target = budget.size_of(tiny_trial(skeleton=skeleton), "params")
    with pytest.raises(InputError, match=r"ssm.* cannot be matched on parameters"):
        budget.match(tiny_trial("ssm", skeleton=skeleton), "params", target)


@pytest.mark.parametrize("study", ["bytes-small", "digits-ladder", "mambaout-ladder"])
def test_the_records_keep_their_names(study: str) -> None:
    """A trial's id holds its ratio, and of several that give one width the search has a choice."""
    arms = json.loads((RECORDS / study / "plan.json").read_bytes())["arms"]
    templates = [Trial.from_dict(arm["template"]) for arm in arms]
    asked = next(
        template.skeleton.options["expansion_ratio"]
        for arm, template in zip(arms, templates, strict=True)
        if not arm["matching"]
    )
    for arm, template in zip(arms, templates, strict=True):
        if arm["matching"]:
            matched, _ = budget.match(_with_ratio(template, asked), "params", arm["matching"]["target"])
            assert matched.id == template.id, arm["name"]


def test_an_unreachable_size_is_refused(tiny_trial: MakeTrial) -> None:
    with pytest.raises(InputError, match="cannot be matched on parameters"):
        budget.match(tiny_trial("attention"), "params", 10_000)


LANGUAGE = "mqar(length=16, vocabulary=32, pairs=2, train=64, validation=8, test=8)"


@pytest.mark.parametrize(
    ("skeleton", "said"),
    [
        ("causal-lm(dim=32, depth=1)", "; its mixer has 41 channels instead of 64"),
        ("causal-lm(dim=32, depth=1, block=gated)", ""),
    ],
)
def test_a_plan_says_where_matching_changes_the_mixer_too(
    skeleton: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--mixer", "causal-conv", "ssm", "--baseline", "causal-conv"]
    asked = ["plan", *arms, "--task", LANGUAGE, "--skeleton", skeleton, "--runs", str(tmp_path)]
    assert run_ablation.main(asked) == 0
    first = capsys.readouterr().out
    assert run_ablation.main(asked) == 0
    assert capsys.readouterr().out == first, "read from the stored plan"
    (stored,) = tmp_path.glob("studies/*/plan.json")
    conv, ssm = json.loads(stored.read_bytes())["arms"]
    assert conv["matching"] is None
    ratio = ssm["template"]["skeleton"]["options"]["expansion_ratio"]
    in_one_line = " ".join(first.split())
    assert f"mixer=ssm, and, to match, expansion_ratio={ratio:.4g}{said} Matched" in in_one_line
    assert f"of causal-conv (expansion_ratio {ratio:g}{said}) 10 trials" in in_one_line
    widths = {"target": [64], "achieved": [41]} if said else None
    assert ssm["matching"].get("mixer_channels") == widths


def test_several_widths_are_told_stage_by_stage(tiny_trial: MakeTrial) -> None:
    wide, narrow = (tiny_trial(skeleton=f"mambaout-nano(block=mamba, expansion_ratio={r})") for r in (2, 1))
    assert budget.mixer_widths(wide, narrow) == {
        "mixer_channels": {"target": [64, 128], "achieved": [32, 64]}
    }
    assert budget.mixer_widths(wide, wide) == {}


def test_parameters_are_split_between_mixer_and_rest(tiny_trial: MakeTrial) -> None:
    trial = tiny_trial("ssm")
    costs = count_costs(trial)
    built = build.build_model(trial)
    assert costs.params == sum(p.numel() for p in built.parameters())
    without = count_costs(dataclasses.replace(trial, mixer=tiny_trial("identity").mixer))
    assert costs.params - costs.params_mixer == without.params
    assert costs.macs - costs.macs_mixer == without.macs
    assert without.params_mixer == without.macs_mixer == 0
    stored = costs.to_dict()
    assert stored["params"] == costs.params
    assert stored["params_mixer"] == costs.params_mixer
    assert stored["params_rest"] == without.params
    assert (stored["macs"], stored["macs_mixer"]) == (costs.macs, costs.macs_mixer)
    assert (stored["state_bytes"], stored["state_note"]) == (None, "no recurrent form")


@pytest.mark.parametrize(
    ("mixer", "numbers"),
    [
        ("ssm", 2 * (16 * 16 + 3 * 16)),  # channels x states, and what its convolution looks back on
        ("causal-attention(head_dim=4)", 2 * 2 * 16 * 16),  # keys and values of each token
        ("ssm,causal-conv", 16 * 16 + 3 * 16 + 3 * 16),
    ],
)
def test_the_state_is_that_of_all_layers_at_the_length_of_the_task(mixer: str, numbers: int) -> None:
    skeleton = SKELETONS.parse("causal-lm(dim=8, depth=2)")
    trial = build.resolve(MIXERS.parse_pattern(mixer), skeleton, TASKS.parse(LANGUAGE), Recipe(), seed=0)
    stored = count_costs(trial).to_dict()
    assert (stored["state_bytes"], stored["state_note"]) == (4 * numbers, "float32, per sequence")


def test_the_memory_of_training_is_that_of_what_is_kept() -> None:
    """Of a product and a square of floats: what comes in (5, 3), what comes out (5, 2), and the loss."""
    model, x = nn.Linear(3, 2, bias=False), torch.ones(5, 3, requires_grad=True)

    def loss() -> torch.Tensor:
        return model(x).square().sum()

    optimizer = torch.optim.AdamW(model.parameters())
    loss().backward()
    optimizer.step()
    weights, gradients, moments, steps = 6, 6, 2 * 6, 1
    assert training_memory(model, loss, optimizer) == 4 * (
        5 * 3 + 5 * 2 + 1 + weights + gradients + moments + steps
    )
