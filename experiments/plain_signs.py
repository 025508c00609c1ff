"""Plain signs where an output's encoding has no others: none may end a command that has trained for hours."""

from __future__ import annotations

import codecs
import io
import sys

PLAIN = {"−": "-", "–": "-", "±": "+/-", "×": "x", "’": "'", "·": "*", "²": "^2"}
"""Of whatever has none here it is "?"; of these it must not be: before a number it could be either sign."""

NAME = "plain-signs"
"""Of this way to handle errors, among those of `codecs`."""


def allow() -> None:
    """Let what is printed be plain where it must be."""
    codecs.register_error(NAME, _in_plain_signs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NAME)


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """What stands for the signs that cannot be encoded, and where to go on behind them."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
