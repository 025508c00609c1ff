"""The folder of a study: where its plan is stored, what was asked for before, and what was settled late."""

from __future__ import annotations

import dataclasses
import functools
import glob
from pathlib import Path

from experiments import history, launch, plan, search, stored_plan, study
from experiments.history import History
from experiments.plan import Plan
from experiments.request import Request
from experiments.requested_study import first_of_name
from experiments.store import Store, naming_unusable_folders
from mixers.registry import InputError

MOST_STUDIES = 8  # that are named where one is not there


def path_of_plan(asked: Request, name: str, *, planned_before: bool = False) -> Path:
    """Where the plan of a study is stored.

    Raises:
        InputError: another study file of this name has its plan there; or none is there, where there must be
            one, and those that are there are named; or nobody may look.
    """
    path = asked.runs / "studies" / name / "plan.json"
    with naming_unusable_folders(path.parent, "no plan can be read"):
        exists = path.exists()
    before = stored_plan.load_stored(path)
    other = Path(before.get("file") or "") if before else Path()
    own = study.find(asked.study)
    taken = other.is_file() and not other.samefile(own)
    if taken or (before and not before.get("file") and asked.study not in study.names()):
        whose = f"the study file {other}" if taken else f"the checked-in study {own.stem}"
        raise InputError(f"{path.parent} belongs to {whose}; give {own} another name, or another --runs")
    if planned_before and not exists:
        found = {
            each.parent.name: stored_plan.load_stored(each)
            for each in sorted(path.parents[1].glob("*/plan.json"))
        }
        others = [f"\n  {each}: {content['command']}" for each, content in found.items() if content]
        which = f"; what is there, and the command that made it:{''.join(others[:MOST_STUDIES])}"
        raise InputError(f"study {name} has no plan in {asked.runs} yet{which if others else ''}")
    return path


def with_stored_seeds(wanted: study.Study, path: Path, asked: Request) -> study.Study:
    """The study with the seeds that have been asked for before, unless this command asks for a number."""
    before = stored_plan.load_stored(path)
    if asked.seeds is not None or before is None:
        return wanted
    return dataclasses.replace(wanted, seeds=max(wanted.seeds, stored_plan.stored_seeds(before)))


def store_plan(planned: Plan, path: Path, store: Store, asked: Request, command: str) -> None:
    checked_in = asked.study in study.names()
    origin = plan.Origin(
        command,
        "" if checked_in else str(study.find(asked.study).resolve()),
        history_of(planned, path, store, asked),
        None if asked.share is None else asked.share.count,
    )
    stored_plan.write(planned, path, origin)


def history_of(planned: Plan, path: Path, store: Store, asked: Request) -> History:
    """What of the plan was settled late; what a checked-in study says was not."""

    @functools.cache  # hundreds of stored plans may have the same trials
    def is_finished(trial: str) -> bool:
        return launch.finished(store.folder(trial))

    file = study.find(asked.study)
    whole = store.studies / file.stem / "plan.json"
    is_part = path != whole
    in_file = study.load(file)
    fixed = [] if is_part else ["comparisons"]
    if asked.study in study.names():
        same = [key for key in ("margin", "looks") if getattr(in_file, key) == getattr(planned.study, key)]
        fixed += ["metric", *(key for key in same if getattr(in_file, key))]  # no command changes the metric
    return history.trace(
        search.settle(planned, store).plan.to_dict(plan.Origin(command="")),
        stored_plan.load_stored(path),
        stored_plan.load_stored(whole) if is_part else None,
        _other_parts(path, first_of_name(asked, planned.study.task)),
        lambda trials: sum(map(is_finished, trials)),
        fixed=fixed,
    )


def _other_parts(path: Path, first: str) -> list[history.Stored]:
    """The stored plans of what else was asked of a study file, told by their names: there may be hundreds."""
    names = f"{glob.escape(first)}-*/plan.json"
    found = (stored_plan.load_stored(each) for each in sorted(path.parents[1].glob(names)) if each != path)
    return [content for content in found if content is not None]
