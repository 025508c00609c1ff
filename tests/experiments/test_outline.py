"""The outline that the diagrams are drawn from is that of the modules as they are."""

from __future__ import annotations

import json

from experiments.outline import PATH, outline


def test_the_checked_in_outline_is_up_to_date() -> None:
    assert json.loads(PATH.read_text()) == outline(), "run python -m experiments.outline"


def test_the_two_blocks_differ_in_the_scans_alone() -> None:
    without, with_ssm = outline()["blocks"].values()
    scans = [part["parameters"] for part in with_ssm["mixer"] if part["kind"] == "SelectiveScan"]
    assert len(scans) == 2
    assert with_ssm["parameters"] - without["parameters"] == sum(scans)
    shared = ("dim", "hidden", "mixed", "act")
    assert [without[name] for name in shared] == [with_ssm[name] for name in shared]
