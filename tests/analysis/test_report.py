"""The whole of `write_study`: what it writes, that it is always the same, and that a browser can show it."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageChops

from analysis.page import keep_together
from analysis.panel_figures import curves, pareto_front
from analysis.read_records import load_study
from analysis.report import StudyReport, write_study
from analysis.summary import summarise
from mixers.registry import InputError

Write = Callable[..., Any]
ACCURACIES = {
    "conv": [95.0, 96.0, 95.5, 96.25],
    "ssm": [97.0, 97.5, 97.25, 98.5],
    "ssm(d_state=16, scan=bidirectional, dt_rank=auto)": [95.25, 96.0, 95.25, 96.5],
}
FIGURES = ("seeds", "differences", "curves", "costs")
FILES = {
    "table.md",
    "table.csv",
    "table.tex",
    "metrics.csv",
    "timings.csv",
    "verdict.json",
    "report.html",
} | {f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg", "pdf", "csv")}


def report_on(records: Any) -> StudyReport:
    return write_study(records.study, records.trials)


def page(records: Any) -> str:
    return str((records.study / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(write_records_in: Write, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, StudyReport]:
    """A study without flaws, reported once for all tests that only look."""
    records = write_records_in(tmp_path_factory.mktemp("report"), ACCURACIES)
    return records, report_on(records)


def test_every_promised_file_is_written_and_nothing_else(written: tuple[Any, StudyReport]) -> None:
    records, report = written
    assert set(report.paths) == FILES
    found = {str(path.relative_to(records.study)) for path in records.study.rglob("*") if path.is_file()}
    assert found == FILES | {"plan.json"}
    assert len(report.verdict_lines) == 2
    assert "ssm helps over conv" in report.verdict_lines[0]


@pytest.mark.parametrize("many", [1, 2_000], ids=["with a fork", "without"])
def test_the_same_records_give_the_same_bytes_in_another_process(
    written: tuple[Any, StudyReport], many: int
) -> None:
    records, _ = written
    first = {name: (records.study / name).read_bytes() for name in FILES}
    program = (
        f"import pathlib, sys; from analysis import report; report.MANY = {many}; "
        "report.write_study(*map(pathlib.Path, sys.argv[1:])); "
        "heavy = {'torch', 'pandas', 'matplotlib.pyplot', 'scipy.stats', 'statsmodels'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(records.study), str(records.trials)]
    subprocess.run(command, cwd=root, check=True, timeout=600, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert [name for name in sorted(FILES) if (records.study / name).read_bytes() != first[name]] == []


def test_an_unreadable_plan_is_reported_and_touches_nothing(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.study / "table.md").write_text("the last good one")
    records.edit_plan(schema_version=3)
    report = report_on(records)
    assert report.paths == {}
    assert "schema version 3" in report.verdict_lines[0]
    assert (records.study / "table.md").read_text() == "the last good one"


def test_nothing_finished_is_a_report_too(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.study / "figures").mkdir()
    (records.study / "figures" / "seeds.svg").write_text("of records that are gone")
    for arm, seed in records.ids:
        (records.folder(arm, seed) / "result.json").unlink()
    report = report_on(records)
    assert all("no verdict" in line for line in report.verdict_lines)
    assert "4 of 4 conv trials missing" in report.terminal_table
    assert not list((records.study / "figures").iterdir())  # nothing stale is left beside the new table
    assert "nothing to draw" in page(records)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_can_be_drawn(write_records: Write, seeds: int) -> None:
    records = write_records({name: values[:seeds] for name, values in ACCURACIES.items()}, epochs=2)
    assert set(report_on(records).paths) == FILES


def test_arms_without_curves_predictions_or_timings(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    for arm, seed in records.ids:
        for name in ("curve.csv", "predictions.npz", "timing.json"):
            (records.folder(arm, seed) / name).unlink()
    report = report_on(records)
    assert {name for name in FILES if name not in report.paths} == {
        f"figures/curves.{suffix}" for suffix in ("png", "svg", "pdf", "csv")
    }


def test_a_failed_write_leaves_the_old_file(write_records: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write_records(ACCURACIES)
    (records.study / "table.md").write_text("the last good one")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match=r"no report can be written in .*: Input/output error"):
        report_on(records)
    assert (records.study / "table.md").read_text() == "the last good one"
    assert not [path for path in records.study.rglob(".*") if path.is_file()]


def test_verdict_json_is_strict_json_with_the_evidence(write_records: Write) -> None:
    records = write_records({"conv": [95.0, 96.0], "ssm": [97.0, 97.5]})
    report_on(records)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    verdict = json.loads((records.study / "verdict.json").read_text(), parse_constant=refuse)
    (comparison,) = verdict["comparisons"]
    assert comparison["word"] == "no verdict"
    assert comparison["differences"] == [2.0, 1.5]
    assert comparison["interval"]["mean"] == 1.75
    for name in ("p", "p_equivalence", "p_beyond"):  # programs read them by these names
        assert 0 < comparison[name] < 1
        assert comparison[f"{name}_holm"] == comparison[name], "of the only one in its family"
    assert verdict["margin"] == 1.0


def test_figures_are_readable_files_of_paper_width_with_nothing_clipped(
    written: tuple[Any, StudyReport],
) -> None:
    records, _ = written
    for name in FIGURES:
        stem = records.study / "figures" / name
        image = Image.open(stem.with_suffix(".png")).convert("RGB")
        assert image.width in (975, 2025)  # 3.25 in and 6.75 in at 300 dpi
        background = Image.new("RGB", image.size, "white")
        left, top, right, bottom = ImageChops.difference(image, background).getbbox() or (0, 0, 0, 0)
        assert min(left, top, image.width - right, image.height - bottom) >= 3, f"{name} runs into its border"
        assert ElementTree.parse(stem.with_suffix(".svg")).getroot().tag.endswith("svg")
        pdf = stem.with_suffix(".pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"CreationDate" not in pdf


def test_figure_data_stand_beside_the_figure(written: tuple[Any, StudyReport]) -> None:
    records, _ = written
    with open(records.study / "figures" / "differences.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["difference"]) for row in rows if row["arm"] == "ssm"] == [2.0, 1.5, 1.75, 2.25]


def test_an_arm_far_below_the_rest_does_not_squeeze_them(write_records: Write) -> None:
    records = write_records({"identity": [40.0, 42.0, 41.0], **{k: v[:3] for k, v in ACCURACIES.items()}})
    pairs = [("conv", "identity"), ("ssm", "conv")]
    records.edit_plan(comparisons=[{"arm": arm, "baseline": baseline} for arm, baseline in pairs])
    report_on(records)
    figures = records.study / "figures"
    ticks = re.findall(r"(?:middle|center)[^>]*>([\d.]+)</text>", (figures / "seeds.svg").read_text())
    assert ticks
    assert all(90 < float(tick) < 100 for tick in ticks)
    assert "41.00" in (figures / "seeds.svg").read_text()  # as a number at the edge
    assert "+54.50" in (figures / "differences.svg").read_text()
    assert "Too far out to draw: identity." in page(records)


def test_too_many_arms_are_cut_from_the_figure_but_not_from_the_data(write_records: Write) -> None:
    records = write_records({f"arm{i}": [95.0 + 0.25 * (i % 3)] for i in range(45)})
    report_on(records)
    assert "the first 25 of 45" in page(records)
    data = (records.study / "figures" / "seeds.csv").read_text()
    assert "arm44" in data
    assert "arm44" not in (records.study / "figures" / "seeds.svg").read_text()


class Structure(HTMLParser):
    """Collects ids, links and unclosed tags of a page."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.links += [values[key] or "" for key in ("href", "src") if key in values]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_closed_document_that_needs_no_network(written: tuple[Any, StudyReport]) -> None:
    records, _ = written
    structure = Structure()
    structure.feed(page(records))
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    files = [link for link in structure.links if not link.startswith("#")]
    assert files
    assert all((records.study / link).is_file() for link in files)
    assert not re.search(r"@import|url\((?!#)|<link|<img", page(records))


def test_what_went_wrong_is_on_the_page(write_records: Write) -> None:
    records = write_records(ACCURACIES, rising=("conv",))
    records.edit("ssm", 1, status="diverged", error="loss is <NaN> in epoch 3", metrics={})
    (records.folder("ssm", 2) / "result.json").unlink()
    report_on(records)
    text = page(records)
    assert "1 of 4 ssm trials diverged (seed 1): loss is &lt;NaN&gt; in epoch 3." in text
    assert "1 of 4 ssm trials missing (seed 2)." in text
    assert records.ids["ssm", 2] in text
    assert "under-trained" in text
    assert "<NaN>" not in text


def test_mixed_records_are_flagged_under_every_figure(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    records.edit("ssm", 1, provenance={"backend": {"scan": "cuda"}, "code": "def5678"})
    report_on(records)
    captions = re.findall(r"<figcaption>.*?</figcaption>", page(records), re.DOTALL)
    assert len(captions) == len(FIGURES)
    assert all("Trials differ in code and scan backend." in caption for caption in captions)


def test_a_report_that_cannot_be_written_is_said(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    (records.study / "figures").write_text("in the way")
    with pytest.raises(InputError, match=f"no report can be written in {records.study}: File exists"):
        report_on(records)


def test_the_page_says_all_that_a_trial_ran_with(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    records.edit("ssm", 1, provenance={"threads": 2, "earlier_sessions": [{"threads": 8}]})
    report_on(records)
    assert "2 and 8 (1 trial)" in page(records)


def test_the_page_says_how_to_redo_it(written: tuple[Any, StudyReport]) -> None:
    records, _ = written
    text = page(records)
    for part in (
        "Does 100% of it need the SSM?",
        "run_ablation.py --study demo_study",
        "torch 2.13.0",
        "a laptop",
        "20 epochs of 1,077 images",
        "mixer = ssm",
        "120,096 of 120,000 (+0.08 %)",
    ):
        assert part in text


def test_numbers_are_not_torn_apart() -> None:
    text = "5 of them: [+0.40, +2.24] (95 % t interval, p < 0.001, p = 0.02), a map < 3"
    expected = "5 of them: [+0.40,_+2.24] (95_% t interval, p_<_0.001, p_=_0.02), a map <_3"
    assert keep_together(text) == expected.replace("_", "\N{NO-BREAK SPACE}")


def test_long_names_do_not_break_a_figure(write_records: Write) -> None:
    name = "ssm(d_state=16, scan=bidirectional, selective=false, expand=2, dt_rank=auto)"
    records = write_records(
        {"a" * 70: [95.0], "b_$c$_" * 12: [95.5], **{f"{name}{i}": [96.0] for i in range(8)}}
    )
    assert set(report_on(records).paths) == FILES  # matplotlib's "axes collapsed" would be an error


def test_the_page_in_a_real_browser(written: tuple[Any, StudyReport], browser: Any) -> None:
    """From the disk: sorted by a click and by the keyboard, nothing is fetched, nothing overflows."""
    records, _ = written
    address = (records.study / "report.html").as_uri()
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    asked: list[str] = []
    wrong: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda said: wrong.append(said.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(address)

    def column(number: int) -> list[str]:
        return list(opened.locator(f"#results tbody td:nth-child({number})").all_inner_texts())

    planned = column(1)
    means = [float(text.split()[0]) for text in column(2)]
    heading = opened.locator("#results th").nth(1)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in column(2)] == sorted(means)
    assert column(1) != planned  # the two last rows of the plan have changed places
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column(2)] == sorted(means, reverse=True)

    for width in (1300, 400):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        figures = [svg.bounding_box() for svg in opened.locator("figure svg").all()]
        assert len(figures) == len(FIGURES)
        assert all(box is not None and box["width"] > 250 and box["height"] > 100 for box in figures)
        assert opened.locator("figure table").is_visible() == (width == 400)
    verdicts = opened.locator("figure table tbody tr")
    said = "ssm \N{MINUS SIGN} conv\thelps (> margin)\n+1.88 [+1.36,\N{NO-BREAK SPACE}+2.39]"
    assert verdicts.first.inner_text() == said
    box = verdicts.first.bounding_box()
    assert box is not None
    assert 0 <= box["x"] < box["x"] + box["width"] <= 400  # the figure beside it has to be scrolled
    assert asked == [address]
    assert wrong == []
    opened.close()


def test_long_names_and_what_failed_fit_a_phone_and_a_sheet(write_records: Write, browser: Any) -> None:
    records = write_records({"baseline": [95.0, 95.5], "x" * 90: [96.0, 96.5]})
    records.edit("baseline", 1, status="failed", error="out of memory " * 20)
    report_on(records)
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    opened.goto((records.study / "report.html").as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    reason = opened.get_by_role("cell", name="out of memory").last
    assert reason.evaluate("cell => getComputedStyle(cell).whiteSpace") == "normal"
    opened.emulate_media(media="print")
    trial = opened.locator("td code").first
    size, of_cell = (
        trial.evaluate(f"code => getComputedStyle({each}).fontSize")
        for each in ("code", "code.parentElement")
    )
    assert size == of_cell
    opened.close()


@pytest.mark.parametrize(("epochs", "panels"), [(1, 1), (3, 1), (4, 2), (20, 2)])
def test_few_epochs_have_one_panel_and_all_their_points(
    write_records: Write, monkeypatch: pytest.MonkeyPatch, epochs: int, panels: int
) -> None:
    lines: list[tuple[int, tuple[int, int]]] = []
    panels_drawn: list[Axes] = []
    original = Axes.plot

    def plot(axes: Axes, x: Any, *rest: Any, **style: Any) -> Any:
        lines.append((len(x), style["markevery"]))
        panels_drawn.append(axes)
        return original(axes, x, *rest, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    records = write_records({name: values[:2] for name, values in ACCURACIES.items()}, epochs=epochs)
    study = load_study(records.study, records.trials)
    assert curves(study, list(summarise(study).values())) is not None
    assert all(tick == round(tick) for axes in panels_drawn for tick in axes.get_xticks())
    assert len(lines) == panels * len(ACCURACIES)
    for points, (start, step) in lines:
        assert len(range(start, points, step)) >= min(points, 4)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [(1, ["cheap", "middle", "best"]), (-1, ["cheap"])],
)
def test_the_pareto_front_is_what_no_arm_beats(
    write_records: Write, direction: int, expected: list[str]
) -> None:
    records = write_records(
        {"cheap": [90.0, 90.2], "middle": [92.0, 92.2], "wasteful": [91.0, 91.2], "best": [95.0, 95.2]}
    )
    for price, arm in enumerate(("cheap", "middle", "wasteful", "best"), start=1):
        for seed in range(2):
            result = json.loads((records.folder(arm, seed) / "result.json").read_text())
            records.edit(arm, seed, costs=result["costs"] | {"params": 1000 * price})
    study = load_study(records.study, records.trials)
    arms = summarise(study)
    prices, means = pareto_front(list(arms.values()), "params", direction)
    assert means == [arms[name].test.mean for name in expected]
    assert prices == sorted(prices)


def test_a_unit_is_said_once(written: tuple[Any, StudyReport]) -> None:
    records, _ = written
    costs = (records.study / "figures" / "costs.svg").read_text()
    assert "KiB" in costs
    assert "bytes" not in costs


def test_an_arm_that_carries_0_bytes_is_named_where_it_cannot_be_drawn(write_records: Write) -> None:
    records = write_records(ACCURACIES)
    costs = json.loads((records.folder("conv", 0) / "result.json").read_text())["costs"]
    for arm, seed in records.ids:
        if arm == "conv":
            records.edit(arm, seed, costs=costs | {"state_bytes": 0})
    report_on(records)
    assert (
        "Carrying 0 bytes, so counted for the dotted line, but not on the logarithmic axis of bytes: conv."
        in page(records)
    )
