"""The loop: same bits, resumed or not; pairs that share everything but the mixer; divergence as a result."""

from __future__ import annotations

import gc
import json
import math
import random
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from experiments import build, learner, recorder
from experiments import evaluate as evaluation
from experiments.build import build_model, create_task
from experiments.checkpoint import Progress
from experiments.cost import token_mixers
from experiments.divided_batches import own_share, with_whole_batches
from experiments.evaluate import Evaluator
from experiments.interface import TaskSpec
from experiments.machine import is_out_of_memory
from experiments.ranks import ALONE, Ranks
from experiments.recipe import make_optimizer
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS
from experiments.store import Store, TrialFolder
from experiments.tasks import TASKS
from experiments.tasks.base import ACCURACY, Batch, Classification, share
from experiments.tasks.digits import DigitsData
from experiments.train import Interrupted, Training, run_trial, seed_noise
from experiments.trial import Recipe, Trial
from mixers import MIXERS, InputError, backends
from mixers.s6 import SelectiveScan

MakeTrial = Callable[..., Trial]


def outcome(folder: TrialFolder) -> tuple[dict, bytes, np.ndarray]:
    """All that must not depend on how the trial was run."""
    result = folder.result()
    assert result is not None
    predictions = np.load(folder.predictions)
    return result, folder.curve.read_bytes(), np.stack([predictions[name] for name in predictions.files])


def run(
    trial: Trial, store: Store, stop: Callable[[], bool] = lambda: False, **runtime: object
) -> TrialFolder:
    folder = store.folder(trial.id)
    run_trial(trial, folder, Runtime(**runtime), stop)
    return folder


def curve(folder: TrialFolder) -> list[float]:
    """All numbers of the curve, row by row."""
    return [float(value) for row in folder.curve.read_text().splitlines()[1:] for value in row.split(",")]


def test_same_trial_same_bits(tiny_trial: MakeTrial, tmp_path) -> None:
    trial = tiny_trial("ssm")
    one, two = (outcome(run(trial, Store(tmp_path / name))) for name in ("a", "b"))
    assert one[:2] == two[:2]
    assert np.array_equal(one[2], two[2])


@pytest.mark.parametrize("mixer", ["ssm", "attention"])
@pytest.mark.parametrize("stop_at", [1, 7, 12, 13, 23])
def test_resuming_equals_no_interruption(tiny_trial: MakeTrial, tmp_path, mixer: str, stop_at: int) -> None:
    trial = tiny_trial(
        mixer,
        skeleton="isotropic-nano(drop_path=0.2)",
        mixup=0.8,
        cutmix=1.0,
        clip_grad=1.0,
        selection="best",
        batch_size=32,
        epochs=2,
    )
    whole = outcome(run(trial, Store(tmp_path / "whole")))
    store = Store(tmp_path / "parts")
    steps: Iterator[int] = iter(range(1, 1_000))
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == stop_at)
    torch.randn(3), np.random.rand(3)  # global generators are elsewhere by now
    parts = outcome(run(trial, store))
    assert whole[:2] == parts[:2]
    assert np.array_equal(whole[2], parts[2])


def test_resuming_at_a_random_step_with_average_accumulation_and_mixup(
    tiny_trial: MakeTrial, tmp_path
) -> None:
    trial = tiny_trial(
        "conv",
        skeleton="isotropic-nano(drop_path=0.2)",
        batch_size=64,
        mixup=0.8,
        cutmix=1.0,
        ema_decay=0.9,
        cooldown_epochs=1,
        selection="best",
    )
    whole = outcome(run(trial, Store(tmp_path / "whole"), micro_batch=24))
    steps = iter(range(1, 1_000))
    stop_at = random.SystemRandom().randrange(1, 3 * 6)
    store = Store(tmp_path / "parts")
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == stop_at, micro_batch=24)
    parts = outcome(run(trial, store, micro_batch=24))
    assert whole[:2] == parts[:2], f"stopped at step {stop_at}"
    assert np.array_equal(whole[2], parts[2])
    assert whole[0]["provenance"]["micro_batch"] == 24


def test_the_scaler_of_float16_is_restored(tiny_trial: MakeTrial, tmp_path) -> None:
    trial = tiny_trial("conv", precision="float16", clip_grad=1.0, epochs=1, batch_size=128)
    whole = outcome(run(trial, Store(tmp_path / "whole")))
    store = Store(tmp_path / "parts")
    steps = iter(range(1, 1_000))
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == 2)
    saved = torch.load(store.folder(trial.id).checkpoint, weights_only=True)
    assert saved["scaler"]["_growth_tracker"] == 2
    assert whole[:2] == outcome(run(trial, store))[:2]


@pytest.mark.parametrize("size", [4, 7])
def test_accumulation_changes_rounding_only(tiny_trial: MakeTrial, tmp_path, size: int) -> None:
    """Parts of different sizes too; of sequences in which different numbers of tokens are asked for; and
    stochastic depth and dropout are those of the whole batch."""
    copying = token_trial(
        "ssm",
        "mad-noisy-recall(length=16, vocabulary=32, train=64, validation=20, test=20)",
        "causal-lm(dim=8, depth=2, drop_path=0.3, embed_drop=0.2)",
    )
    images = tiny_trial("conv", skeleton="isotropic-nano(drop_path=0.3)", mixup=0.8, epochs=1)
    for name, trial in (("images", images), ("tokens", copying)):
        curves = [
            curve(run(trial, Store(tmp_path / f"{name} {part}"), micro_batch=part)) for part in (None, size)
        ]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_channels_last_changes_rounding_only(tiny_trial: MakeTrial, tmp_path) -> None:
    trial = tiny_trial("conv", skeleton="mambaout-nano", epochs=1)
    plain, last = (curve(run(trial, Store(tmp_path / str(on)), channels_last=on)) for on in (False, True))
    assert plain == pytest.approx(last, rel=1e-4)


def test_the_average_is_what_is_tested_and_kept(tiny_trial: MakeTrial, tmp_path) -> None:
    """Held against the average taken by hand of the weights after every step."""
    plain = tiny_trial("conv", epochs=1, warmup_epochs=0)
    averaged = tiny_trial("conv", epochs=1, warmup_epochs=0, ema_decay=0.5)
    history: list[dict[str, torch.Tensor]] = []
    step = torch.optim.AdamW.step

    def record(optimizer: torch.optim.AdamW, closure: None = None) -> None:
        step(optimizer, closure)
        weights = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        history.append({str(i): weight for i, weight in enumerate(weights)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", record)
        kept = run(plain, Store(tmp_path / "plain"))
    by_hand = history[0]
    for weights in history[1:]:
        by_hand = {name: by_hand[name].lerp(weights[name], 0.5) for name in by_hand}
    folder = run(averaged, Store(tmp_path / "averaged"))
    stored = safetensors.torch.load_file(folder.weights)
    last = safetensors.torch.load_file(kept.weights)
    assert sum(w.sum().item() for w in stored.values()) == pytest.approx(
        sum(w.sum().item() for w in by_hand.values()), rel=1e-5
    )
    assert any(not torch.equal(stored[name], last[name]) for name in stored)
    model = build_model(averaged)
    model.load_state_dict(stored)
    task = create_task(averaged.task)
    found, _ = Evaluator(task, task.load(0), torch.device("cpu")).answer(model, "test")
    result = folder.result()
    assert result is not None
    assert found == result["metrics"]["test"]


def test_cooldown_stays_at_the_lowest_rate(tiny_trial: MakeTrial, store: Store) -> None:
    rows = run(tiny_trial(cooldown_epochs=2, min_lr=3e-5), store).curve.read_text().splitlines()[1:]
    assert len(rows) == 4
    rates = [float(row.split(",")[1]) for row in rows]
    assert rates[1] > 3e-5
    assert rates[2:] == pytest.approx([3e-5, 3e-5])


@pytest.mark.parametrize(("higher", "accuracies"), [(True, (1, 3, 3, 2)), (False, (3, 1, 1, 2))])
def test_the_best_epoch_is_what_is_tested_and_kept(
    tiny_trial: MakeTrial,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    higher: bool,
    accuracies: tuple[float, ...],
) -> None:
    """The first of equals, though training went on; of the averaged weights, which are what is judged."""
    judged: list[dict[str, torch.Tensor]] = []
    evaluate_ = Training.evaluate

    def tell(of: Training, split: str) -> tuple[dict[str, float], Any]:
        metrics, answers = evaluate_(of, split)
        judged.append({name: value.clone() for name, value in of.state.learner.tested.state_dict().items()})
        return metrics | {"accuracy": [*accuracies, 0.0, 0.0][len(judged) - 1]}, answers

    monkeypatch.setattr(Training, "evaluate", tell)
    monkeypatch.setattr(Classification, "metric", replace(ACCURACY, higher_is_better=higher))
    trial = tiny_trial("identity", epochs=4, batch_size=128, selection="best", ema_decay=0.5)
    folder = run(trial, store)
    result, kept = folder.result(), safetensors.torch.load_file(folder.weights)
    assert result is not None
    assert result["selected_epoch"] == 2
    for weights in (kept, *judged[-2:]):
        assert all(torch.equal(weights[name], judged[1][name]) for name in kept)
    assert not all(torch.equal(judged[1][name], judged[2][name]) for name in kept)


def test_the_time_of_all_sessions_is_counted_once(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is saved; half of it is spent waiting for data here."""
    train_batches = DigitsData.train_batches

    def slow(data: DigitsData, *arguments: Any, **start: int) -> Iterator[Batch]:
        for batch in train_batches(data, *arguments, **start):
            time.sleep(0.02)
            yield batch

    monkeypatch.setattr(DigitsData, "train_batches", slow)
    trial = tiny_trial("identity", epochs=2, batch_size=32)
    steps, begun = iter(range(1, 100)), time.monotonic()
    with pytest.raises(Interrupted):
        run(trial, store, stop=lambda: next(steps) == 10, checkpoint_every=0.0)
    interrupted = time.monotonic() - begun
    time.sleep(0.5)
    again = time.monotonic()
    timing = run(trial, store, checkpoint_every=0.0).timing()
    finished = time.monotonic() - again
    assert 24 * 0.02 < timing["train_seconds"] < interrupted + finished
    training = 24 * 32 / timing["examples_per_second"]
    assert 24 * 0.02 < training < timing["train_seconds"]
    assert 24 * 0.02 / training < timing["waiting_for_data"] < 1


def test_progress_is_told_step_by_step(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays at the end of an epoch while it is validated, of the last one while that is tested."""
    monkeypatch.setattr(recorder, "PROGRESS_EVERY", 0.0)
    told: list[dict[str, float]] = []
    monkeypatch.setattr(TrialFolder, "report_progress", lambda of, **fields: told.append(fields))
    run(tiny_trial("identity", epochs=2, cooldown_epochs=1, batch_size=128), store)  # 3 steps in each epoch
    steps = [(1, 1), (1, 2), (1, 3), (1, 3), (2, 4), (2, 5), (2, 6), (2, 6), (3, 7), (3, 8), (3, 9), (3, 9)]
    found = [(each["epoch"], each["fraction"]) for each in told]
    assert found[:13] == [(0, 0.0), *((epoch, pytest.approx(step / 9)) for epoch, step in steps)]
    assert set(found[13:]) == {(3, 1.0)}
    assert {each["epochs"] for each in told} == {3}
    seconds = [each["seconds"] for each in told]
    assert seconds == sorted(seconds)
    assert 0 == seconds[0] < seconds[1]


def test_it_learns(tiny_trial: MakeTrial, store: Store) -> None:
    result = run(tiny_trial(epochs=8), store).result()
    assert result is not None
    assert result["metrics"]["test"]["accuracy"] > 50


def test_divergence_is_a_result(tiny_trial: MakeTrial, store: Store) -> None:
    result = run(tiny_trial("conv", opt="sgd", lr=1e12, warmup_epochs=0), store).result()
    assert result is not None
    assert result["status"] == "diverged"
    assert result["metrics"] == {}
    assert "not finite" in result["error"]


def test_a_run_leaves_no_file_of_the_one_before(tiny_trial: MakeTrial, store: Store) -> None:
    """Of one whose result was set aside to train it anew."""
    diverging, unkept = tiny_trial(lr=1e30, warmup_epochs=0), tiny_trial("identity", epochs=1)
    for trial in (diverging, unkept):
        folder = store.folder(trial.id)
        folder.path.mkdir(parents=True)
        for file in (folder.curve, folder.predictions, folder.weights):
            file.write_bytes(b"of before")
    folder = run(diverging, store)
    assert not folder.curve.exists(), "it ends in its first epoch"
    assert not folder.predictions.exists()
    assert not run(unkept, store, keep_weights=False).weights.exists()


def test_epochs_do_not_wait_for_the_disk(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    folder = run(tiny_trial("identity", epochs=3), store)
    files = (
        "trial.json",
        "curve.csv",
        "predictions.npz",
        "weights.safetensors",
        "timing.json",
        "result.json",
    )
    assert len(synced) == len(files)
    assert all((folder.path / name).exists() for name in files)


def test_a_non_finite_kernel_output_names_its_layer(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    original = SelectiveScan.forward

    def breaks_once(self: SelectiveScan, u: torch.Tensor, *, reverse: bool = False) -> torch.Tensor:
        nonlocal calls
        calls += 1
        y = original(self, u, reverse=reverse)
        return y * float("nan") if calls > 12 and reverse else y

    monkeypatch.setattr(SelectiveScan, "forward", breaks_once)
    result = run(tiny_trial("ssm"), store).result()
    assert result is not None
    assert result["status"] == "diverged"
    assert "first in the output of blocks.0.mixer.scans.1 (SelectiveScan)" in result["error"]


def test_the_record_says_what_made_it(tiny_trial: MakeTrial, store: Store) -> None:
    backends.calls.clear()
    folder = run(tiny_trial("ssm", epochs=1), store, backend="reference")
    result = folder.result()
    assert result is not None
    assert result["provenance"]["backend"] == {"scan": "reference"}
    assert set(backends.calls) == {"reference"}, "the backend on record is the one that ran"
    assert result["data"]["train"] + result["data"]["validation"] + result["data"]["test"] == 1797
    assert result["costs"]["params"] == result["costs"]["params_mixer"] + result["costs"]["params_rest"]
    assert folder.timing()["peak_memory_bytes"] > 0
    stored = json.loads((folder.path / "trial.json").read_text())
    assert Trial.from_dict(stored).id == folder.trial_id


def test_the_record_says_what_earlier_sessions_ran_with(tiny_trial: MakeTrial, store: Store) -> None:
    """Each once, however often the trial was interrupted; nothing where all were alike."""
    trial = tiny_trial("ssm", epochs=1, batch_size=32)
    for backend, stop_at in (("reference", 1), ("reference", 2), ("auto", 2), ("reference", 2)):
        steps = iter(range(1, 100))
        with pytest.raises(Interrupted):
            run(trial, store, stop=lambda: next(steps) == stop_at, backend=backend)  # noqa: B023
    folder = run(trial, store, backend="reference")
    result = folder.result()
    assert result is not None
    (earlier,) = result["provenance"]["earlier_sessions"]
    assert earlier["backend"] == {"scan": "cpu"}
    assert result["provenance"]["backend"] == {"scan": "reference"}
    assert folder.log.read_text() == (
        "goes on after step 3 with other backend\ngoes on after step 5 with other backend\n"
    )
    alike = run(trial, Store(store.root / "whole"), backend="reference").result()
    assert alike is not None
    assert "earlier_sessions" not in alike["provenance"]


@pytest.mark.parametrize("other", ["identity", "ssm", "attention"])
def test_arms_of_a_seed_share_everything_but_the_mixer(tiny_trial: MakeTrial, other: str) -> None:
    """Same batches, and the same initial value in every tensor that both have in the same shape."""
    one, two = (
        tiny_trial("conv", seed=3),
        tiny_trial(other, seed=3, skeleton="isotropic-nano(expansion_ratio=2)"),
    )
    batches = [next(create_task(t.task).load(t.seed).train_batches(1, 8)) for t in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    first, second = (dict(build_model(trial).named_parameters()) for trial in (one, two))
    shared = [n for n in first if ".mixer." not in n and n in second and first[n].shape == second[n].shape]
    assert len(shared) > 15
    assert all(torch.equal(first[name], second[name]) for name in shared)
    drawn = [name for name in shared if first[name].unique().numel() > 1]
    elsewhere = dict(build_model(tiny_trial("conv", seed=4)).named_parameters())
    assert all(not torch.equal(first[name], elsewhere[name]) for name in drawn)


def test_building_leaves_the_global_generator_alone(tiny_trial: MakeTrial) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_model(tiny_trial("ssm"))
    assert torch.equal(torch.rand(3), expected)


def test_a_mixer_in_a_backbone_has_its_own_initialisation(tiny_trial: MakeTrial) -> None:
    model = build_model(tiny_trial("ssm"))
    biases = [p for name, p in model.named_parameters() if name.endswith("dt_proj.bias")]
    assert len(biases) == 8
    for bias in biases:
        delta = torch.nn.functional.softplus(bias)
        assert 1e-4 <= delta.min() <= delta.max() <= 0.1 + 1e-6


def test_what_a_mixer_exempts_is_not_decayed(tiny_trial: MakeTrial) -> None:
    trial = tiny_trial("ssm")
    model = build_model(trial)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        names[id(p)]
        for group in make_optimizer(model, trial.train).param_groups
        if group["weight_decay"] > 0
        for p in group["params"]
    }
    assert decayed
    assert not [name for name in decayed if name.endswith(("A_log", ".D", "bias", "pos_embed"))]
    assert [name for name in decayed if name.endswith("fc1.weight")]


def test_mixers_by_stage_and_by_layer(tiny_trial: MakeTrial) -> None:
    def mixers(trial: Trial) -> list[str]:
        return [type(mixer).__name__ for _, mixer in token_mixers(build_model(trial))]

    by_layer = tiny_trial("conv,ssm(d_state=4)")
    assert mixers(by_layer) == ["DepthwiseConv", "SelectiveSSM"] * 2
    assert mixers(tiny_trial("ssm*3,attention")) == ["SelectiveSSM"] * 3 + ["Attention"]
    by_stage = tiny_trial("conv,attention", skeleton="mambaout-nano")
    assert mixers(by_stage) == ["DepthwiseConv"] * 2 + ["Attention"] * 4
    assert Trial.from_dict(json.loads(json.dumps(by_stage.to_dict()))) == by_stage
    for text, skeleton in (("conv,ssm,conv", "mambaout-nano"), ("conv*5", "isotropic-nano")):
        with pytest.raises(InputError, match="takes"):
            build_model(tiny_trial(text, skeleton=skeleton))


# ---- tokens


def token_trial(mixer: str, task: str, skeleton: str = "causal-lm(dim=8, depth=1)") -> Trial:
    recipe = Recipe(epochs=1, batch_size=16, warmup_epochs=0, label_smoothing=0.0)
    return build.resolve(
        MIXERS.parse_pattern(mixer), SKELETONS.parse(skeleton), TASKS.parse(task), recipe, seed=0
    )


INDUCTION = "induction(length=8, vocabulary=4, train=64, validation=20, test=50, test_lengths=8..32)"


def test_further_test_sets_are_in_the_result(store: Store) -> None:
    result, _, predictions = outcome(run(token_trial("ssm", INDUCTION), store))
    assert {"accuracy_8", "accuracy_16", "accuracy_32", "accuracy"} <= result["metrics"]["test"].keys()
    assert set(result["metrics"]["validation"]) == {"accuracy", "loss"}
    assert predictions.shape == (3, 50)
    assert result["skipped"] == {}


def test_long_sequences_are_read_token_by_token_or_not_at_all(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, _, _ = outcome(run(token_trial("ssm", INDUCTION), Store(tmp_path / "at once")))
    monkeypatch.setattr("experiments.evaluate.IN_PARALLEL", 15)
    in_steps, _, _ = outcome(run(token_trial("ssm", INDUCTION), Store(tmp_path / "in steps")))
    for name in ("accuracy_16", "accuracy_32"):
        assert in_steps["metrics"]["test"][name] == pytest.approx(at_once["metrics"]["test"][name])
        loss = name.replace("accuracy", "loss")
        assert in_steps["metrics"]["test"][loss] == pytest.approx(at_once["metrics"]["test"][loss], rel=1e-4)
    attention, _, _ = outcome(run(token_trial("causal-attention(head_dim=4)", INDUCTION), Store(tmp_path)))
    assert set(attention["skipped"]) == {"16", "32"}
    assert "32 tokens do not fit: what blocks.0.mixer carries grows" in attention["skipped"]["32"]
    assert "accuracy_16" not in attention["metrics"]["test"]


@pytest.mark.parametrize("problem", ["memory", "numbers"])
def test_what_a_further_test_set_cannot_give_is_skipped(
    store: Store, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    answer = evaluation._answer

    def spoilt(model: nn.Module, spec: TaskSpec, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.shape[1] < 32:
            return answer(model, spec, inputs)
        if problem == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(model, spec, inputs) * math.nan

    monkeypatch.setattr(evaluation, "_answer", spoilt)
    result, _, _ = outcome(run(token_trial("ssm", INDUCTION), store))
    assert result["status"] == "ok"
    assert {"accuracy_8", "accuracy_16"} <= result["metrics"]["test"].keys()
    expected = "not even one example of the test_32 split fits" if problem == "memory" else "loss not finite"
    assert expected in result["skipped"]["32"]


def test_tests_are_at_the_precision_of_training_but_without_its_noise(tiny_trial: MakeTrial) -> None:
    """And what comes out is measured in float32."""
    trial = tiny_trial("conv", skeleton="isotropic-nano(drop_path=0.5)")
    task = create_task(trial.task)
    data, model = task.load(0), build_model(trial)
    full, half = (Evaluator(task, data, torch.device("cpu"), each) for each in ("float32", "bfloat16"))
    model.train()
    assert full.answer(model, "test")[0] == full.answer(model.train(), "test")[0]
    outputs, rounded = (next(each._answered(model, "test", 8))[0] for each in (full, half))
    assert outputs.dtype == rounded.dtype == torch.float32
    assert not torch.equal(outputs, rounded)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert torch.allclose(outputs, rounded, atol=0.1)


def graphs() -> int:
    """Tensors that hold what computed them."""
    return sum(each.grad_fn is not None for each in gc.get_objects() if type(each) is torch.Tensor)


@pytest.mark.parametrize("mixer", ["conv", "ssm", "attention", "gru"])
def test_a_run_leaves_no_model_behind(
    mixer: str, tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker runs many trials: the memory of one is free before Python looks for circles."""
    models, graphs_before = [], graphs()
    original = learner.build_model

    def build(trial: Trial) -> nn.Module:
        model = original(trial)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(learner, "build_model", build)
    gc.disable()
    try:
        run(tiny_trial(mixer, epochs=1), store)
        assert [model() for model in models] == [None]
        assert graphs() == graphs_before
    finally:
        gc.enable()


@pytest.mark.parametrize("batches", [2, 5, 8])
def test_a_stop_is_heard_in_tests_too(
    tiny_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """3 batches of validation after the epoch, 3 of validation and 6 of the test at the end."""
    monkeypatch.setattr(evaluation, "EXAMPLES_AT_ONCE", 64)
    trial = tiny_trial("conv", epochs=1, batch_size=256)
    whole = run(trial, Store(tmp_path / "whole"))
    folder = Store(tmp_path / "stopped").folder(trial.id)
    left = 4 + batches  # there are 4 steps of training

    def stop_requested() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    with pytest.raises(Interrupted):
        run_trial(trial, folder, Runtime(), stop_requested)
    assert folder.result() is None
    run_trial(trial, folder, Runtime())
    (result, curve, answers), (expected, its_curve, its_answers) = outcome(folder), outcome(whole)
    assert (result, curve) == (expected, its_curve)
    assert np.array_equal(answers, its_answers)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory\nCompile with..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_test_that_is_not_finite_is_divergence(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_ = Training.evaluate

    def spoilt(of: Training, split: str):
        metrics, answers = evaluate_(of, split)
        return (metrics | {"loss": math.inf} if split == "test" else metrics), answers

    monkeypatch.setattr(Training, "evaluate", spoilt)
    result = run(tiny_trial("identity", epochs=1), store).result()
    assert result is not None
    assert (result["status"], result["metrics"]) == ("diverged", {})
    assert result["error"] == "test: loss not finite"


def test_a_validation_that_is_not_finite_names_its_epoch(
    tiny_trial: MakeTrial, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "evaluate", lambda of, split: ({"loss": math.nan}, {}))
    result = run(tiny_trial("identity", epochs=2), store).result()
    assert result is not None
    assert (result["status"], result["selected_epoch"]) == ("diverged", 1)
    assert result["error"] == "validation after epoch 1: loss not finite"


def test_what_looks_at_whole_batches_sees_them_or_refuses() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    recipe, cpu = Recipe(batch_size=8), torch.device("cpu")
    assert with_whole_batches(model, recipe, Runtime(), ALONE, cpu) is model
    assert with_whole_batches(model, recipe, Runtime(micro_batch=8), ALONE, cpu) is model
    with pytest.raises(InputError, match="which 4 examples at a time would change"):
        with_whole_batches(model, recipe, Runtime(micro_batch=4), ALONE, cpu)
    with pytest.raises(InputError, match="which processes share on GPUs only"):
        with_whole_batches(model, recipe, Runtime(), Ranks(0, 2), cpu)
    balanced = build.build_model(
        token_trial("ssm", INDUCTION, "causal-lm(dim=8, depth=1, block=metaformer, experts=2)")
    )
    assert with_whole_batches(balanced, recipe, Runtime(), ALONE, cpu) is balanced
    with pytest.raises(InputError, match="balances their load over the batch, which 4 examples at a time"):
        with_whole_batches(balanced, recipe, Runtime(micro_batch=4), ALONE, cpu)
    unbalanced = build.build_model(
        token_trial("ssm", INDUCTION, "causal-lm(dim=8, depth=1, block=metaformer, experts=2, balance=0.0)")
    )
    assert with_whole_batches(unbalanced, recipe, Runtime(micro_batch=4), ALONE, cpu) is unbalanced
    shared = with_whole_batches(model, recipe, Runtime(), Ranks(0, 2), torch.device("cuda"))
    assert isinstance(shared[1], nn.SyncBatchNorm)
    assert shared.state_dict().keys() == model.state_dict().keys()


def test_ranks_share_batches_and_mixup_but_not_the_noise_inside(tiny_trial: MakeTrial) -> None:
    """Of data that do not lie in files, of which every rank has all."""
    trial = tiny_trial(seed=3)
    task = create_task(trial.task)
    data, cpu = task.load(3), torch.device("cpu")
    batch = next(data.train_batches(0, 8))
    model = build_model(trial).eval()

    def of(rank: int, count: int) -> tuple[Batch, list[Any]]:
        ranks = Ranks(rank, count)
        answered = Evaluator(task, data, cpu, ranks=ranks)._answered(model, "test", 256)
        seed_noise(trial.seed, Progress(epoch=1, step=2), ranks, cpu)
        return own_share(batch, data, ranks), [
            [examples for _, _, examples in answered],
            (random.random(), np.random.rand()),
            torch.rand(1).item(),
        ]

    (_, (whole, mixup, noise)), first, second = of(0, 1), of(0, 2), of(1, 2)
    assert all(map(torch.equal, [*first[1][0], *second[1][0]], whole[::2] + whole[1::2]))
    assert len(whole) == 5
    assert first[1][1] == second[1][1] == mixup
    assert first[1][2] == noise != second[1][2]
    for rank, own in enumerate((first[0], second[0])):
        places = share(8, rank, 2)
        assert len(places) == 4
        assert all(torch.equal(mine, every[places]) for mine, every in zip(own, batch, strict=True))


def test_the_loss_of_a_split_is_that_of_its_scored_tokens(store: Store) -> None:
    trial = token_trial("identity", "bytes(length=16, train=32, validation=5, test=300)")
    folder = run(trial, store)
    result, stored = folder.result(), np.load(folder.predictions)
    assert result is not None
    test, target, prediction = result["metrics"]["test"], stored["target"], stored["prediction"]
    assert test["bits_per_byte"] == pytest.approx(test["loss"] / np.log(2))
    assert target.shape == prediction.shape == (300, 16)
    assert test["accuracy"] == pytest.approx(100 * (target == prediction).mean())


def test_a_causal_task_refuses_a_mixer_that_sees_the_future() -> None:
    with pytest.raises(InputError, match="task mqar is causal, but mixer attention"):
        build_model(token_trial("attention(head_dim=4)", "mqar(length=16, vocabulary=16, pairs=4)"))


def test_mixup_is_for_images() -> None:
    with pytest.raises(InputError, match="mixup and cutmix mix images, but task mqar has tokens"):
        build.resolve(
            MIXERS.parse_pattern("ssm"),
            SKELETONS.parse("causal-lm"),
            TASKS.parse("mqar"),
            Recipe(mixup=0.5),
            seed=0,
        )
