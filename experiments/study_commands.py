"""What run, plan, status and report do with a study. Torch is imported only where it is needed."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import (
    command_line,
    executors,
    history,
    launch,
    outdated,
    plan,
    ranks,
    search,
    status,
    study,
)
from experiments.history import History
from experiments.launch import Shard
from experiments.monitor import Monitor
from experiments.plan import Plan, PlannedArm
from experiments.request import Request
from experiments.requested_study import requested_study
from experiments.search import Search
from experiments.store import Store
from experiments.trial import Trial
from mixers.registry import InputError

WIDTH = 100  # characters of the terminal table
MOST_STUDIES = 8  # that are named where one is not there
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
    command = _command(arguments)
    return {"run": _run, "plan": _plan, "status": _status, "report": _report}[verb](
        asked, name, wanted, command
    )


def _run(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    _check(asked)
    path = _path_of_plan(asked, name)
    code = 0
    for seeds in _looks_ahead(wanted, path, asked):
        code, go_on = _run_at(asked, name, dataclasses.replace(wanted, seeds=seeds), path, command)
        if not go_on:
            break
    return code


def _looks_ahead(wanted: study.Study, path: Path, asked: Request) -> Sequence[int]:
    """Numbers of seeds to judge at, one after another; those that have been gone past are done with."""
    if asked.seeds is not None or not wanted.looks:
        return (wanted.seeds,)
    before = plan.load_stored(path)
    reached = 0 if before is None else plan.stored_seeds(before)
    return [look for look in wanted.looks if look >= reached] or wanted.looks[-1:]


def _run_at(asked: Request, name: str, wanted: study.Study, path: Path, command: str) -> tuple[int, bool]:
    """Train and report what is missing of a number of seeds.

    Returns:
        The exit code, and whether more seeds are needed, as far as that can be told.
    """
    planned = plan.make(name, wanted, path)
    _check_margin(planned, asked)
    store = Store(asked.runs)
    _store(planned, path, store, asked, command)
    print(_matching_lines(planned) + _notes(planned, wanted, asked), end="")
    _meet_outdated(planned, store, retrain=asked.retrain)
    chosen = _choose_rates(planned, store, asked)
    if chosen.open:
        _say_what_waits(chosen, asked)
        return 0, False
    planned = chosen.plan
    _store(planned, path, store, asked, command)
    _train(f"{name}: {_size(planned)}", planned.trials(), planned.labels(), store, asked)
    code, undecided = _write_report(planned, store, path.parent, asked.share)
    later = [look for look in wanted.looks if look > wanted.seeds]
    if code or not later:
        return code, False
    if launch.missing(planned.trials(), store):
        print(f"the look at {wanted.seeds} seeds waits for other shards; run those, then the same again")
        return code, False
    if not undecided:
        return code, False
    if asked.seeds is None:
        print(f"\nUndecided at {wanted.seeds} seeds: on to the look at {later[0]}, as planned.\n", flush=True)
    return code, True


def _plan(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    store = Store(asked.runs)
    path = _path_of_plan(asked, name)
    planned = plan.make(name, wanted, path)
    _check_margin(planned, asked)
    if not path.exists():  # the run, and whoever asks for the plan again, need no torch to read it
        _store(planned, path, store, asked, command)
    print(f"{name}: {wanted.question}")
    budgets = dict.fromkeys(arm.budget for arm in planned.arms)
    print(f"  task {wanted.task}, skeleton {wanted.skeleton}, {'; '.join(budgets)}")
    matched = "not matched in size" if wanted.match == "none" else f"matched in {wanted.match}"
    unit = planned.details["metric"]["difference_unit"]
    print(f"  seeds 0..{wanted.seeds - 1}, {matched}, margin {wanted.margin:g} {unit}")
    if wanted.looks:
        looks, level = ", ".join(map(str, wanted.looks)), 100 * wanted.alpha
        print(f"  judged at {looks} seeds, as long as anything is undecided; each time at {level:.4g} %")
    if wanted.seeds < study.LEAST_SEEDS:
        least = study.LEAST_SEEDS
        print(f"  note: {_count(wanted.seeds, 'seed')} give no verdict, which takes at least {least}")
    first, *others = wanted.all_cases()
    arms = [arm for arm in planned.arms if arm.case == first.name]
    for arm in arms:
        print(f"  {arm.name}: {arm.template.mixer_text}")
    if wanted.all_comparisons():
        print("What differs between the arms that are compared:")
    for arm_name, baseline in wanted.all_comparisons():
        before, after = (planned.arm(plan.planned_name(each, first.name)) for each in (baseline, arm_name))
        print(f"  {before.name} -> {after.name}: {_difference(before, after, wanted)}")
    for case in others:
        after = planned.arm(plan.planned_name(wanted.baseline, case.name))
        before = planned.arm(plan.planned_name(wanted.baseline, first.name))
        print(f"  {before.name} -> {after.name}: {_difference(before, after, wanted)}")
    print(_matching_lines(planned) + _notes(planned, wanted, asked), end="")
    found = search.settle(planned, store)
    if found.open:
        rates = ", ".join(f"{rate:g}" for rate in sorted(wanted.lr_grid))
        print(
            f"Learning rates are chosen first, on validation, from {rates} (more where the best lies at an "
            f"edge): {len(found.open)} trials"
        )
    elif found.plan.search:
        print(_rate_lines(found.plan), end="")
    trials = _own(found.plan.trials(), asked)
    done = sum(launch.finished(store.folder(trial.id)) for trial in trials)
    waiting = len(_own(list(found.open.values()), asked))
    searched = f"{_count(waiting, 'trial')} for them, then " if found.open else ""
    where = f" of shard {asked.shard}" if asked.shard else ""
    print(f"{searched}{_count(len(trials), 'trial')}{where}, {done} finished, {len(trials) - done} to run")
    _meet_outdated(found.plan, store, retrain=False)
    if wanted.cost:
        print(f"What the study file says of its cost: {wanted.cost}")
    return 0


def _meet_outdated(planned: Plan, store: Store, *, retrain: bool) -> None:
    """Say which finished trials the code or the data of today would not give, or set their results aside."""
    old = outdated.find(search.settle(planned, store).plan, store)
    if not retrain:
        print("".join(f"note: {sentence}\n" for sentence in old.sentences()), end="")
        return
    for trial_id in old.trials:
        store.folder(trial_id).set_aside("outdated")
    print(f"{_count(len(old.trials), 'trial')} set aside to be trained again, as result.outdated-*.json")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _status(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    path = _path_of_plan(asked, name, planned_before=True)
    wanted = _with_stored_seeds(wanted, path, asked)
    store = Store(asked.runs)
    found = search.settle(plan.make(name, wanted, path), store)
    print(f"{name}: {wanted.question}")
    if found.open:
        labels = {trial_id: found.labels[trial_id] for trial_id in found.open}
        statuses = status.examine(labels, dict.fromkeys(labels, "learning rates"), store)
    else:
        statuses = status.examine(found.plan.labels(), found.plan.arms_by_trial(), store)
    said = status.lines(statuses)
    if asked.share is not None:
        said += status.shard_lines(statuses, asked.share)
    print("\n".join(said))
    return 0


def _report(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    path = _path_of_plan(asked, name, planned_before=True)
    wanted = _with_stored_seeds(wanted, path, asked)
    store = Store(asked.runs)
    planned = search.settle(plan.make(name, wanted, path), store).plan
    outdated = plan.renew(planned, path, _history(planned, path, store, asked))
    if outdated:
        print(f"note: {outdated}")
    return _write_report(planned, store, path.parent, asked.share)[0]


def _path_of_plan(asked: Request, name: str, *, planned_before: bool = False) -> Path:
    """Where the plan of a study is stored.

    Raises:
        InputError: another study file of this name has its plan there; or none is there, where there must be
            one, and those that are there are named.
    """
    path = asked.runs / "studies" / name / "plan.json"
    before = plan.load_stored(path)
    other = Path(before.get("file") or "") if before else Path()
    own = study.find(asked.study)
    taken = other.is_file() and not other.samefile(own)
    if taken or (before and not before.get("file") and asked.study not in study.names()):
        whose = f"the study file {other}" if taken else f"the checked-in study {own.stem}"
        raise InputError(f"{path.parent} belongs to {whose}; give {own} another name, or another --runs")
    if planned_before and not path.exists():
        found = {
            each.parent.name: plan.load_stored(each) for each in sorted(path.parents[1].glob("*/plan.json"))
        }
        others = [f"\n  {each}: {content['command']}" for each, content in found.items() if content]
        which = f"; what is there, and the command that made it:{''.join(others[:MOST_STUDIES])}"
        raise InputError(f"study {name} has no plan in {asked.runs} yet{which if others else ''}")
    return path


def _with_stored_seeds(wanted: study.Study, path: Path, asked: Request) -> study.Study:
    """The study with the seeds that have been asked for before, unless this command asks for a number."""
    before = plan.load_stored(path)
    if asked.seeds is not None or before is None:
        return wanted
    return dataclasses.replace(wanted, seeds=max(wanted.seeds, plan.stored_seeds(before)))


def _store(planned: Plan, path: Path, store: Store, asked: Request, command: str) -> None:
    checked_in = asked.study in study.names()
    origin = plan.Origin(
        command,
        "" if checked_in else str(study.find(asked.study).resolve()),
        _history(planned, path, store, asked),
        None if asked.share is None else asked.share.count,
    )
    plan.write(planned, path, origin)


def _history(planned: Plan, path: Path, store: Store, asked: Request) -> History:
    """What of the plan was settled late; the margin of a checked-in study was not."""
    file = study.find(asked.study)
    whole = store.studies / file.stem / "plan.json"
    is_part = path != whole
    in_file = study.load(file)
    set_there = {
        "margin": in_file.margin == planned.study.margin,
        "planned_looks": in_file.looks == planned.study.looks,
    }
    return history.trace(
        search.settle(planned, store).plan,
        plan.load_stored(path),
        plan.load_stored(whole) if is_part else None,
        _other_parts(path, file.stem) if is_part else [],
        lambda trials: sum(launch.finished(store.folder(trial)) for trial in trials),
        fixed=[key for key, same in set_there.items() if same and asked.study in study.names()],
    )


def _other_parts(path: Path, stem: str) -> list[history.Stored]:
    """The stored plans of what else was asked of a study file, told by their names: there may be hundreds."""
    names = f"{glob.escape(stem)}-*/plan.json"
    found = (plan.load_stored(each) for each in sorted(path.parents[1].glob(names)) if each != path)
    return [content for content in found if content is not None]


def _command(arguments: Sequence[str]) -> str:
    """What runs the study, whoever asks: all that is missing, so without a shard, and no more than that."""
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
    set_for = plan.difference_unit(original)
    unit = planned.details["metric"]["difference_unit"]
    if unit != set_for:
        raise InputError(
            f"margin {original.margin:g} is in {set_for}, for {original.task}; {planned.study.task} is "
            f"measured in {unit}: give --margin"
        )


def _executor(asked: Request) -> executors.Executor:
    return executors.find("torchrun" if ranks.launched() else asked.executor)


def _size(planned: Plan) -> str:
    cases = f" x {len(planned.study.cases)} cases" if planned.study.cases else ""
    return f"{len(planned.study.all_arms())} arms{cases} x {planned.study.seeds} seeds"


def _choose_rates(planned: Plan, store: Store, asked: Request) -> Search:
    """Run the search for learning rates, if the study asks for one, until it is settled.

    A shard of it is settled only once the other shards have done theirs; until then some trials stay open.
    """
    attempted: set[str] = set()
    found = search.settle(planned, store)
    while found.open:
        own = _own(list(found.open.values()), asked)
        if not own:
            return found
        _train(f"{planned.name}: learning rates", own, found.labels, store, asked)
        attempted |= {trial.id for trial in own}
        found = search.settle(planned, store, attempted)
    if found.plan.search:
        print(_rate_lines(found.plan), end="")
    return found


def _own(trials: list[Trial], asked: Request) -> list[Trial]:
    return trials if asked.share is None else asked.share.select(trials)


def _say_what_waits(found: Search, asked: Request) -> None:
    print(
        f"{len(found.open)} trials that choose the learning rates belong to other shards than {asked.shard}; "
        "run those, then the same again"
    )


def _rate_lines(planned: Plan) -> str:
    """A line per search; the cases that test the same trained models share one."""
    lines: dict[str, str] = {}
    for arm in planned.search["arms"] if planned.search else ():
        trials = [trial for point in arm["points"] for trial in point["trials"]]
        edge = f", still at the {arm['at_edge']} edge" if arm["at_edge"] else ""
        text = f"{arm['name']}: {arm['chosen']:g} of {len(arm['points'])}{edge}"
        lines.setdefault(" ".join(trials), f"  {text}\n")
    return "".join(["Learning rates, chosen on validation:\n", *lines.values()])


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


def _difference(before: PlannedArm, after: PlannedArm, wanted: study.Study) -> str:
    """What one arm has that the other has not; what was solved for to match them comes last."""
    changed = plan.differences(before.template, after.template)
    if before.metric != after.metric:
        changed["metric"] = after.metric
    solved = changed.pop("skeleton.expansion_ratio", None) if wanted.match != "none" else None
    fields = [f"{field}={value}" for field, value in changed.items()]
    channels = _mixer_channels(before, after)
    width = [f"and, to match, expansion_ratio={solved:.4g}{channels}"] if solved is not None else []
    return ", ".join([*fields, *width]) or "nothing: these are the same trials"


def _mixer_channels(before: PlannedArm | None, after: PlannedArm) -> str:
    """What is to be added where the mixers of two arms differ in width; None for the arm matched to."""
    matchings = [arm.matching or {} if arm else {} for arm in (before, after)]
    widths: list[dict[str, list[int]]] = [each.get("mixer_channels", {}) for each in matchings]
    target = next((each["target"] for each in widths if each), [])
    old, new = (each.get("achieved", target) for each in widths)
    if old == new:
        return ""
    has = "its mixer has" if len(new) == 1 else "its mixers have"
    return f"; {has} {', '.join(map(str, new))} channels instead of {', '.join(map(str, old))}"


def _matching_lines(planned: Plan) -> str:
    lines = []
    matched: dict[str, list[PlannedArm]] = {}  # cases that read other numbers off one model share its trial
    for arm in planned.arms:
        if arm.matching:
            matched.setdefault(arm.template.id, []).append(arm)
    for arm, *others in matched.values():
        assert arm.matching is not None
        ratio = arm.template.skeleton.options["expansion_ratio"]
        lines.append(
            f"  {arm.arm if others else arm.name}: {arm.matching['achieved']:,} {arm.matching['what']}, "
            f"{arm.matching['mismatch']:+.2%} of {planned.study.baseline} "
            f"(expansion_ratio {ratio:g}{_mixer_channels(None, arm)})\n"
        )
    return "".join(["Matched by the block's hidden width:\n", *lines]) if lines else ""


def _notes(planned: Plan, wanted: study.Study, asked: Request) -> str:
    """What may not be meant as it was asked for, a line each."""
    twice = "".join(f"note: {sentence}\n" for sentence in plan.gated_twice(planned))
    return _arm_lines(wanted, asked) + twice + _warm_up_lines(planned) + _no_search_line(wanted, asked)


def _arm_lines(wanted: study.Study, asked: Request) -> str:
    twice = [name for name, times in Counter(asked.mixer).items() if times > 1]
    notes = [f"note: --mixer names {', '.join(twice)} more than once: it is one arm\n"] if twice else []
    if not wanted.all_comparisons():
        notes.append(
            f"note: nothing will be compared: the baseline, {wanted.baseline}, is the only arm (--mixer "
            "names others, --baseline another)\n"
        )
    return "".join(notes)


def _no_search_line(wanted: study.Study, asked: Request) -> str:
    searched = study.load(study.find(asked.study)).lr_grid and not wanted.lr_grid
    rate = f"{wanted.train.lr:g}"
    return f"note: the learning rate is {rate}, as given: none is searched for\n" if searched else ""


def _warm_up_lines(planned: Plan) -> str:
    recipes = dict.fromkeys(arm.template.train for arm in planned.arms)
    return "".join(
        f"note: a warm-up of {recipe.warmup_epochs:g} epochs does not end within {recipe.epochs}: the "
        f"learning rate stays below its {recipe.lr:g} (--train.warmup-epochs)\n"
        for recipe in recipes
        if recipe.warmup_epochs >= recipe.epochs
    )


def _write_report(planned: Plan, store: Store, folder: Path, share: Shard | None = None) -> tuple[int, bool]:
    """Tables, figures and report; print the verdict and name what is missing.

    Returns:
        The exit code, and whether any comparison is undecided.
    """
    from analysis.report import write_study
    from analysis.terminal_table import terminal_width

    report = write_study(folder, store.trials, outdated.find(planned, store).sentences())
    if not report.paths:
        raise InputError(" ".join(report.verdict_lines))
    print(report.terminal_table)
    for line in report.verdict_lines:
        print(f"\n{textwrap.fill(line, terminal_width())}")
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
    return 1 if unfinished else 0, report.undecided
