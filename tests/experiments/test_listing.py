"""`list`: everything by name, and each thing in full."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from experiments import listing, study
from experiments.skeletons import SKELETONS
from experiments.tasks import TASKS
from mixers import MIXERS, InputError

COMPONENTS = [(registry, name) for registry in (MIXERS, SKELETONS, TASKS) for name in registry]


@pytest.mark.parametrize(("registry", "name"), COMPONENTS)
def test_every_option_says_what_it_takes_and_what_it_means(registry, name: str) -> None:
    said = listing.describe(name, 100).splitlines()
    assert said[0] == f"{registry.kind} {name}"
    assert said[2]
    for option in registry.options(name):
        at = next(number for number, line in enumerate(said) if line.startswith(f"  {option}="))
        takes, *_ = said[at].split(": ", 1)[1:]
        assert "typing" not in takes
        assert "class" not in takes
        following = next(line for line in said[at + 1 :] if not line.startswith(" " * 10))
        assert following.startswith(" " * 6), f"{name} does not say what {option} means"


def test_values_are_given_in_words() -> None:
    said = listing.describe("ssm", 100)
    assert "  conv=symmetric: symmetric | causal | per-pass | none" in said
    assert "  d_state=16: integer >= 1, <= 256\n      N, state size per channel." in said
    assert "  window=None: integer >= 1 | None" in said


def test_a_study_shows_its_header() -> None:
    said = listing.describe("mqar-small", 100)
    assert said.startswith("study mqar-small\n  question: ")
    assert "arms: identity, conv, conv + ssm, attention" in said


def test_the_overview_names_everything() -> None:
    said = listing.overview(100)
    for name in [*(name for _, name in COMPONENTS), *study.names()]:
        assert f"\n  {name}" in said


@pytest.mark.parametrize("name", ["mixers", "studies", "images", "digits-ladder"])
def test_lines_fit(name: str) -> None:
    assert max(map(len, listing.describe(name, 72).splitlines())) <= 72


def test_a_picture_is_not_filled() -> None:
    said = listing.describe("induction", 60)
    assert "\n\n    input   2 0 4 3 1 1 0 4\n    target                3\n\n" in said


def test_options_may_be_given() -> None:
    assert "  d_state=4: integer" in listing.describe("ssm(d_state=4)", 100)
    with pytest.raises(InputError, match="nothing is called 'SSM'; did you mean 'ssm'"):
        listing.describe("SSM", 100)


@pytest.mark.parametrize(
    ("kind", "names"), [("mixers", MIXERS), ("tasks", TASKS), ("studies", study.names())]
)
def test_a_kind_may_be_named(kind: str, names: Iterable[str]) -> None:
    section = listing.describe(kind, 100)
    assert section.startswith(kind)
    assert section in listing.overview(100)
    assert all(f"\n  {name}" in section for name in names)
