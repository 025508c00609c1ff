"""The arrows between the packages: imports run one way."""

from __future__ import annotations

import ast
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("mixers", "experiments", "analysis", "run_ablation")

FORBIDDEN = {
    "mixers": ("experiments", "analysis", "run_ablation"),
    "experiments/skeletons": ("experiments.tasks", "analysis", "run_ablation"),
    "experiments/tasks": ("experiments.skeletons", "analysis", "run_ablation"),
    "analysis": ("torch", "timm", "mixers", "run_ablation", "experiments.build", "experiments.train"),
}
TORCH_FREE = (
    "analysis.report",
    "experiments.commands",
    "experiments.launch",
    "experiments.plan",
    "experiments.store",
    "experiments.study",
    "experiments.trial",
    "run_ablation",
)


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in imported_by(path)
        if any(name == banned or name.startswith(f"{banned}.") for banned in FORBIDDEN[folder])
    ]
    assert wrong == []


def test_skeletons_and_tasks_know_no_mixer() -> None:
    """They may use the registry's machinery, never a mixer."""
    for folder in ("experiments/skeletons", "experiments/tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            names = [name for name in imported_by(path) if name.split(".")[0] == "mixers"]
            assert all(name.startswith("mixers.registry.") for name in names), f"{path}: {names}"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_free_of_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_plan_imports_nothing_that_it_can_do_without(tmp_path: Path) -> None:
    """timm and scikit-learn together take longer to import than torch; no model of this plan needs them."""
    unneeded = ("timm", "torchvision", "sklearn", "scipy.stats", "pandas", "matplotlib")
    code = (
        "import sys, run_ablation\n"
        f"assert run_ablation.main(['plan', '--mixer', 'ssm', '--runs', {str(tmp_path)!r}]) == 0\n"
        f"sys.exit(', '.join(name for name in {unneeded} if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    again = (
        "import sys, run_ablation\n"
        f"asked = ['--mixer', 'ssm', '--runs', {str(tmp_path)!r}]\n"
        "assert run_ablation.main(['plan', *asked]) == run_ablation.main(['status', *asked]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", again], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "10 trials: 10 waiting" in done.stdout


def seconds_of(*arguments: str) -> tuple[float, str]:
    """Processor seconds of a Python process, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_answers_at_once() -> None:
    """In units of the imports that it cannot do without: pandas, scipy or torch on top are too much."""
    ratio = math.inf
    for _ in range(12):  # side by side, as a machine may be busy for a while; 2.0 when it is not
        needed, _ = seconds_of("-c", "import numpy, pydantic.dataclasses")
        used, said = seconds_of("run_ablation.py", "--help")
        ratio = min(ratio, used / needed)
        if ratio < 2.5:
            break
    assert "--mixer" in said
    assert ratio < 2.5
