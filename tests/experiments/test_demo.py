"""The demo: what it answers without a page, and the page itself in a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import run_ablation
from experiments import demo
from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS
from mixers import InputError
from mixers.registry import Component


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ablate: Callable[..., int]) -> Path:
    """A runs folder with two arms trained for two epochs."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    options = (
        "--mixer identity --baseline conv --seeds 1 --train.epochs 2 --train.warmup-epochs 0 --match none"
    )
    assert ablate(*options.split(), "--runs", folder) == 0
    return folder


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory, to_timm: Callable[..., dict]) -> Path:
    """Untrained weights of a small MambaOut with timm's names and 1,000 classes."""
    path = tmp_path_factory.mktemp("weights") / "pico.safetensors"
    task = TaskSpec(input="image", channels=3, grid=(64, 64), classes=1_000)
    model = SKELETONS.load("mambaout-pico")(demo._conv, task)
    model.init_weights(lambda _: torch.Generator().manual_seed(0))
    safetensors.torch.save_file(to_timm(model.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def loaded(runs: Path, pico: Path, tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    return demo.load(runs, weights=[pico], cache=tmp_path_factory.mktemp("empty"))


@pytest.fixture
def digits(loaded: demo.Demo) -> list[demo.Choice]:
    """conv, identity."""
    return [choice for name, choice in loaded.choices.items() if "digits" in name]


def test_models_and_pictures_to_choose_from(loaded: demo.Demo) -> None:
    conv, identity, pico = loaded.choices
    assert conv.startswith("conv (digits-ladder")
    assert identity.startswith("identity (digits-ladder")
    assert pico == "mambaout-pico (pico)"
    assert loaded.first == (conv, identity)  # trained here; weights only when asked
    assert re.fullmatch(r"digits: test accuracy \d+\.\d %, seed 0", loaded.choices[conv].about)
    assert len(loaded.examples) == demo.EXAMPLES + len(demo.PHOTOGRAPHS)


def test_a_bundled_picture_comes_back_as_the_models_take_it(digits: list[demo.Choice], runs: Path) -> None:
    view = digits[0].view
    (first, *_) = demo.trained(runs)
    inputs = next(iter(demo.create_task(first.trial.task).load(0).batches("test", 8))).inputs
    for x in inputs:
        picture = view.picture(x)
        assert np.allclose(view.prepare(picture), x, atol=1e-5)
        enlarged = picture.repeat(30, axis=0).repeat(30, axis=1)  # as it is uploaded again from the page
        assert np.allclose(view.prepare(enlarged), x, atol=1e-5)


def test_a_standardised_view_ignores_brightness_and_contrast() -> None:
    view = demo.View((1, 8, 8), (0.0,), (1.0,), standardised=True, dark=False, classes=("a", "b"))
    picture = np.random.default_rng(0).random((16, 16, 3))
    prepared = view.prepare(picture)
    assert prepared.mean().item() == pytest.approx(0, abs=1e-5)
    assert prepared.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert np.allclose(prepared, view.prepare(0.3 + 0.2 * picture), atol=1e-4)
    assert np.allclose(view.prepare(view.picture(prepared[0])), prepared, atol=1e-4)


def test_ink_on_paper_is_turned_into_light_on_dark(digits: list[demo.Choice]) -> None:
    drawn = np.full((120, 120, 3), 255, dtype=np.uint8)
    drawn[40:80, 55:65] = 0
    view = digits[0].view
    on_paper, on_dark = (view.prepare(demo.as_picture(each)) for each in (drawn, 255 - drawn))
    assert np.allclose(on_paper, on_dark, atol=1e-5)
    assert on_paper.shape == (1, 1, 12, 12)


def test_a_drawing_is_centred_and_as_large_as_the_digits() -> None:
    ink = np.zeros((300, 300), dtype=np.uint8)
    ink[10:50, 200:210] = 255
    picture = demo.drawing(ink)
    assert picture is not None
    assert picture.shape == (60, 60, 3)
    rows, columns = np.nonzero(picture[..., 0])
    assert (rows.min(), rows.max()) == (10, 49)
    assert (columns.min(), columns.max()) == (25, 34)
    assert demo.drawing(np.zeros((300, 300))) is None


def test_answers_are_probabilities_best_first(loaded: demo.Demo) -> None:
    for choice in loaded.choices.values():
        values = [value for _, value in choice.answers(loaded.examples[0])]
        assert len(values) == demo.TOP
        assert values == sorted(values, reverse=True)
        assert 0 < sum(values) <= 1 + 1e-6


def test_the_right_digit_is_named_as_often_as_the_record_says(digits: list[demo.Choice], runs: Path) -> None:
    """The way from a picture to an answer loses nothing: the stored accuracy comes out again."""
    (first, *_) = demo.trained(runs)
    batch = next(iter(demo.create_task(first.trial.task).load(0).batches("test", 360)))
    view = digits[0].view
    named = [digits[0].answers(view.picture(x))[0][0] for x in batch.inputs]
    right = 100 * np.mean([int(name) == target for name, target in zip(named, batch.targets, strict=True)])
    assert f"accuracy {right:.1f} %" in digits[0].about


def test_the_identity_depends_on_the_clicked_patch_only(digits: list[demo.Choice], loaded: demo.Demo) -> None:
    conv, identity = digits
    influence = identity.dependence(loaded.examples[0], row=0.99, column=0.0)
    seen = influence > 0
    assert seen[-2:, :2].all()
    assert seen.sum() == 4
    assert influence.max() == 1
    first, *_, last = (conv.dependence(loaded.examples[0], 0.5, 0.5, depth) for depth in demo.DEPTHS)
    assert (first > 0).sum() > 4
    assert not np.allclose(first, last)


@pytest.mark.parametrize(
    "raw",
    [np.zeros(5), np.zeros((0, 3)), np.full((4, 4), np.nan), np.zeros((2, 2, 2, 2)), np.zeros((2, 2, 1))],
)
def test_what_is_no_picture_is_refused(raw: np.ndarray) -> None:
    with pytest.raises(InputError, match="a picture has height, width"):
        demo.as_picture(raw)


def test_a_transparent_picture_lies_on_paper(tmp_path: Path) -> None:
    ink = np.zeros((6, 6, 4), dtype=np.uint8)
    ink[2:4, 2:4, 3] = 255
    Image.fromarray(ink).save(tmp_path / "drawn.png")
    picture = demo.read_picture(tmp_path / "drawn.png")
    assert picture.sum() == 3 * (36 - 4)
    assert not picture[2:4, 2:4].any()


def test_a_picture_of_16_bits_keeps_its_greys(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 51], [257 * 102, 65535]], dtype=np.uint16)).save(
        tmp_path / "deep.png"
    )
    assert np.allclose(demo.read_picture(tmp_path / "deep.png")[..., 0], [[0, 0.2], [0.4, 1]])


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_file_that_is_no_picture_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(InputError, match=r"^photo\.png cannot be read as a picture$"):
        demo.read_picture(tmp_path / "photo.png")


@pytest.mark.parametrize("task", ["scenes", "scenes-detect", "mqar"])
def test_a_model_that_does_not_name_a_class_is_not_offered(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(trial=SimpleNamespace(task=Component(task)))
    monkeypatch.setattr(demo, "trained", lambda *_: iter([made]))
    with pytest.raises(InputError, match="no trained classifier of images"):
        demo.load(tmp_path, cache=tmp_path)


def test_weights_that_timm_has_downloaded_are_offered(pico: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """In the layout of its cache; nothing is asked of the network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    repository = tmp_path / "models--timm--mambaout_femto.in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    shutil.copy(pico, repository / "snapshots" / "abc" / "model.safetensors")
    loaded = demo.load(tmp_path / "no runs", cache=tmp_path)
    assert loaded.first == ("mambaout-pico (timm/mambaout_femto.in1k)",)
    (choice,) = loaded.choices.values()
    assert choice.view.classes[0] == "tench"
    assert choice.view.prepare(loaded.examples[0]).shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no weights", "cannot be read"), (None, "cannot be read"), ("other", "not the weights of a MambaOut")],
)
def test_weights_that_cannot_be_used(content: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        safetensors.torch.save_file({"fc.weight": torch.zeros(2, 2)}, path)
    assert run_ablation.main(["demo", "--runs", str(tmp_path), "--weights", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error


def test_without_models_it_says_what_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"`uv run run_ablation\.py --mixer ssm` trains some"):
        demo.load(tmp_path, cache=tmp_path)


def test_a_senseless_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_ablation.main(["demo", "--port", "80"]) == 2
    assert "--port must be from 1024" in capsys.readouterr().err


def test_a_port_that_is_taken(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run_ablation.main(["demo", "--runs", str(runs), "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert f"port {port} is taken" in said.err
    assert "http://" not in said.out


@pytest.fixture
def served(loaded: demo.Demo) -> Iterator[str]:
    """The address of the page."""
    from experiments import demo_page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = demo_page.serve(loaded, port)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


def test_the_page_in_a_real_browser(browser: Any, served: str, tmp_path: Path) -> None:
    """Without a network: a bundled picture, a click, a drawing, an upload, other models, another depth."""
    page = browser.new_page(viewport={"width": 1300, "height": 950})
    page.set_default_timeout(120_000)
    outside: list[str] = []
    wrong: list[str] = []

    def only_here(route: Any) -> None:
        if route.request.url.startswith(served):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    page.route(re.compile(r"^(?!data:|blob:)"), only_here)
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def changed(what: str, before: str) -> str:
        """The new value, when there is one."""
        page.wait_for_function(
            "([what, before]) => document.querySelector(what)?.outerHTML !== before", arg=[what, before]
        )
        return str(page.locator(what).first.evaluate("each => each.outerHTML"))

    answers, heat = "#answers .card ol", "#answers .card img"
    page.goto(served)
    first, unclicked = changed(answers, ""), changed(heat, "")
    assert page.locator("#answers .card").count() == 2
    assert page.locator("#answers .card").first.locator("li").count() == demo.TOP
    page.screenshot(path=tmp_path / "bundled.png", full_page=True)

    page.locator("#seen img").click(position={"x": 5, "y": 5})
    clicked = changed(heat, unclicked)
    assert page.locator(answers).first.evaluate("each => each.outerHTML") == first  # the same picture
    page.screenshot(path=tmp_path / "clicked.png", full_page=True)

    page.get_by_role("radio", name="first").check()
    changed(heat, clicked)

    page.get_by_role("tab", name="Draw").click()
    page.get_by_role("button", name="Brush").click()
    box = page.locator("#pad canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + 0.25 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 0.5 * box["height"], steps=12)
    page.mouse.up()
    second = changed(answers, first)
    page.screenshot(path=tmp_path / "drawn.png", full_page=True)

    Image.new("RGB", (40, 30), (200, 30, 60)).save(tmp_path / "photo.png")
    page.get_by_role("tab", name="Upload").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "photo.png")
    changed(answers, second)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#upload button[aria-label=Clear]").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "broken.png")
    page.get_by_text("broken.png cannot be read as a picture").wait_for()

    page.get_by_label("mambaout-pico (pico)").check()
    page.locator("#answers .card").nth(2).wait_for()
    page.screenshot(path=tmp_path / "uploaded.png", full_page=True)

    assert outside == []
    assert [said for said in wrong if "broken.png" not in said] == []
    shots = [
        np.asarray(Image.open(tmp_path / f"{name}.png"))
        for name in ("bundled", "clicked", "drawn", "uploaded")
    ]
    assert all(shot.std() > 10 for shot in shots)  # not a blank page
