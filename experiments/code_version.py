"""Which code this is: recorded beside every result. Free of torch."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@cache
def source_digest() -> str:
    """12 hexadecimal digits over every source file that can change a trial."""
    state = hashlib.sha256()
    for folder in ("mixers", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            state.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return state.hexdigest()[:12]


@cache
def code_version() -> str:
    """The commit, with `+changes` if files differ from it; outside a checkout `sources-` and their hash."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return f"sources-{source_digest()}"
    # records may be written into the checkout, and change nothing that runs
    changed = _git("status", "--porcelain", "--", "mixers", "experiments", ":!experiments/results")
    return f"{commit}+changes" if changed else commit


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
