"""The same cells in every format: whole, aligned, escaped, within their width."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from analysis import quantities as q
from analysis import tables
from analysis.latex_table import escape_latex, latex
from analysis.notes import differing, warnings
from analysis.read_records import load_study
from analysis.summary import summarise
from analysis.table import Table, markdown
from analysis.terminal_lines import TERMINAL_WIDTH
from analysis.terminal_table import terminal
from analysis.verdict import judge

Write = Callable[..., Any]
LONG = "ssm(d_state=16, expand=2, scan=bidirectional, dt_rank=auto)"
ACCURACIES = {
    "conv": [95.0, 96.0, 95.5, 96.25],
    "ssm_100%": [97.0, 97.5, 97.25, 98.5],
    LONG: [95.25, 96.0, 95.25, 96.5],
}


def build(records: Any) -> tuple[Table, Any]:
    study = load_study(records.study, records.trials)
    arms = summarise(study)
    comparisons = judge(study, arms)
    return tables.comparison_table(study, arms, comparisons), (study, arms, comparisons)


@pytest.fixture
def table(write_records: Write) -> Table:
    return build(write_records(ACCURACIES))[0]


def test_cells_hold_the_numbers(table: Table) -> None:
    ssm = {key: cell.line for key, cell in table.rows[1].items()}
    assert ssm["metric"] == "97.56 ± 0.66 (4)"
    assert ssm["difference"] == "+1.88 [+1.36, +2.39]"
    assert (ssm["against"], ssm["verdict"]) == ("conv", "helps (> margin)")
    assert ssm["params"] == "120 k (20.0 k + 100 k)"
    assert (ssm["macs"], ssm["state"], ssm["memory"]) == ("5.00 M", "4.00 KiB", "286 MiB")
    assert table.rows[0]["difference"].line == table.rows[0]["state"].line == q.MISSING


def test_terminal_lines_fit(table: Table) -> None:
    lines = terminal(table).splitlines()
    assert max(map(len, lines)) <= TERMINAL_WIDTH
    assert any("ssm_100%" in line and "+1.88 [+1.36, +2.39]" in line for line in lines)
    assert not any("…" in line for line in lines)
    narrow = terminal(table, 80).splitlines()
    assert max(map(len, narrow)) <= 80
    starts = [line[:20].split("  ")[0].strip() for line in narrow]
    assert (
        "".join(starts).replace(" ", "").count(LONG.replace(" ", "")) == 2
    )  # broken into lines, once in each block


def test_markdown_rows_have_one_cell_per_column(table: Table) -> None:
    rows = [line for line in markdown(table, "demo").splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(table.columns) + 1}


def test_markdown_escapes_pipes(write_records: Write) -> None:
    text = markdown(build(write_records({"conv": [95.0] * 3, "a|b": [95.0] * 3}))[0], "demo")
    assert r"| a\|b |" in text


def test_csv_has_all_digits_and_one_row_per_comparison(write_records: Write) -> None:
    pairs = [{"arm": "ssm", "baseline": "conv"}, {"arm": "ssm", "baseline": "attention"}]
    values = {"conv": [95.0, 96.0, 95.25], "attention": [95.5, 96.5, 95.0], "ssm": [97.0, 97.5, 97.0]}
    table, parts = build(write_records(values, comparisons=pairs))
    rows = list(csv.DictReader(io.StringIO(tables.comparison_csv(*parts[1:]))))
    assert [(row["arm"], row["against"]) for row in rows] == [
        ("conv", ""),
        ("attention", ""),
        ("ssm", "conv"),
        ("ssm", "attention"),
    ]
    assert float(rows[2]["difference"]) == pytest.approx(sum((2.0, 1.5, 1.75)) / 3, abs=1e-12)
    assert [row["arm"].line for row in table.rows] == ["conv", "attention", "ssm", "ssm"]
    costs = terminal(table).split("\n\n")[1]
    assert costs.count("\nssm ") == 1  # judged twice, paid for once


def test_metrics_csv_has_every_planned_trial_and_no_clock(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.folder("conv", 2) / "result.json").unlink()
    _, (study, _, _) = build(records)
    rows = list(csv.DictReader(io.StringIO(tables.metrics_csv(study))))
    assert len(rows) == 12
    assert rows[2]["status"] == "missing"
    assert rows[2]["test_accuracy"] == ""
    assert not {"train_seconds", "started", "host", "examples_per_second", "hardware"} & set(rows[0])
    timings = list(csv.DictReader(io.StringIO(tables.timings_csv(study))))
    assert float(timings[0]["train_seconds"]) == 60.0


def test_metrics_csv_does_not_depend_on_the_machine(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    before = tables.metrics_csv(build(records)[1][0])
    records.edit("conv", 0, provenance={"backend": {"scan": "cuda"}, "hardware": "a cluster", "code": "fff"})
    (records.folder("conv", 1) / "timing.json").write_text('{"train_seconds": 1}')
    assert tables.metrics_csv(build(records)[1][0]) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("validation_accuracy", "validation_accuracx"),
        lambda text: text.replace("epoch,", "", 1),
        lambda text: "".join(text.splitlines(keepends=True)[:12]),  # the rise is in the last epochs
        lambda text: text[:-20],
        lambda text: text.replace("\n7,", "\n\x00,"),
        lambda text: text.replace("\n7,", "\n6,"),
        lambda text: text[: text.rindex(",")] + ",nan\n",
        lambda text: "",
        None,
    ],
)
def test_a_curve_that_cannot_be_read_is_said(
    write_records: Write, damage: Callable[[str], str] | None
) -> None:
    """Without it nobody can say whether the arm was still improving, and the report must not look as if."""
    records = write_records(ACCURACIES, rising=("conv",))
    study, arms, _ = build(records)[1]
    assert any("conv was still improving" in warning for warning in warnings(study, arms))
    for seed in range(len(ACCURACIES["conv"])):
        path = records.folder("conv", seed) / "curve.csv"
        if damage is None:
            path.unlink()
        else:
            path.write_text(damage(path.read_text()))
    study, arms, _ = build(records)[1]
    seeds = "seeds 0, 1, 2 and 3"
    assert (
        f"curve.csv of conv ({seeds}) cannot be read: whether training was done there is unknown."
        in warnings(study, arms)
    )
    assert arms["ssm_100%"].unread_curves == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"status": "diverged", "error": "loss is NaN"},
            "1 of 4 conv trials diverged (seed 1): loss is NaN.",
        ),
        ({"status": "failed", "error": "killed"}, "1 of 4 conv trials failed (seed 1): killed."),
        ({"schema_version": 9}, "1 of 4 conv trials unreadable (seed 1)"),
        (
            {"provenance": {"backend": {"scan": "cuda"}}},
            "Mixed scan backend: cpu (8 trials), cuda (1 trial).",
        ),
        (
            {"provenance": {"micro_batch": 16}},
            "Mixed micro-batch: 16 (1 trial), the whole batch (11 trials).",
        ),
        (
            {"provenance": {"ranks": 1, "earlier_sessions": [{"ranks": 2}]}},
            "Mixed processes per trial: 1 (11 trials), 1 and 2 (1 trial).",
        ),
        (
            {"provenance": {"hardware": "a cluster"}},
            "Mixed hardware: a cluster (1 trial), a laptop (11 trials).",
        ),
        (
            {"provenance": {"hardware": "a laptop", "earlier_sessions": [{"hardware": "a cluster"}]}},
            "Mixed hardware: a cluster and a laptop (1 trial), a laptop (11 trials).",
        ),
        ({"provenance": {"threads": 4}}, "Mixed threads: 2 (11 trials), 4 (1 trial)."),
        ({"provenance": {"device": "cuda"}}, "Mixed device: cpu (11 trials), cuda (1 trial)."),
        ({"provenance": {"code": "def5678"}}, "Mixed code: abc1234 (11 trials), def5678 (1 trial)."),
        ({"provenance": {"code": "f00+changes"}}, "1 trial ran from code with uncommitted changes."),
        (
            {"provenance": {"versions": {"torch": "2.9"}}},
            "Mixed torch version: 2.13.0 (11 trials), 2.9 (1 trial).",
        ),
    ],
)
def test_what_is_odd_is_said_in_every_format(
    write_records: Write, changes: dict[str, Any], expected: str
) -> None:
    records = write_records(ACCURACIES)
    records.edit("conv", 1, **changes)
    table, _ = build(records)
    assert expected in " ".join(terminal(table).split())
    assert expected in markdown(table, "demo")
    assert escape_latex(expected) in latex(table, "demo")


def test_what_changed_midway_in_all_trials_alike_is_said(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    for arm, seed in records.ids:
        records.edit(arm, seed, provenance={"ranks": 1, "earlier_sessions": [{"ranks": 2}]})
    study, arms, _ = build(records)[1]
    assert "Mixed processes per trial: 1 and 2 (12 trials)." in warnings(study, arms)
    assert differing(study) == " Trials all changed processes per trial midway."
    records.edit("conv", 1, provenance={"ranks": 1})
    study, _, _ = build(records)[1]
    assert differing(study) == " Trials differ in processes per trial."


def test_a_missing_number_shows_as_missing(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    for seed in range(4):
        (records.folder("ssm_100%", seed) / "result.json").unlink()
    table, _ = build(records)
    assert table.warnings == ["4 of 4 ssm_100% trials missing (seeds 0, 1, 2 and 3)."]
    row = {key: cell.line for key, cell in table.rows[1].items()}
    assert row["metric"] == f"{q.MISSING} (0 of 4)"
    assert row["difference"] == row["p"] == row["params"] == q.MISSING
    assert row["verdict"] == "no verdict"


def test_curves_too_short_to_judge_are_said_to_be(write_records: Write) -> None:
    table, _ = build(write_records({"conv": [95.0] * 3, "ssm": [95.0] * 3}, epochs=3))
    assert table.warnings == ["Too few epochs to tell whether training was done: conv and ssm."]


def test_state_is_explained(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [95.0]})
    costs = {"params": 5, "state_bytes": None, "state_note": "no recurrent form"}
    records.edit("conv", 0, costs=costs)
    caption = " ".join(build(records)[0].caption)
    assert "State of conv: none, no recurrent form. State of ssm: float32." in caption
    records.edit("ssm", 0, costs=costs)
    assert "State: none, no recurrent form." in " ".join(build(records)[0].caption)
    (records.folder("ssm", 0) / "result.json").unlink()  # of which nothing is known
    assert "State: none, no recurrent form." in " ".join(build(records)[0].caption)
    records.edit("conv", 0, costs={**costs, "macs_convention": "forward"})
    assert "MACs: forward." in " ".join(build(records)[0].caption)


def test_nothing_odd_gives_no_warning(table: Table) -> None:
    assert table.warnings == []


def test_the_caption_names_rule_margin_matching_and_budget(table: Table) -> None:
    caption = " ".join(table.caption)
    for part in (
        "20 epochs of 1,077 images",
        "last epoch (20)",
        "margin ±1 point, fixed before the run",
        "Holm's method over 2 comparisons",
        "mismatch left is 0.08 %",
        "forward, one example, scan included",
        "finite test set",
    ):
        assert part in caption


def test_the_caption_says_what_the_arms_are_matched_on(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [95.0], "gru": [95.0]})

    def caption(**plan: Any) -> str:
        records.edit_plan(**plan)
        return " ".join(build(records)[0].caption)

    arms = json.loads((records.study / "plan.json").read_text())["arms"]
    arms[1]["matching"]["mismatch"] = -0.0123
    said = "The arms are matched on MACs; the largest mismatch left is 1.2 % (ssm)."
    assert said in caption(match="macs", arms=arms)
    for arm in arms:
        arm["matching"] = None  # they were alike as they are
    assert "The arms are matched on parameters. " in caption(match="params", arms=arms)
    assert "The arms are not matched in size or cost. " in caption(match="none")


def test_the_caption_names_mixers_of_another_width(write_records: Write) -> None:
    records = write_records({"conv": [95.0], "ssm": [95.0], "attention": [95.0], "gru": [95.0]})
    assert "differ in width" not in " ".join(build(records)[0].caption)
    path = records.study / "plan.json"
    content = json.loads(path.read_text())
    for arm, channels in zip(content["arms"][1:], (97, 65, 97), strict=True):
        arm["matching"]["mixer_channels"] = {"target": [128], "achieved": [channels]}
    content["arms"][1]["matching"]["mismatch"] = -0.05
    path.write_text(json.dumps(content))
    assert "the largest mismatch left is 5 % (ssm)" in " ".join(build(records)[0].caption)
    assert (
        "Their mixers differ in width: 97 channels instead of 128 (ssm and gru); 65 channels instead of 128 "
        "(attention)."
    ) in " ".join(build(records)[0].caption)


def test_a_chosen_epoch_is_named(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    records.edit("conv", 0, selected_epoch=7, status="diverged")
    assert "Test metrics are of the last epoch (20)." in " ".join(build(records)[0].caption)
    for seed in range(4):
        records.edit("conv", seed, selected_epoch=12, status="ok")
    chosen = "Test metrics are of the epoch chosen on validation (12 to 20)."
    assert chosen in " ".join(build(records)[0].caption)
    for seed in range(4):  # without the curves the last epoch is the one that all trials of an arm share
        (records.folder("conv", seed) / "curve.csv").unlink()
    assert "of the last epoch (12 to 20)" in " ".join(build(records)[0].caption)
    records.edit("conv", 0, selected_epoch=13)
    assert chosen in " ".join(build(records)[0].caption)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (812, "812"),
        (999.4, "999"),
        (999.7, "1.00 k"),
        (1350, "1.35 k"),
        (12_345_678, "12.3 M"),
        (0, "0"),
        (0.5, "0.50"),
        (None, q.MISSING),
        (float("nan"), q.MISSING),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    assert q.count(value) == text


def test_signs_and_decimals() -> None:
    assert [q.signed(v, 2) for v in (1.005, -0.4, -0.001, 0.0)] == ["+1.00", f"{q.MINUS}0.40", "0.00", "0.00"]
    assert [q.decimals_for(m, "%") for m in (1.0, 0.01, 5.0, None)] == [2, 4, 1, 2]
    assert [q.p_value(p) for p in (0.0004, 0.0123, 0.37, float("nan"))] == [
        "< 0.001",
        "0.012",
        "0.37",
        q.MISSING,
    ]
    assert [q.byte_size(b) for b in (512, 4096, 1.25 * 2**30)] == ["512 B", "4.00 KiB", "1.25 GiB"]
    assert [q.with_unit(v, "points") for v in (1.0, 0.5)] == ["1 point", "0.5 points"]
