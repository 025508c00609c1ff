"""What each verb of the command line does. Torch, pandas and matplotlib are imported only where needed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments import launch, plan, request, study
from experiments.monitor import Monitor
from experiments.plan import Plan
from experiments.request import Request
from experiments.store import Store
from mixers.registry import InputError

WIDTH = 100  # characters of the terminal table
SHOWN = {"report": "report.html", "table": "table.md", "figure": "figures/differences.png"}
"""What is pointed at when a study is done; the rest lies beside it."""


def run(arguments: Sequence[str], command: str) -> int:
    """Carry out one command line.

    Args:
        arguments: what follows the program's name.
        command: how to say it again, for the report.

    Returns:
        The exit code.

    Raises:
        InputError: something in it cannot be used.
    """
    verb, rest = request.split_verb(arguments)
    if verb == "list":
        return _list(rest)
    if verb == "doctor":
        return _doctor(rest)
    asked = request.parse(rest, verb)
    name, wanted = request.requested_study(asked)
    return {"run": _run, "plan": _plan, "report": _report}[verb](asked, name, wanted, command)


def _run(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    runtime = asked.runtime
    launch.check_backend(runtime)
    planned = plan.make(name, wanted, asked.runs / "studies" / name / "plan.json")
    store = Store(asked.runs)
    trials = planned.trials()
    for note in launch.set_unusable_aside(trials, store):
        print(f"note: {note}")
    folder = store.studies / name
    plan.write(planned, folder / "plan.json", command)
    to_do = launch.missing(trials, store)
    print(_matching_lines(planned), end="")
    size = f"{len(planned.arms)} arms x {wanted.seeds} seeds"
    print(f"{name}: {size}, {len(to_do)} of {len(trials)} trials to run")
    if to_do:
        monitor = Monitor(planned, store, launch.processes(asked.workers, runtime.threads, len(to_do)))
        try:
            launch.run_local(trials, store, runtime, asked.workers, monitor)
        finally:
            monitor.close()
    return _write_report(planned, store, folder)


def _plan(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    planned = plan.make(name, wanted, asked.runs / "studies" / name / "plan.json")
    print(f"{name}: {wanted.question}")
    print(f"  task {wanted.task}, skeleton {wanted.skeleton}, {planned.details['budget']}")
    print(f"  seeds 0..{wanted.seeds - 1}, matched in {wanted.match}, margin {wanted.margin:g}")
    for arm in planned.arms:
        print(f"  {arm.name}: {arm.template.mixer_text}")
    print("What differs from one arm to the next:")
    for before, after in zip(planned.arms, planned.arms[1:], strict=False):
        changed = plan.differences(before.template, after.template)
        solved = changed.pop("skeleton.expansion_ratio", None) if wanted.match != "none" else None
        fields = [f"{field}={value}" for field, value in changed.items()]
        width = [f"and, to match, expansion_ratio={solved:.4g}"] if solved is not None else []
        print(f"  {before.name} -> {after.name}: {', '.join([*fields, *width])}")
    print(_matching_lines(planned), end="")
    trials = planned.trials()
    done = (
        sum(launch.finished(Store(asked.runs).folder(trial.id)) for trial in trials)
        if asked.runs.exists()
        else 0
    )
    print(f"{len(trials)} trials, {done} finished, {len(trials) - done} to run; {wanted.cost}")
    return 0


def _report(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    folder = asked.runs / "studies" / name
    if not (folder / "plan.json").exists():
        raise InputError(f"{folder} holds no study: run it first, without the word report")
    planned = plan.make(name, wanted, folder / "plan.json")
    return _write_report(planned, Store(asked.runs), folder)


def _write_report(planned: Plan, store: Store, folder: Path) -> int:
    """Tables, figures and report; print the verdict and name what is missing."""
    from analysis.report import write_study

    report = write_study(folder, store.trials)
    if not report.paths:
        raise InputError(" ".join(report.verdict_lines))
    print(report.terminal_table)
    for line in report.verdict_lines:
        print(f"\n{textwrap.fill(line, WIDTH)}")
    print()
    for label, name in SHOWN.items():
        print(f"{label:<8} {report.paths[name]}")
    return 1 if _name_failures(planned, store) else 0


def _name_failures(planned: Plan, store: Store) -> bool:
    """Print the trials without a result, with where to look; whether there are any."""
    unfinished = [
        (arm.name, seed, store.folder(arm.trial(seed).id))
        for seed in range(planned.study.seeds)
        for arm in planned.arms
        if not launch.finished(store.folder(arm.trial(seed).id))
    ]
    for name, seed, folder in unfinished:
        result = folder.result()
        what = f"failed: {result['error']}; log {folder.log}" if result else "not run"
        print(f"  {name} seed {seed} {what}")
    return bool(unfinished)


def _matching_lines(planned: Plan) -> str:
    lines = []
    for arm in planned.arms:
        if arm.matching:
            ratio = arm.template.skeleton.options["expansion_ratio"]
            lines.append(
                f"  {arm.name}: {arm.matching['achieved']:,} {arm.matching['what']}, "
                f"{arm.matching['mismatch']:+.2%} of {planned.study.baseline} (expansion_ratio {ratio:g})\n"
            )
    return "".join(["Matched by the block's hidden width:\n", *lines]) if lines else ""


def _list(arguments: Sequence[str]) -> int:
    from experiments.skeletons import SKELETONS, option_defaults
    from experiments.tasks import TASKS
    from mixers import MIXERS

    if arguments:
        raise InputError(f"list takes no arguments, got {' '.join(arguments)}")
    for registry in (MIXERS, SKELETONS, TASKS):
        print(f"{registry.kind}s, with their options")
        for component in map(registry.parse, registry):
            defaults = option_defaults(component) if registry is SKELETONS else None
            text = str(registry.resolve(component, defaults))
            print(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 6))
    print("studies")
    for name in study.names():
        print(f"  {name}: {study.load(study.find(name)).question}")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    from experiments.doctor import examine

    if arguments:
        raise InputError(f"doctor takes no arguments, got {' '.join(arguments)}")
    print(examine())
    return 0
