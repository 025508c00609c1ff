"""Text in lines that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap

TERMINAL_WIDTH = 100  # where none is told
WIDEST = 120


def terminal_width() -> int:
    """Of the terminal, as far as lines of that width can be read."""
    return min(WIDEST, shutil.get_terminal_size((TERMINAL_WIDTH, 24)).columns)


def fit(text: str, width: int | None = None) -> str:
    """The text with its long lines broken; what goes on below an item of a list is indented further.

    Args:
        text: of any number of lines.
        width: of a line, which only a single word exceeds; by default the terminal's.
    """
    return "\n".join(_broken(line, width or terminal_width()) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    indentation = line[: len(line) - len(line.lstrip())]
    further = "    " if indentation else "  " if line.startswith("! ") else ""
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indentation + further,
        break_long_words=False,
        break_on_hyphens=False,
    )
