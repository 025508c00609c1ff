"""Plans on disk: stored under a key over the source files and what of the study decides its models.

Asked for again under the same key, a plan is read, not made: a finished study is reported without importing
torch, and so is one whose words, seeds or comparisons changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.history import History
from experiments.launch import Shard
from experiments.plan import Origin, Plan, PlannedArm, key_of
from experiments.resolve_study import resolve
from experiments.store import naming_unusable_folders, write_json
from experiments.study import Study
from experiments.trial import Trial, canonical_json

DETAILS = ("metric", "baselines")


def make(name: str, study: Study, stored: Path) -> Plan:
    """The plan of a study, read from `stored` if that was made for the same study by the same code.

    Raises:
        InputError: something the study asks for does not exist or does not fit; nothing is written.
    """
    return _read(stored, name, study) or resolve(name, study)


def _read(path: Path, name: str, study: Study) -> Plan | None:
    try:
        stored = json.loads(path.read_bytes())
        if stored["key"] != key_of(name, study):
            return None
        arms = tuple(
            PlannedArm(
                arm["arm"],
                arm["case"] or "",
                Trial.from_dict(arm["template"]),
                arm["matching"],
                arm["budget"],
                arm["metric"],
            )
            for arm in stored["arms"]
        )
        return Plan(name, study, stored["key"], arms, {key: stored[key] for key in DETAILS}, stored["search"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(plan: Plan, path: Path, origin: Origin) -> None:
    """Store the plan.

    Raises:
        InputError: its folder cannot be written to.
    """
    _store(plan.to_dict(origin), path)


def _store(content: dict[str, Any], path: Path) -> None:
    """Options stay in the order of their definition: so their text is the same when the plan is read."""
    with naming_unusable_folders(path.parent, "no plan can be stored"):
        write_json(path, content, sort_keys=False)


def load_stored(path: Path) -> dict[str, Any] | None:
    """A stored plan as it is, or None if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
        whole = content["arms"][0]["trials"] and content.keys() >= {"command", "comparisons", "families"}
        return content if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def stored_seeds(content: Mapping[str, Any]) -> int:
    """How many seeds a stored plan has."""
    return max(len(arm["trials"]) for arm in content["arms"])


def renew(plan: Plan, path: Path, history: History) -> str | None:
    """Let the stored plan of a study that has run say what the study says now; its trials must be the same.

    Args:
        plan: of the study as it is now.
        path: the stored one, whose command stays; one that cannot be read is left for the report to refuse.
        history: as in `Origin`.

    Returns:
        Why it was left as it is, in a sentence; None if it is up to date.

    Raises:
        InputError: its folder cannot be written to.
    """
    before = load_stored(path)
    if before is None:
        return None
    shard = before["arms"][0]["trials"][0].get("shard")
    shards = None if shard is None else Shard.parse(shard).count
    fresh = plan.to_dict(Origin(before["command"], before.get("file", ""), history, shards))
    templates = {arm["name"]: arm["template"] for arm in fresh["arms"]}
    other = [arm["name"] for arm in before["arms"] if not _same(templates.get(arm["name"]), arm["template"])]
    if other:
        return (
            f"study or code have changed since it ran, and {', '.join(other)} would be other trials today: "
            "this is the report of what ran"
        )
    if not _same({**fresh, "key": before["key"]}, before):
        _store(fresh, path)
    return None


def _same(one: Any, other: Any) -> bool:
    return canonical_json(one) == canonical_json(other)
