"""The demo: what it answers without a page, and the page itself in a real browser where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import run_ablation
from experiments import demo
from mixers import InputError

ROOT = Path(__file__).parents[2]
PORT = 17860


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with two arms trained for two epochs."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    options = (
        "--mixer identity --baseline conv --seeds 1 --train.epochs 2 --train.warmup-epochs 0 --match none"
    )
    assert run_ablation.main([*options.split(), "--runs", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def loaded(runs: Path) -> demo.Demo:
    return demo.load(runs, None)


def test_a_bundled_picture_comes_back_as_the_models_take_it(loaded: demo.Demo) -> None:
    for number in range(demo.EXAMPLES):
        prepared = loaded.prepare(loaded.example(number))
        assert np.allclose(prepared, loaded.examples[number : number + 1], atol=1e-5)


def test_ink_on_paper_is_turned_into_light_on_dark(loaded: demo.Demo) -> None:
    drawn = np.full((120, 120, 3), 255, dtype=np.uint8)
    drawn[40:80, 55:65] = 0
    assert np.allclose(loaded.prepare(drawn), loaded.prepare(255 - drawn), atol=1e-5)
    assert loaded.prepare(drawn).shape == (1, 1, 12, 12)


def test_answers_are_probabilities_best_first(loaded: demo.Demo) -> None:
    answers = loaded.answers(loaded.examples[:1])
    assert list(answers) == ["conv", "identity"]
    for answer in answers.values():
        values = list(answer.values())
        assert len(values) == demo.TOP
        assert values == sorted(values, reverse=True)
        assert 0 < sum(values) <= 1 + 1e-6


def test_the_identity_depends_on_the_clicked_patch_only(loaded: demo.Demo) -> None:
    influence = loaded.dependence("identity", loaded.examples[:1], row=0.99, column=0.0)
    seen = influence > 0
    assert seen[-2:, :2].all()
    assert seen.sum() == 4
    assert influence.max() == 1
    assert (loaded.dependence("conv", loaded.examples[:1], 0.5, 0.5) > 0).sum() > 4


@pytest.mark.parametrize(
    "picture", [np.zeros(5), np.zeros((0, 3)), np.full((4, 4), np.nan), np.zeros((2, 2, 2, 2))]
)
def test_what_is_no_picture_is_refused(loaded: demo.Demo, picture: np.ndarray) -> None:
    with pytest.raises(InputError, match="a picture has height, width"):
        loaded.prepare(picture)


def test_without_models_it_says_what_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["demo", "--runs", str(tmp_path)]) == 2
    assert "`run_ablation.py --mixer ssm` trains some" in capsys.readouterr().err


def test_a_senseless_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["demo", "--port", "80"]) == 2
    assert "--port must be from 1024" in capsys.readouterr().err


@pytest.fixture
def served(runs: Path) -> Iterator[str]:
    """The address of a running demo."""
    pytest.importorskip("gradio")
    command = [
        sys.executable,
        str(ROOT / "run_ablation.py"),
        "demo",
        "--runs",
        str(runs),
        "--port",
        str(PORT),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(120):
            assert process.poll() is None, process.communicate()[0]
            try:
                with urllib.request.urlopen(address, timeout=2):
                    break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("the page did not come up within a minute")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_answers_and_looks_in_a_real_browser(served: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(served)
        page.get_by_text("What do the mixers see?").wait_for()
        page.get_by_text("%").first.wait_for()  # the answers to the first picture
        picture = page.locator("#picture img").first
        picture.wait_for()
        picture.click(position={"x": 60, "y": 60})
        page.wait_for_function("document.querySelectorAll('img').length >= 3", timeout=30_000)
        page.screenshot(path=tmp_path / "demo.png", full_page=True)
        assert (tmp_path / "demo.png").stat().st_size > 10_000
        browser.close()
