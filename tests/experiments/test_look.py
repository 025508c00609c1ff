"""What a token can see: the maps against what is known, and the command."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import run_ablation
from experiments import look
from experiments.trained import trained
from mixers import InputError


@pytest.mark.parametrize(
    ("text", "reach"), [("conv(kernel_size=3)", 1), ("pooling(pool_size=5)", 2), ("identity", 0)]
)
def test_a_window_is_seen_and_nothing_else(text: str, reach: int) -> None:
    seen = look.mixer_influence(text, 9) > 0
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
    assert torch.equal(seen, expected)


def test_a_causal_mixer_sees_only_what_came_before() -> None:
    influence = look.mixer_influence("causal-attention(head_dim=4)", 7).flatten()
    assert (influence[: 3 * 7 + 4] > 0).all()
    assert not influence[3 * 7 + 4 :].any()


def test_the_largest_influence_is_one_and_a_scan_forgets() -> None:
    influence = look.mixer_influence("ssm(scan=forward, conv=none)", 9)
    assert influence.max() == 1
    assert influence[4, :4].mean() > influence[0].mean()  # the row before the centre, the first row


def test_every_order_visits_every_token_once() -> None:
    cells = list(look.scan_orders())
    for panel in look.SCANS:
        orders = {cell.part.partition(",")[0] for cell in cells if cell.panel == panel}
        assert len(orders) == (2 if panel in ("cross", "continuous") else 1)
        for order in orders:
            mine = [cell for cell in cells if cell.panel == panel and cell.part.startswith(order)]
            assert {(cell.row, cell.column) for cell in mine} == {(r, c) for r in range(8) for c in range(8)}
            assert [cell.value for cell in mine] == list(range(64))


def test_unknown_mixers_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="unknown mixer"):
        look.mixer_influence("convv", 5)
    with pytest.raises(InputError, match="window"):
        look.mixer_influence("ssm(scan=local)", 5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ablate: Callable[..., int]) -> Path:
    """A runs folder with two arms trained for an epoch."""
    folder = tmp_path_factory.mktemp("look") / "runs"
    options = (
        "--mixer identity --baseline conv --seeds 1 --train.epochs 2 --train.warmup-epochs 0 --match none"
    )
    assert ablate(*options.split(), "--runs", folder) == 0
    return folder


def only_study(runs: Path) -> str:
    (plan,) = (runs / "studies").glob("*/plan.json")
    return plan.parent.name


def test_a_trial_that_studies_share_comes_once_under_all_their_names(runs: Path, tmp_path: Path) -> None:
    shared = tmp_path / "runs"
    shutil.copytree(runs, shared)
    first = only_study(shared)
    plan = json.loads((shared / "studies" / first / "plan.json").read_text())
    conv, _ = plan["arms"]
    for study, arms in (("same", [conv]), ("zany", [{**conv, "name": "7 x 7", "arm": None}])):
        (shared / "studies" / study).mkdir()
        (shared / "studies" / study / "plan.json").write_text(json.dumps({"arms": arms}))
    names = [f"conv ({first}, same), 7 x 7 (zany)", f"identity ({first})"]
    assert [each.name for each in trained(shared)] == names
    assert [each.name for each in trained(shared, "zany")] == ["7 x 7"]


def test_stored_weights_are_those_that_were_tested(runs: Path) -> None:
    models = {each.name: each for each in trained(runs, only_study(runs))}
    assert list(models) == ["conv", "identity"]
    before, after = models["conv"].initial(), models["conv"].load()
    assert before.state_dict().keys() == after.state_dict().keys()
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert any(moved)
    from experiments.build import create_task

    trial = models["conv"].trial
    batch = next(iter(create_task(trial.task).load(0).batches("test", 1000)))
    with torch.inference_mode():
        correct = (after(batch.inputs).argmax(-1) == batch.targets).double().mean().item()
    stored = models["conv"].folder.result()
    assert stored is not None
    assert 100 * correct == pytest.approx(stored["metrics"]["test"]["accuracy"])


def test_the_identity_sees_its_own_patch_only(runs: Path) -> None:
    (identity,) = [each for each in trained(runs, only_study(runs)) if each.name == "identity"]
    field = look.receptive_field(identity, identity.load())
    side = field.shape[0] // 2 // 2 * 2
    seen = field > 0
    assert seen[side : side + 2, side : side + 2].all()
    assert seen.sum() == 4


def test_the_command_draws_everything(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["look", "--mixer", "conv", "--side", "5", "--runs", str(runs)]) == 0
    drawn = {path.name for path in (runs / "look").iterdir()}
    for name in ("scan_orders", "influence", "receptive_fields"):
        assert {f"{name}.{suffix}" for suffix in ("png", "svg", "pdf", "csv")} <= drawn
    with open(runs / "look" / "receptive_fields.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["panel"].split(" ")[0], row["part"]) for row in rows} == {
        (arm, part) for arm in ("conv", "identity") for part in ("before", "after")
    }


def test_without_trained_models_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["look", "--mixer", "conv", "--side", "5", "--runs", str(tmp_path)]) == 0
    assert "no trained image model" in capsys.readouterr().out
    assert not (tmp_path / "look" / "receptive_fields.png").exists()


def test_damaged_weights_are_one_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "runs"
    shutil.copytree(runs, damaged)
    each = next(trained(damaged))
    each.folder.weights.write_bytes(b"no weights")
    assert run_ablation.main(["look", "--mixer", "conv", "--side", "5", "--runs", str(damaged)]) == 2
    assert "does not fit its trial" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["0", "65"])
def test_a_senseless_side_is_refused(side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["look", "--side", side, "--runs", str(tmp_path)]) == 2
    assert "--side must be from 1 to 64" in capsys.readouterr().err
