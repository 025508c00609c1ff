"""The paper's figures and tables as a whole: what is written, where each number comes from, what if not."""

from __future__ import annotations

import csv
import io
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import run_ablation
from analysis import published
from analysis.drawing import paper_style
from analysis.paper import PaperReport, bubbles, diagrams, figures, ours, write_paper
from analysis.paper.tables import all_tables, margins
from analysis.table import Cell, Table

Write = Callable[..., Any]
ROOT = Path(__file__).parents[3]


def set_checked_in(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for module in ("analysis.paper", "analysis.paper.ours"):
        patch.setattr(f"{module}.CHECKED_IN", folder)


@pytest.fixture(autouse=True)
def nothing_checked_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_checked_in(monkeypatch, tmp_path / "none")


ARMS = {
    "conv": [97.0, 97.5, 97.2],
    "identity": [70.1, 69.5, 70.6],
    "causal conv": [96.8, 97.3, 97.4],
    "ssm": [97.1, 97.9, 97.0],
}
"""Of one study; two of them differ in causality."""


@pytest.fixture
def runs(write_records: Write) -> Path:
    """A runs folder with one study."""
    return Path(write_records(ARMS).study).parents[1]


@pytest.fixture(scope="module")
def recorded(write_records_in: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, to look at, and with the times of decoding."""
    runs = Path(write_records_in(tmp_path_factory.mktemp("recorded"), ARMS).study).parents[1]
    rows = [
        f"{name},{context},{time},{size},a machine"
        for name, time, size in (("ssm", 80, 4864), ("causal-attention", 40, 32768), ("identity", 1, 0))
        for context in (64, 128)
    ]
    columns = "mixer,context,microseconds_per_token,state_bytes,machine"
    (runs / "decoding.csv").write_text("\n".join([columns, *rows]) + "\n")
    return runs


@pytest.fixture(scope="module")
def paper(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> PaperReport:
    """All of it, written once."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        set_checked_in(patch, folder / "none")
        return write_paper(folder / "paper", recorded)


def table_of(studies: list[ours.OurStudy], name: str) -> Table:
    (entry,) = [entry for entry in all_tables(studies) if entry.name == name]
    return entry.table


def own_rows(table: Table) -> list[dict[str, Cell]]:
    return [row for row in table.rows if row["origin"].text.startswith("studies/")]


def seconds_of(code: str) -> tuple[float, str]:
    """Processor seconds of a Python process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_every_figure_and_table_is_written(paper: PaperReport) -> None:
    root = paper.index.parent
    drawn = {path.stem for path in (root / "figures").iterdir()}
    wanted = {"figure_1a", "figure_1b", "figure_2", "figure_3a", "figure_3b", "figure_4", "long_sequences"}
    assert drawn == wanted | {"margins", "ingredients"}
    assert paper.figures == len(drawn)
    for name in drawn:
        for suffix in ("png", "svg", "pdf", "csv"):
            assert (root / "figures" / f"{name}.{suffix}").stat().st_size > 0
    tables = {path.stem for path in (root / "tables").iterdir()}
    assert {"table_1", "table_2", "table_3", "margins", "effects", "discrepancies"} <= tables
    page = paper.index.read_text()
    for path in re.findall(r'href="((?:figures|tables|published|studies)/[^"]+)"', page):
        assert (root / path).is_file(), path
    assert 'href="studies/demo_study.csv"' in page
    assert paper.studies == ("demo_study",)
    assert paper.notes == ()


def test_the_same_records_give_the_same_bytes(recorded: Path, paper: PaperReport, tmp_path: Path) -> None:
    write_paper(tmp_path / "again", recorded)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (paper.index.parent, tmp_path / "again")
    )
    assert first == second


def test_every_published_number_names_its_row(paper: PaperReport) -> None:
    root = paper.index.parent
    origins = 0
    for name in ("figure_1b", "figure_3b", "margins", "ingredients"):
        with open(root / "figures" / f"{name}.csv", newline="") as file:
            for row in csv.DictReader(file):
                path, _, lines = row["origin"].partition(":")
                if path.startswith("studies/"):
                    assert (root / path).is_file()
                    continue
                text = (root / "published" / path).read_text().splitlines()
                assert all(0 < int(line) - 1 < len(text) for line in re.findall(r"\d+", lines))
                origins += 1
    assert origins > 100


def test_ours_stand_in_the_table_with_their_interval(runs: Path) -> None:
    studies, _ = ours.find_studies([runs])
    (row,) = [row for row in table_of(studies, "our_studies").rows if row["arm"].text == "ssm"]
    assert (row["study"].text, row["task"].text) == ("ours: demo_study", "digits")
    assert row["metric"].text == "accuracy (%)"
    assert row["result"].value == pytest.approx((97.1 + 97.9 + 97.0) / 3)
    assert row["result"].detail == "[96.11, 98.56] (3 seeds)"
    assert not any(row["group"].text.startswith("ours") for row in table_of(studies, "table_1").rows)


COCO = {"box_AP": 40.0, "mask_AP": 36.5, "box_AP50": 60.0}


@pytest.mark.parametrize(
    ("task", "metric", "table", "numbers"),
    [
        ("images(data=there)", "accuracy", "table_1", {"top1": 80.0}),
        ("coco", "box_AP", "table_2", {"APb": 40.0, "APm": 36.5, "APb50": 60.0}),
        ("coco", "mask_AP", "table_2", {"APb": 40.0, "APm": 36.5}),
        ("ade20k(crop=512)", "miou", "table_3", {"mIoU_SS": 45.0}),
        ("images(data=there)", "top_5", "our_studies", {"result": 95.0}),
        ("scenes-detect", "box_AP", "our_studies", {"result": 40.0}),
    ],
)
def test_task_and_metric_choose_the_table(
    write_records: Write, task: str, metric: str, table: str, numbers: dict[str, float]
) -> None:
    records = write_records({"conv": [80.0, 80.5], "ssm": [79.5, 80.5]}, task=task)
    records.edit_plan(
        metric={"name": metric, "unit": "%", "difference_unit": "points", "higher_is_better": True}
    )
    measured = {"accuracy": 80.0, "top_5": 95.0, "miou": 45.0, **COCO}
    for arm in ("conv", "ssm"):
        for seed, more in enumerate((-0.5, 0.5)):
            values = {name: value + more for name, value in measured.items()}
            records.edit(arm, seed, metrics={"test": values})
    studies, _ = ours.find_studies([Path(records.study).parents[1]])
    found = {entry.name: own_rows(entry.table) for entry in all_tables(studies) if own_rows(entry.table)}
    found.pop("effects")
    assert list(found) == [table]
    assert len(found[table]) == 2
    for column, value in numbers.items():
        assert found[table][0][column].value == pytest.approx(value)


def test_a_row_per_arm_and_case(write_records: Write) -> None:
    records = write_records({"conv": [80.0, 80.5, 80.1], "ssm": [79.5, 80.5, 80.4]})
    plan = json.loads((records.study / "plan.json").read_text())
    by_case = [
        arm | {"name": f"{arm['name']} @ {case}", "arm": arm["name"], "case": case}
        for case in ("femto", "tiny")
        for arm in plan["arms"]
    ]
    entries = [
        {
            "name": case,
            "at": None,
            "series": None,
            "about": "images(size=224)",
            "skeleton": f"mambaout-{case}",
        }
        for case in ("femto", "tiny")
    ]
    pairs = [{"arm": f"ssm @ {case}", "baseline": f"conv @ {case}"} for case in ("femto", "tiny")]
    records.edit_plan(
        arms=by_case, comparisons=pairs, cases={"axis": "size", "log": False, "entries": entries}
    )
    studies, _ = ours.find_studies([Path(records.study).parents[1]])
    names = [row["model"].text for row in own_rows(table_of(studies, "table_1"))]
    assert names == ["conv @ femto", "ssm @ femto", "conv @ tiny", "ssm @ tiny"]
    assert len(own_rows(table_of(studies, "effects"))) == 2
    assert "mambaout-femto and mambaout-tiny" in bubbles.accuracy_against_macs(studies).caption


def test_a_verdict_and_what_it_is_worth_stand_with_every_difference(write_records: Write) -> None:
    """Undecided, decided and without spread are told apart in table, data and legend."""
    records = write_records(
        {
            "conv": [97.0, 97.5, 97.25],
            "identity": [70.1, 69.5, 70.6],
            "causal conv": [98.0, 99.5, 97.0],
            "ssm": [96.0, 96.5, 96.25],
        },
        rising=("causal conv",),
    )
    studies, _ = ours.find_studies([Path(records.study).parents[1]])
    table = table_of(studies, "effects")
    cells = {row["component"].text: row for row in own_rows(table)}
    assert cells["ssm in place of conv"]["points"].line == "\N{MINUS SIGN}1.00 no spread over 3 seeds"
    verdicts = [row["verdict"].text for row in cells.values()]
    assert verdicts == ["hurts (> margin)", "undecided", "no verdict"]
    improving = "demo_study: still improving when training stopped: causal conv."
    assert improving in " ".join(table.caption)
    for drawing in (figures.causality(studies), figures.ingredients(studies)):
        assert improving in drawing.caption
        assert "Hollow circles: undecided, or no verdict" in drawing.caption
    assert "Crosses: the same difference on all seeds" in figures.ingredients(studies).caption
    rows = list(csv.DictReader(figures.ingredients(studies).files["csv"].decode().splitlines()))
    by_name = {row["component"]: row for row in rows}
    same = by_name["ssm in place of conv"]
    assert (same["low"], same["high"], same["verdict"]) == ("", "", "no verdict")
    assert by_name["causal conv in place of conv"]["under_trained"] == "causal conv"


def test_what_was_settled_late_stands_below_every_difference(write_records: Write) -> None:
    records = write_records({name: ARMS[name] for name in ("conv", "causal conv", "ssm")})

    def captions() -> list[str]:
        studies, _ = ours.find_studies([Path(records.study).parents[1]])
        drawn = [figures.causality(studies), figures.ingredients(studies)]
        return [*(each.caption for each in drawn), " ".join(table_of(studies, "effects").caption)]

    assert all("Equivalence margin fixed before the run: ±1 point (demo_study)." in t for t in captions())
    records.edit_plan(margin_after=4, comparisons_before=5, looks=[2])
    for text in captions():
        assert "margin set when 4 trials had already finished: ±1 point (demo_study)." in text
        assert "demo_study: asked with results at hand, from among 5 comparisons" in text
        assert "demo_study: seeds were added after a look at 2" in text
    records.edit_plan(margin=None, margin_after=0)
    assert all("Without a margin: demo_study." in text for text in captions())


def test_circles_with_numbers_are_explained_in_the_figure() -> None:
    drawing = figures.sequence_lengths()
    assert "numbers in circles: stages 1 to 4" in drawing.files["svg"].decode()
    assert "Numbers in circles: the stages" in drawing.caption


def test_the_same_on_all_seeds_has_no_interval(write_records: Write) -> None:
    records = write_records({"conv": [100.0] * 3, "ssm": [99.0, 98.0, 99.5]}, rising=("ssm",))
    studies, _ = ours.find_studies([Path(records.study).parents[1]])
    assert own_rows(table_of(studies, "our_studies"))[0]["result"].line == "100.00 (no spread over 3 seeds)"
    drawing = bubbles.accuracy_against_macs(studies)
    (row,) = [
        row for row in csv.DictReader(drawing.files["csv"].decode().splitlines()) if row["name"] == "conv"
    ]
    assert (row["low"], row["high"], row["under_trained"]) == ("", "", "0")
    assert "Crossed: the same on all seeds" in drawing.caption
    assert "Hollow markers: under-trained." in drawing.caption


def texts_with_intervals(studies: list[ours.OurStudy]) -> list[str]:
    """What is said of the intervals of some studies: captions of figures and of tables."""
    drawings = [figures.causality(studies), figures.ingredients(studies)]
    tables = [table_of(studies, name) for name in ("our_studies", "effects")]
    return [*(drawing.caption for drawing in drawings), *(" ".join(table.caption) for table in tables)]


def test_what_conventions_have_in_common_is_said_once(write_records_in: Write, tmp_path: Path) -> None:
    usual, other = (write_records_in(tmp_path / name, {"conv": [80.0, 80.5]}) for name in ("usual", "other"))
    usual.study.rename(usual.study.with_name("usual"))
    for seed in range(2):
        usual.edit("conv", seed, costs={"macs_convention": "forward pass; scan included"})
        other.edit("conv", seed, costs={"macs_convention": "forward pass; scan included; with the detector."})
    plan = json.loads((other.study / "plan.json").read_text())
    other.edit_plan(study=plan["study"] | {"name": "dense"})
    studies, _ = ours.find_studies([Path(each.study).parents[1] for each in (usual, other)])
    caption = " ".join(table_of(studies, "our_studies").caption)
    assert "MACs of ours: forward pass; scan included. MACs of dense: with the detector." in caption
    assert caption.count("scan included") == 1


def test_intervals_are_said_to_be_of_the_level_of_the_study(write_records_in: Write, tmp_path: Path) -> None:
    strict = write_records_in(tmp_path, {**ARMS, "pooling": [80.0, 81.0, 80.5]}, alpha=0.01)
    runs = Path(strict.study).parents[1]
    studies, _ = ours.find_studies([runs])
    imagenet = write_records_in(tmp_path / "imagenet", ARMS, alpha=0.1, task="images(size=224)")
    on_imagenet, _ = ours.find_studies([Path(imagenet.study).parents[1]])
    said = [*texts_with_intervals(studies), bubbles.accuracy_against_macs(studies).caption]
    assert all("99 % t interval over seeds" in text and "95 %" not in text for text in said)
    assert "90 % t interval over seeds" in " ".join(table_of(on_imagenet, "table_1").caption)

    strict.study.rename(strict.study.with_name("strict"))
    strict.study = strict.study.with_name("strict")
    strict.edit_plan(study={"name": "strict"})
    usual = write_records_in(tmp_path / "usual", ARMS)
    both, _ = ours.find_studies([runs, Path(usual.study).parents[1]])
    level = "t interval over seeds at the level of each study (95 %: demo_study; 99 %: strict)"
    assert all(level in text for text in texts_with_intervals(both))


def test_the_users_own_study_stands_beside_the_figure(
    write_records_in: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(write_records_in(tmp_path / "mine", ARMS).study).parents[1]
    theirs = write_records_in(tmp_path / "theirs", {**ARMS, "attention": [98.0, 98.5, 97.0]})
    checked_in = Path(theirs.study).parents[1]
    theirs.edit_plan(study={"name": "digits-ladder"})
    theirs.study.rename(theirs.study.with_name("digits-ladder"))
    set_checked_in(monkeypatch, checked_in)
    studies, _ = ours.find_studies([mine, checked_in])
    assert (
        "Right (ours: demo_study): digits in mambaout-nano" in bubbles.accuracy_against_macs(studies).caption
    )
    studies, _ = ours.find_studies([checked_in])
    assert "Right (ours, checked in: digits-ladder)" in bubbles.accuracy_against_macs(studies).caption


def add_study(records: Any, name: str, arms: tuple[str, ...], **changes: Any) -> None:
    """Another study in the same runs folder, of some of the trials of this one."""
    plan = json.loads((records.study / "plan.json").read_text())
    plan["study"]["name"] = name
    plan["arms"] = [arm for arm in plan["arms"] if arm["name"] in arms]
    plan["comparisons"] = [pair for pair in plan["comparisons"] if pair["arm"] in arms]
    folder = records.study.with_name(name)
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan | changes))


def test_the_same_trials_are_shown_once(write_records: Write, tmp_path: Path) -> None:
    records = write_records(ARMS)
    add_study(records, "demo-conv-ssm", ("conv", "ssm"))
    add_study(records, "demo-3f9a01", tuple(ARMS), margin=2.0)
    report = write_paper(tmp_path / "paper", Path(records.study).parents[1])
    assert report.studies == ("demo_study",)
    said = [
        f"{name} is left out: its trials are all part of demo" for name in ("demo-3f9a01", "demo-conv-ssm")
    ]
    assert list(report.notes) == said
    page = report.index.read_text()
    assert all(f"<li>{note}</li>" in page for note in said)
    assert not (tmp_path / "paper" / "studies" / "demo-conv-ssm.csv").exists()


def test_another_number_or_seed_of_the_same_trials_is_shown(write_records: Write) -> None:
    records = write_records(ARMS)
    loss = {"name": "loss", "unit": "nats", "difference_unit": "nats", "higher_is_better": False}
    add_study(records, "demo-by-loss", ("conv", "ssm"), metric=loss)
    plan = json.loads((records.study / "plan.json").read_text())
    for arm in plan["arms"]:
        del arm["trials"][2]
    add_study(records, "demo-more-seeds", ("conv", "ssm"))
    records.edit_plan(arms=plan["arms"])
    studies, notes = ours.find_studies([Path(records.study).parents[1]])
    assert [each.study.name for each in studies] == ["demo_study", "demo-by-loss", "demo-more-seeds"]
    assert notes == []


def test_a_study_that_is_barely_begun_hides_no_complete_one(
    write_records_in: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write_records_in(tmp_path / "mine", ARMS)
    checked_in = Path(write_records_in(tmp_path / "theirs", ARMS).study).parents[1]
    set_checked_in(monkeypatch, checked_in)
    folders = [Path(mine.study).parents[1], checked_in]
    (shown,), notes = ours.find_studies(folders)
    assert not shown.checked_in
    assert notes == []
    (mine.folder("ssm", 0) / "result.json").unlink()
    (shown,), notes = ours.find_studies(folders)
    assert shown.checked_in
    assert notes == ["demo: of yours 11 trials are finished, the checked-in one with 12 is shown"]


def test_a_study_under_way_takes_no_figure_from_a_complete_one(
    write_records_in: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write_records_in(tmp_path / "mine", {**ARMS, "attention": [98.0, 98.5, 97.0]})
    theirs = write_records_in(tmp_path / "theirs", ARMS)
    theirs.study.rename(theirs.study.with_name("another"))
    folders = [Path(each.study).parents[1] for each in (mine, theirs)]
    set_checked_in(monkeypatch, folders[1])
    for seed in range(1, 3):
        (mine.folder("attention", seed) / "result.json").unlink()
    chosen = ours.widest(ours.find_studies(folders)[0])
    assert chosen is not None
    assert chosen.checked_in


@pytest.mark.parametrize("marker", ["o", "s", "^", "v", "D", "P"])
def test_the_area_of_a_marker_is_counted_right(marker: str) -> None:
    """Against the pixels that matplotlib fills."""
    figure = Figure(figsize=(1, 1), dpi=400)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.scatter([0.5], [0.5], s=900, marker=marker, color="black", linewidth=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    filled = (255 - np.asarray(canvas.buffer_rgba())[..., 0].astype(float)).sum() / 255
    assert bubbles.marker_area(marker) == pytest.approx(filled * (72 / 400) ** 2 / 900, rel=0.02)


def test_every_bubble_has_the_area_of_its_parameters() -> None:
    axes = Figure().subplots()
    rows = bubbles._published_bubbles(axes)
    assert len({row["family"] for row in rows}) > 5
    for row, bubble in zip(rows, axes.collections, strict=True):
        x, y = np.asarray(bubble.get_paths()[0].to_polygons()[0]).T
        area = bubble.get_sizes()[0] * abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
        assert area == pytest.approx(bubbles.AREA_PER_MILLION * row["params"] / 1e6), row["name"]


def test_what_is_missing_or_mixed_is_seen(write_records: Write) -> None:
    records = write_records(
        {"conv": [97.0, 97.5, 97.2], "ssm": [96.0, 96.5, 96.2], "causal conv": [95.0] * 3}
    )
    for seed in range(3):
        records.edit("ssm", seed, status="diverged", error="loss is NaN", metrics={})
    records.edit("conv", 0, provenance={"code": "another", "backend": {}})
    studies, _ = ours.find_studies([Path(records.study).parents[1]])
    table = table_of(studies, "our_studies")
    (row,) = [row for row in table.rows if row["arm"].text == "ssm"]
    assert row["result"].line == "– 3 diverged"
    assert "demo_study: trials differ in code." in table.caption
    for drawing in (bubbles.accuracy_against_macs, figures.causality, figures.ingredients):
        assert "rials differ in code." in drawing(studies).caption, drawing


def test_pairs_that_differ_in_causality_are_found(runs: Path) -> None:
    studies, _ = ours.find_studies([runs])
    drawing = figures.causality(studies)
    rows = list(csv.DictReader(drawing.files["csv"].decode().splitlines()))
    (own,) = [row for row in rows if row["ours"] == "1"]
    assert own["label"] == "conv (ours)"
    assert float(own["difference"]) == pytest.approx(float(own["causal"]) - float(own["full"]))
    assert float(own["low"]) < float(own["difference"]) < float(own["high"])
    assert float(own["low_after_holm"]) < float(own["low"]), "conv is one of three comparisons"
    assert float(own["high"]) < float(own["high_after_holm"])
    assert "published: one training, no interval" in drawing.files["svg"].decode()
    assert [row["label"] for row in rows if row["ours"] == "0"] == [
        "ViT-Ti (MambaOut)",
        "ViT-S (MambaOut)",
        "DeiT-Small (De-focus)",
        "DeiT-Base (De-focus)",
    ]


@pytest.mark.parametrize(
    ("task", "size", "points", "best"),
    [
        ("ImageNet top-1", "femto", +0.2, "EfficientVMamba-S"),
        ("ImageNet top-1", "tiny", 0.0, "LocalVMamba-T"),
        ("ImageNet top-1", "small", +0.4, "LocalVMamba-S"),
        ("ImageNet top-1", "base", +0.3, "VMambaV9-B"),
        ("COCO box AP", "tiny", -2.3, "VMambaV9-T"),
        ("COCO mask AP", "base", -0.9, "VMambaV9-B"),
        ("ADE20K mIoU, single scale", "base", -1.4, "VMambaV9-B"),
    ],
)
def test_margins(task: str, size: str, points: float, best: str) -> None:
    (margin,) = [each for each in margins() if (each.task, each.size) == (task, size)]
    assert margin.points == pytest.approx(points)
    assert margin.best.text(margin.model_column) == best


def test_what_is_known_of_noise_is_a_row_of_a_file() -> None:
    caption = " ".join(table_of([], "margins").caption)
    assert "got 82.6 in place of 82.7 on ImageNet, where the margins are 0.0 to +0.4" in caption
    assert "46.1 in place of 47.4 mIoU on ADE20K" in caption


def test_models_of_reference_are_marked() -> None:
    rows = table_of([], "later_models").rows
    marked = [row["model"].text for row in rows if row["caveat"].text.startswith("reference")]
    assert marked == ["MambaOut-Tiny", "MambaOut-Small", "MambaOut-Base"]


def test_what_papers_call_flops_and_count_as_macs_is_headed_macs() -> None:
    """The rows of reference have the numbers, under the headings, of MambaOut's Table 1."""
    first, later = table_of([], "table_1"), table_of([], "later_models")
    key, other = (
        next(column.key for column in table.columns if column.heading == "MACs (G)")
        for table in (first, later)
    )
    macs = {row["model"].text: row[key].value for row in first.rows}
    for row in later.rows[:3]:
        assert row[other].value == macs[row["model"].text]


def test_without_any_record(tmp_path: Path) -> None:
    report = write_paper(tmp_path / "paper", tmp_path / "no runs")
    assert report.studies == ()
    assert not (tmp_path / "paper" / "figures" / "figure_2.png").exists()  # nothing measured, nothing drawn


def test_what_cannot_be_read_is_said(runs: Path, tmp_path: Path) -> None:
    (runs / "studies" / "broken").mkdir()
    (runs / "studies" / "broken" / "plan.json").write_text("{")
    (runs / "decoding.csv").write_text("mixer,context\n")
    notes = write_paper(tmp_path / "paper", runs).notes
    assert any(note.startswith("broken is left out:") and str(runs) not in note for note in notes)
    assert any("decoding.csv is left out: it lacks the columns machine" in note for note in notes)


COLUMNS = "mixer,context,microseconds_per_token,state_bytes,machine"


def test_a_damaged_line_of_decoding_is_left_out_and_named(runs: Path, tmp_path: Path) -> None:
    lines = [
        COLUMNS,
        "ssm,64,80,4864,a",
        "ssm,128,,4864,a",
        "ssm,256,80,many,a",
        "ssm,512,80",
        "ssm,512,0,4864,a",
    ]
    (runs / "decoding.csv").write_text("\n".join(lines) + "\n")
    report = write_paper(tmp_path / "paper", runs)
    assert [note for note in report.notes if "lines 3, 4, 5 and 6 left out" in note]
    with open(tmp_path / "paper" / "figures" / "figure_2.csv", newline="") as file:
        assert [row["context"] for row in csv.DictReader(file)] == ["64"]


def test_nothing_carried_nothing_drawn(runs: Path, tmp_path: Path) -> None:
    (runs / "decoding.csv").write_text(f"{COLUMNS}\nidentity,64,1,0,a\n")
    report = write_paper(tmp_path / "paper", runs)
    assert any("no mixer in it carries anything, so Figure 2 is left out" in note for note in report.notes)
    assert not (tmp_path / "paper" / "figures" / "figure_2.png").exists()


def test_the_causal_mask_shows_nothing_later() -> None:
    rows = list(csv.DictReader(io.StringIO(diagrams.masks().files["csv"].decode())))
    for row in rows:
        earlier = int(row["input"]) <= int(row["output"])
        assert row["visible"] == str(int(earlier or row["mixer"] == "attention"))
    assert len(rows) == 2 * 8 * 8


def test_channels_past_the_mixer_are_drawn() -> None:
    with paper_style():
        said = diagrams.blocks().files["svg"].decode()
    assert [said.count(f">{text}<") for text in ("96 of 256", "160", "concatenate, 256")] == [2, 2, 2]


def test_the_caption_of_figure_2_names_what_fits_no_rule() -> None:
    sizes = {"causal-attention": (64, 128), "window-attention": (64, 64), "ssm": (16, 16)}
    rows = [
        {"mixer": name, "context": 2**place, "microseconds_per_token": 1, "state_bytes": size, "machine": "a"}
        for name, found in sizes.items()
        for place, size in enumerate(found)
    ]
    drawing = figures.memory(rows)
    assert drawing is not None
    assert "grows with the context for causal-attention only" in drawing.caption
    assert "copies the whole cache" in drawing.caption
    assert "Window attention is neither" in drawing.caption
    assert "One run of benchmarks/decoding.py" in drawing.caption
    assert "on one another" not in drawing.caption
    twins = [*rows, *(row | {"mixer": "s4d"} for row in rows if row["mixer"] == "ssm")]
    drawing = figures.memory(twins)
    assert drawing is not None
    assert drawing.caption.endswith("so that their lines lie on one another: ssm and s4d.")
    (alone,) = [figures.memory([row for row in rows if row["mixer"] == "ssm"])]
    assert alone is not None
    assert "attention" not in alone.caption


def test_a_damaged_copy_of_a_study_is_not_passed_off_as_the_users(
    write_records_in: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write_records_in(tmp_path / "mine", ARMS)
    (mine.study / "plan.json").write_text("{")
    checked_in = Path(write_records_in(tmp_path / "theirs", ARMS).study).parents[1]
    set_checked_in(monkeypatch, checked_in)
    report = write_paper(tmp_path / "paper", Path(mine.study).parents[1])
    (note,) = report.notes
    assert note.startswith("demo: yours cannot be read, the checked-in one is shown: ")
    page = report.index.read_text()
    assert '<a href="studies/demo_study.csv">demo_study</a> (checked in): digits in mambaout-nano' in page


def test_the_command_needs_no_torch(runs: Path) -> None:
    """`report --paper` with torch made impossible to import."""
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ImportError('no torch here')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import run_ablation\n"
        f"sys.exit(run_ablation.main(['report', '--paper', '--runs', {str(runs)!r}]))"
    )
    imports, _ = seconds_of("import matplotlib.pyplot, pandas, scipy.stats")  # the machine's unit of time
    used, said = seconds_of(code)
    assert used < 15 * imports  # 4 of them when this was written
    assert "figures" in said
    assert (runs / "paper" / "index.html").is_file()


def test_a_flag_that_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["report", "--paper", "--seeds", "3"]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_page_in_a_real_browser(paper: PaperReport, browser: Any) -> None:
    """From the disk: nothing is fetched, a folded table opens and is sorted, nothing overflows."""
    address = paper.index.as_uri()
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    table = page.locator("#table-table_1")
    assert not table.locator("table").is_visible()
    table.locator("summary b").click()
    heading = table.locator("th", has_text="top-1")
    heading.get_by_role("button").click()
    place = 1 + table.locator("th").all_inner_texts().index("top-1 (%)")
    cells = table.locator(f"tbody td:nth-child({place})").all_inner_texts()
    shown = [float(cell.split()[0]) for cell in cells if cell]
    assert len(shown) > 50
    assert shown == sorted(shown)
    for width in (1300, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [address]
    assert wrong == []
    page.close()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_the_latex_compiles(paper: PaperReport, tmp_path: Path) -> None:
    tables = sorted((paper.index.parent / "tables").glob("*.tex"))
    inputs = "\n".join(rf"\input{{{path}}}" for path in tables)
    packages = "".join(rf"\usepackage{{{name}}}" for name in ("booktabs", "graphicx", "longtable"))
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "all.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_copied_tables_are_those_of_the_registry(paper: PaperReport) -> None:
    for name in published.names():
        original = (published.FOLDER / f"{name}.csv").read_bytes()
        assert (paper.index.parent / "published" / f"{name}.csv").read_bytes() == original
