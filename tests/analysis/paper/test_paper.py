"""The paper's figures and tables as a whole: what is written, where each number comes from, what if not."""

from __future__ import annotations

import csv
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import run_ablation
from analysis import published
from analysis.paper import PaperReport, figures, ours, write_paper
from analysis.paper.tables import all_tables, margins

Write = Callable[..., Any]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def nothing_checked_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.paper.CHECKED_IN", tmp_path / "none")


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
        patch.setattr("analysis.paper.CHECKED_IN", folder / "none")
        return write_paper(folder / "paper", recorded)


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
    wanted = {"figure_1a", "figure_1b", "figure_2", "figure_3b", "figure_4", "long_sequences", "margins"}
    assert drawn == wanted | {"ingredients"}
    assert paper.figures == len(drawn)
    for name in drawn:
        for suffix in ("png", "svg", "pdf", "csv"):
            assert (root / "figures" / f"{name}.{suffix}").stat().st_size > 0
    tables = {path.stem for path in (root / "tables").iterdir()}
    assert {"table_1", "table_2", "table_3", "margins", "effects", "discrepancies"} <= tables
    page = paper.index.read_text()
    for path in re.findall(r'href="((?:figures|tables|published)/[^"]+)"', page):
        assert (root / path).is_file(), path
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
    table = all_tables(studies)[0].table
    (row,) = [row for row in table.rows if row["model"].text == "ssm"]
    assert row["group"].text == "ours: demo_study"
    assert row["top1"].value == pytest.approx((97.1 + 97.9 + 97.0) / 3)
    assert row["top1"].detail.endswith("(3 seeds)")


def test_what_is_missing_or_mixed_is_seen(write_records: Write) -> None:
    records = write_records(
        {"conv": [97.0, 97.5, 97.2], "ssm": [96.0, 96.5, 96.2], "causal conv": [95.0] * 3}
    )
    for seed in range(3):
        records.edit("ssm", seed, status="diverged", error="loss is NaN", metrics={})
    records.edit("conv", 0, provenance={"code": "another", "backend": {}})
    studies, _ = ours.find_studies([Path(records.study).parents[1]])
    table = all_tables(studies)[0].table
    (row,) = [row for row in table.rows if row["model"].text == "ssm"]
    assert row["top1"].line == "– 3 diverged"
    assert "demo_study: Trials differ in code." in table.caption
    for drawing in (figures.accuracy_against_macs, figures.causality, figures.ingredients):
        assert "rials differ in code." in drawing(studies).caption, drawing


def test_pairs_that_differ_in_causality_are_found(runs: Path) -> None:
    studies, _ = ours.find_studies([runs])
    drawing = figures.causality(studies)
    rows = list(csv.DictReader(drawing.files["csv"].decode().splitlines()))
    (own,) = [row for row in rows if row["ours"] == "1"]
    assert own["label"] == "conv (ours)"
    assert float(own["difference"]) == pytest.approx(float(own["causal"]) - float(own["full"]))
    assert float(own["low"]) < float(own["difference"]) < float(own["high"])
    assert {row["label"] for row in rows} >= {"ViT-Ti (MambaOut)", "DeiT-Small (De-focus)"}


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
