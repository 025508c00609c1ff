"""Text is broken where the terminal ends."""

from __future__ import annotations

import pytest

from analysis.terminal_lines import fit, terminal_width

TEXT = """\
study: a question that takes more than one line
  arm: ssm(d_state=16, conv=symmetric, kernel_size=7)
! a remark that takes more than one line, too
a/path/that/is/a/single/word/and/stays/one
"""


def test_a_line_goes_on_below_where_it_began() -> None:
    """An item of a list further in, a remark behind its mark; a word is never broken."""
    assert (
        fit(TEXT, 30)
        == """\
study: a question that takes
more than one line
  arm: ssm(d_state=16,
      conv=symmetric,
      kernel_size=7)
! a remark that takes more
  than one line, too
a/path/that/is/a/single/word/and/stays/one
"""
    )


@pytest.mark.parametrize(("columns", "width"), [("72", 72), ("400", 120)])
def test_the_width_is_the_terminals_as_far_as_lines_can_be_read(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width
    assert max(map(len, fit("a " * 200).split("\n"))) == width - 1  # a letter, and no blank at the end
