"""How far a study is, from the small files of its trials. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from experiments.launch import Shard
from experiments.monitor import progress_line, running_progress
from experiments.store import Store, TrialFolder

State = Literal["finished", "running", "failed", "waiting"]
STATES: tuple[State, ...] = ("finished", "running", "failed", "waiting")
MOST_LINES = 20  # of running, and of failed trials


@dataclass(frozen=True)
class TrialStatus:
    """Where one trial is.

    Attributes:
        label: what it is called.
        arm: that it belongs to.
        trial_id: its folder's name.
        state: waiting is whatever is not started, or stopped on the way.
        progress: of a running one.
        error: of a failed one; of a waiting one, why the result that is there cannot be used.
    """

    label: str
    arm: str
    trial_id: str
    state: State
    progress: dict[str, Any] | None = None
    error: str = ""


def examine(labels: Mapping[str, str], arms: Mapping[str, str], store: Store) -> list[TrialStatus]:
    """The status of each trial.

    Args:
        labels: of the trials, by id.
        arms: of the trials, by id.
        store: where they are.
    """
    return [_examine(label, arms[trial_id], store.folder(trial_id)) for trial_id, label in labels.items()]


def _examine(label: str, arm: str, folder: TrialFolder) -> TrialStatus:
    result = folder.result()
    if result is not None and result["status"] != "failed":
        return TrialStatus(label, arm, folder.trial_id, "finished")
    progress = running_progress(folder)
    if progress is not None:
        return TrialStatus(label, arm, folder.trial_id, "running", progress)
    if result is not None:
        return TrialStatus(label, arm, folder.trial_id, "failed", error=result["error"])
    return TrialStatus(label, arm, folder.trial_id, "waiting", error=folder.unusable_result() or "")


def lines(statuses: list[TrialStatus]) -> list[str]:
    """What to print: the whole, each arm, what runs, what failed."""
    said = [f"{len(statuses)} trials: {_counts(statuses)}"]
    arms = dict.fromkeys(status.arm for status in statuses)
    said += [f"  {arm:<28} {_counts([each for each in statuses if each.arm == arm])}" for arm in arms]
    running = [each for each in statuses if each.progress is not None]
    said += _listed("running", [progress_line(each.label, each.progress or {}) for each in running])
    failed = [each for each in statuses if each.state == "failed"]
    said += _listed("failed", [f"  {each.label} ({each.trial_id}): {each.error}" for each in failed])
    unusable = [each for each in statuses if each.state == "waiting" and each.error]
    said += _listed(
        "with a result that cannot be used, and will run again",
        [f"  {each.label} ({each.trial_id}): result.json is {each.error}" for each in unusable],
    )
    return said


def shard_lines(statuses: list[TrialStatus], shard: Shard) -> list[str]:
    """How much is missing of each shard that is not complete."""
    said = []
    for number in range(1, shard.count + 1):
        each = Shard(number, shard.count)
        own = [status for status in statuses if shard.of(status.trial_id) == each]
        left = sum(status.state != "finished" for status in own)
        if left:
            said.append(f"shard {each}: {left} of {len(own)} trials missing")
    return said or [f"all {shard.count} shards are complete"]


def _counts(statuses: list[TrialStatus]) -> str:
    counts = {state: sum(status.state == state for status in statuses) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _listed(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  and {len(entries) - MOST_LINES} more"] if len(entries) > MOST_LINES else []
    return [title, *entries[:MOST_LINES], *more]
