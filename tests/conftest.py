"""One thread per test process: several run side by side, and bits may depend on the number. A browser."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before anything imports torch; the programs that tests start inherit it
os.environ["COLUMNS"] = "100"  # whatever terminal the tests are run in


Ablate = Callable[..., int]

STUDY = """
question = "Is the machinery sound?"
varied = "mixer"
fixed = "all else"
cost = "seconds"
answer = "that is what the tests say"
task = "digits(canvas=8, validation=200, test=1200)"
skeleton = "isotropic-nano"
baseline = "identity"
mixers = ["identity", "conv"]
margin = 5.0
seeds = 3
[train]
epochs = 2
batch_size = 32
warmup_epochs = 1
"""


@pytest.fixture(scope="session")
def ablate() -> Ablate:
    """The command line with trials run in this process: no worker has to start and import torch."""

    def run(trials: list[Any], store: Any, runtime: Any, placement: Any, watch: Any) -> None:
        from experiments import launch

        launch.work(trials, store, runtime, "here")

    def ablate(*arguments: object) -> int:
        import run_ablation

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("experiments.executors.local.run", run)
            return run_ablation.main([*map(str, arguments)])

    return ablate


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file of one's own: 6 trials of seconds."""
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def read_only_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on nothing can be written, as in the folder of a colleague; also for root."""
    open_file, open_descriptor = builtins.open, os.open

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def read(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        return open_file(path, mode, *arguments, **named) if set(mode) <= set("rbt") else refuse(path)

    def read_descriptor(path: Any, flags: int, *arguments: Any, **named: Any) -> Any:
        reads = not flags & (os.O_WRONLY | os.O_RDWR)
        return open_descriptor(path, flags, *arguments, **named) if reads else refuse(path)

    def mount() -> None:
        monkeypatch.setattr("builtins.open", read)
        monkeypatch.setattr("os.open", read_descriptor)
        for name in ("mkdir", "utime"):
            monkeypatch.setattr(f"os.{name}", refuse)

    return mount


@pytest.fixture
def write_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], str]]:
    """Write the source of a module into the working directory and give its name, new in every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "own_" + "".join(c if c.isalnum() else "_" for c in request.node.name)

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield write
    sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window and without a name server: it reaches this machine only."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()
