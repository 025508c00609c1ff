"""The arrows between the packages: imports run one way."""

from __future__ import annotations

import ast
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
COMPILER = ("torch._dynamo", "sympy")
HEAVY_BESIDE_TORCH = ("timm", "torchvision", "sklearn", "scipy.stats", "pandas", "matplotlib", *COMPILER)
HEAVY = ("torch", "numba", "ray", *HEAVY_BESIDE_TORCH)
TORCH_FREE = (
    "analysis.report",
    "experiments.commands",
    "experiments.launch",
    "experiments.plan",
    "experiments.resolve_study",
    "experiments.store",
    "experiments.stored_plan",
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
    code = (
        "import sys, run_ablation\n"
        f"assert run_ablation.main(['plan', '--mixer', 'ssm', '--runs', {str(tmp_path)!r}]) == 0\n"
        f"sys.exit(', '.join(name for name in {HEAVY_BESIDE_TORCH} if name in sys.modules) or None)"
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


def test_no_mixer_needs_torchs_compiler_to_be_counted() -> None:
    """Its import, which arithmetic on the meta device brings about, takes longer than a whole plan."""
    code = (
        "import sys, torch\n"
        "from mixers import MIXERS\n"
        "for name in MIXERS:\n"
        "    for rank in MIXERS.load(name).grid_ranks:\n"
        "        with torch.device('meta'):\n"
        "            mixer = MIXERS.create(MIXERS.resolve(MIXERS.parse(name)), 64, rank)\n"
        "        assert all(each.is_meta for each in mixer.parameters())\n"
        f"    found = [each for each in {COMPILER} if each in sys.modules]\n"
        "    assert not found, f'{name} imports {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_that_it_can_do_without() -> None:
    """And so answers at once."""
    code = (
        "import sys, run_ablation\n"
        "try:\n    run_ablation.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--mixer" in done.stdout
