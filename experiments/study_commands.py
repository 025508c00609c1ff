"""What run, plan, status and report do with a study. Torch is imported only where it is needed."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.quantities import plural
from analysis.terminal_lines import fit
from experiments import (
    command_line,
    executors,
    launch,
    outdated,
    plan_text,
    ranks,
    resolve_study,
    search,
    status,
    stored_plan,
    study,
    study_folder,
)
from experiments.launch import Shard
from experiments.monitor import Monitor
from experiments.plan import Origin, Plan
from experiments.request import Request
from experiments.requested_study import requested_study
from experiments.search import Search
from experiments.store import Store, holding
from experiments.trial import Trial
from mixers.registry import InputError

if TYPE_CHECKING:
    from analysis.comparison import Comparison

SHOWN = {"report": "report.html", "table": "table.md", "figure": "figures/differences.png"}
"""What is pointed at when a study is done; the rest lies beside it."""


def perform(verb: str, arguments: Sequence[str]) -> int:
    """Carry out one of the verbs; under torchrun rank 0 does it, the others help where trials are run.

    Returns:
        The exit code.

    Raises:
        InputError: something in the arguments cannot be used.
    """
    if not ranks.launched():
        return _alone(verb, arguments)
    if verb != "run":
        return _alone(verb, arguments) if ranks.is_first() else 0
    from experiments.executors import torchrun

    device = command_line.parse(arguments, verb).device
    if not ranks.is_first():
        torchrun.follow(device)
        return 0
    with torchrun.leading(device):
        return _alone(verb, arguments)


def _alone(verb: str, arguments: Sequence[str]) -> int:
    asked = command_line.parse(arguments, verb)
    asked.check()  # whatever is to be done
    name, wanted = requested_study(asked)
    if verb in ("status", "report"):
        return {"status": _status, "report": _report}[verb](asked, name, wanted)
    return {"run": _run, "plan": _plan}[verb](asked, name, wanted, _command(arguments))


def _run(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    _check(asked)
    path = study_folder.path_of_plan(asked, name)
    code = 0
    for seeds in _looks_ahead(asked, name, wanted, path):
        code, go_on = _run_at(asked, name, dataclasses.replace(wanted, seeds=seeds), path, command)
        if not go_on:
            break
    return code


def _looks_ahead(asked: Request, name: str, wanted: study.Study, path: Path) -> Sequence[int]:
    """Numbers of seeds to judge at, one after another; those that have been gone past are done with.

    A look was gone past if its results say so: that there is a plan of more seeds does not.
    """
    if asked.seeds is not None or not wanted.looks:
        return (wanted.seeds,)
    before = stored_plan.load_stored(path)
    reached = 0 if before is None or asked.retrain else stored_plan.stored_seeds(before)
    store = Store(asked.runs)
    ahead = list(wanted.looks)
    while len(ahead) > 1 and ahead[0] < reached:
        planned = stored_plan.make(name, dataclasses.replace(wanted, seeds=ahead[0]), path)
        if not _was_gone_past(search.settle(planned, store), store):
            break
        del ahead[0]
    return ahead


def _was_gone_past(found: Search, store: Store) -> bool:
    """Whether all trials of a look are finished and left something open."""
    if found.open or launch.missing(found.plan.trials(), store):
        return False
    from analysis.report import judge_plan

    plan = found.plan.to_dict(Origin(command=""))
    return any(comparison.is_open for comparison in judge_plan(plan, store.trials))


def _run_at(asked: Request, name: str, wanted: study.Study, path: Path, command: str) -> tuple[int, bool]:
    """Train and report what is missing of a number of seeds.

    Returns:
        The exit code, and whether more seeds are needed, as far as that can be told.
    """
    planned = stored_plan.make(name, wanted, path)
    _check_margin(planned, asked)
    store = Store(asked.runs)
    _store_plan(planned, path, store, asked, command)
    print(fit(plan_text.matching_lines(planned) + plan_text.notes(planned, wanted, asked)), end="")
    _meet_outdated(planned, store, asked.share, retrain=asked.retrain)
    chosen = _choose_rates(planned, store, asked)
    if chosen.open:
        return _say_what_waits(chosen, store, asked), False
    planned = chosen.plan
    _store_plan(planned, path, store, asked, command)
    _train(f"{name}: {plan_text.size(planned)}", planned.trials(), planned.labels(), store, asked)
    with holding(path.parent):
        study_folder.store_plan(planned, path, store, asked, command)  # others may have stored theirs since
        code, comparisons = _write_report(planned, store, path.parent, asked.share)
    code = max(code, _say_what_failed(chosen, store))
    later = [look for look in wanted.looks if look > wanted.seeds]
    if code or not later:
        return code, False
    if launch.missing(planned.trials(), store):
        at = plural(wanted.seeds, "seed")
        print(f"the look at {at} waits for other shards; run those, then the same command again")
        return code, False
    if asked.seeds is None:
        from analysis.verdict_sentence import what_follows

        print(f"\n{fit(what_follows(comparisons, wanted.seeds, later[0]))}\n", flush=True)
    return code, any(each.is_open for each in comparisons)


def _store_plan(planned: Plan, path: Path, store: Store, asked: Request, command: str) -> None:
    """Store the plan, but not while another command reports its own."""
    with holding(path.parent):
        study_folder.store_plan(planned, path, store, asked, command)


def _plan(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    path = study_folder.path_of_plan(asked, name)
    store = Store(asked.runs, read_only=path.exists())
    planned = stored_plan.make(name, wanted, path)
    _check_margin(planned, asked)
    if not path.exists():  # the run, and whoever asks for the plan again, need no torch to read it
        _store_plan(planned, path, store, asked, command)
    print(fit(plan_text.overview(planned) + plan_text.differences(planned)), end="")
    print(fit(plan_text.matching_lines(planned) + plan_text.notes(planned, wanted, asked)), end="")
    found = search.settle(planned, store)
    rates = plan_text.rates_ahead(found) if found.open else plan_text.rate_lines(found.plan)
    print(fit(rates), end="")
    print(_work_left(found, store, asked))
    _meet_outdated(found.plan, store, asked.share, retrain=False)
    if wanted.cost:
        print(fit(f"What the study file says of its cost: {wanted.cost}"))
    return 0


def _work_left(found: Search, store: Store, asked: Request) -> str:
    """How many trials of this shard are left to run, those of the search for learning rates first."""
    trials = _own(found.plan.trials(), asked)
    done = sum(launch.finished(store.folder(trial.id)) for trial in trials)
    waiting = len(_own(list(found.open.values()), asked))
    searched = f"{plural(waiting, 'trial')} for them, then " if found.open else ""
    where = f" of shard {asked.shard}" if asked.shard else ""
    return f"{searched}{plural(len(trials), 'trial')}{where}, {done} finished, {len(trials) - done} to run"


def _meet_outdated(planned: Plan, store: Store, share: Shard | None, *, retrain: bool) -> None:
    """Say which finished trials the code or data of today would not give, or set those of the shard aside."""
    old = outdated.find(search.settle(planned, store).plan, store)
    if not retrain:
        print(fit("".join(f"note: {sentence}\n" for sentence in old.sentences())), end="")
        return
    own = [trial_id for trial_id in old.trials if share is None or share.of(trial_id) == share]
    aside = [name for trial_id in own if (name := old.set_aside(trial_id, store))]
    print(f"{plural(len(aside), 'trial')} set aside to be trained again, as result.outdated-*.json")


def _status(asked: Request, name: str, wanted: study.Study) -> int:
    path = study_folder.path_of_plan(asked, name, planned_before=True)
    wanted = study_folder.with_stored_seeds(wanted, path, asked)
    store = Store(asked.runs, read_only=True)
    found = search.settle(stored_plan.make(name, wanted, path), store)
    print(fit(f"{name}: {wanted.question}"))
    labels = {trial_id: found.labels[trial_id] for trial_id in (*found.open, *found.failed)}
    statuses = status.examine(labels, dict.fromkeys(labels, "learning rates"), store)
    if not found.open:
        statuses += status.examine(found.plan.labels(), found.plan.arms_by_trial(), store)
    said = status.lines(statuses)
    if asked.share is not None:
        said += status.shard_lines(statuses, asked.share)
    print("\n".join(said))
    return 0


def _report(asked: Request, name: str, wanted: study.Study) -> int:
    path = study_folder.path_of_plan(asked, name, planned_before=True)
    wanted = study_folder.with_stored_seeds(wanted, path, asked)
    store = Store(asked.runs)
    planned = search.settle(stored_plan.make(name, wanted, path), store).plan
    with holding(path.parent):
        why_left = stored_plan.renew(planned, path, study_folder.history_of(planned, path, store, asked))
        if why_left:
            print(fit(f"note: {why_left}"))
        return _write_report(planned, store, path.parent, asked.share)[0]


def _command(arguments: Sequence[str]) -> str:
    """The command that runs all missing trials: the one given, without --shard and --retrain."""
    kept = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if before != "--shard" and word.partition("=")[0] not in ("--shard", "--retrain")
    ]
    return shlex.join(["uv", "run", "run_ablation.py", *kept])


def _check(asked: Request) -> None:
    """Refuse what cannot run before anything is planned.

    Raises:
        InputError: a placement or a backend that does not exist.
    """
    if asked.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs tensorboard, which is not installed: uv sync --extra tensorboard"
        )
    _executor(asked).check(asked.runtime, asked.placement)


def _check_margin(planned: Plan, asked: Request) -> None:
    """A margin is in the unit of the task that it was set for.

    Raises:
        InputError: that is another than the unit of the task that was asked for in its place.
    """
    if asked.task is None or asked.margin is not None:
        return
    original = study.load(study.find(asked.study))
    set_for = resolve_study.difference_unit(original)
    unit = planned.details["metric"]["difference_unit"]
    if unit != set_for:
        raise InputError(
            f"margin {original.margin:g} is in {set_for}, for {original.task}; {planned.study.task} is "
            f"measured in {unit}: give --margin"
        )


def _executor(asked: Request) -> executors.Executor:
    return executors.find("torchrun" if ranks.launched() else asked.executor)


def _choose_rates(planned: Plan, store: Store, asked: Request) -> Search:
    """Run the search for learning rates, if the study asks for one, until it is settled.

    A shard of it is settled only once the other shards have done theirs; until then some trials stay open. So
    do those that were to be run here and for whatever reason were not.
    """
    attempted: set[str] = set()

    def retry(trial: Trial) -> bool:
        return trial.id not in attempted and bool(_own([trial], asked))

    found = search.settle(planned, store, retry)
    while found.open:
        own = [trial for trial in _own(list(found.open.values()), asked) if trial.id not in attempted]
        if not own:
            return found
        _train(f"{planned.name}: learning rates", own, found.labels, store, asked)
        attempted |= {trial.id for trial in own}
        found = search.settle(planned, store, retry)
    print(fit(plan_text.rate_lines(found.plan)), end="")
    return found


def _own(trials: list[Trial], asked: Request) -> list[Trial]:
    return trials if asked.share is None else asked.share.select(trials)


def _say_what_waits(found: Search, store: Store, asked: Request) -> int:
    """Name the trials that the choice of learning rates still needs; 1 if they were to be run here."""
    own = _own(list(found.open.values()), asked)
    for trial in own[: status.MOST_LINES]:
        print(f"  {found.labels[trial.id]} not run")
    if own:
        short = plural(len(own), "trial")
        print(f"the learning rates cannot be chosen yet, {short} short: run the same command again")
    others = len(found.open) - len(own)
    if others:
        print(
            f"the search for learning rates waits for {plural(others, 'trial')} of shards other than "
            f"{asked.shard}; run those, then the same command again"
        )
    return max(1 if own else 0, _say_what_failed(found, store))


def _say_what_failed(found: Search, store: Store) -> int:
    """Name the trials whose learning rate counted as worst because they failed; 1 if there are any."""
    for trial_id in found.failed[: status.MOST_LINES]:
        folder = store.folder(trial_id)
        result = folder.result() or {}
        print(f"  {found.labels[trial_id]} failed: {result.get('error', '')}; log {folder.log}")
    if found.failed:
        print("the choice of learning rates took what failed for worst; the same command tries it again")
    return 1 if found.failed else 0


def _train(what: str, trials: list[Trial], labels: Mapping[str, str], store: Store, asked: Request) -> None:
    """Run those of the trials that are not finished and in this shard, and say so.

    Raises:
        InputError: the folder of one cannot be used.
    """
    trials = _own(trials, asked)
    for note in launch.set_unusable_aside(trials, store):
        print(f"note: {note}")
    to_do = launch.missing(trials, store)
    where = f" of shard {asked.shard}" if asked.shard else ""
    print(f"{what}, {len(to_do)} of {len(trials)} trials{where} to run", flush=True)
    if not to_do:
        return
    for trial in to_do:
        store.folder(trial.id).check()
    monitor = Monitor({trial.id: labels[trial.id] for trial in trials}, store)
    try:
        _executor(asked).run(trials, store, asked.runtime, asked.placement, monitor)
    finally:
        monitor.close()


def _write_report(
    planned: Plan, store: Store, folder: Path, share: Shard | None
) -> tuple[int, Sequence[Comparison]]:
    """Tables, figures and report; print the verdict and name what is missing.

    Returns:
        The exit code, and what was judged.
    """
    from analysis.report import write_study

    report = write_study(folder, store.trials, outdated.find(planned, store).sentences())
    if not report.paths:
        raise InputError(" ".join(report.verdict_lines))
    print(report.terminal_table)
    for line in report.verdict_lines:
        print(f"\n{fit(line)}")
    print()
    for label, name in SHOWN.items():
        if name in report.paths:  # there is no figure before there are results
            print(f"{label:<8} {report.paths[name]}")
    statuses = status.examine(planned.labels(), planned.arms_by_trial(), store)
    if share is not None:
        print("\n".join(status.shard_lines(statuses, share)))
        statuses = [each for each in statuses if share.of(each.trial_id) == share]
    unfinished = [each for each in statuses if each.state != "finished"]
    for each in unfinished[: status.MOST_LINES]:
        log = store.folder(each.trial_id).log
        print(f"  {each.label} {f'failed: {each.error}; log {log}' if each.state == 'failed' else 'not run'}")
    if len(unfinished) > status.MOST_LINES:
        more = len(unfinished) - status.MOST_LINES
        print(f"  and {more} more; uv run run_ablation.py status counts them by arm")
    return 1 if unfinished else 0, report.comparisons
