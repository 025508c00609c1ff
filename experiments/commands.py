"""What each verb of the command line does. Torch, pandas and matplotlib are imported only where needed."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import executors, launch, plan, ranks, request, search, status, study
from experiments.launch import Shard
from experiments.monitor import Monitor
from experiments.plan import Plan, PlannedArm
from experiments.request import Request
from experiments.search import Search
from experiments.store import Store
from experiments.trial import Trial
from mixers.registry import InputError, suggest

if TYPE_CHECKING:
    from analysis.paper.long_sequences import Stage

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
    if verb == "look":
        return _look(rest)
    if verb == "bench":
        return _bench(rest)
    if verb == "long":
        return _long(rest)
    if verb == "evaluate":
        return _evaluate(rest)
    if verb == "demo":
        return _demo(rest)
    if verb == "report" and "--paper" in rest:
        return _paper([argument for argument in rest if argument != "--paper"])
    if ranks.launched():
        return _together(verb, rest, command)
    return _study_verb(verb, rest, command)


def _together(verb: str, rest: Sequence[str], command: str) -> int:
    """The same under torchrun: rank 0 does it, the others help where trials are run."""
    if verb != "run":
        return _study_verb(verb, rest, command) if ranks.is_first() else 0
    from experiments.executors import torchrun

    device = request.parse(rest, verb).device
    if not ranks.is_first():
        torchrun.follow(device)
        return 0
    with torchrun.leading(device):
        return _study_verb(verb, rest, command)


def _study_verb(verb: str, rest: Sequence[str], command: str) -> int:
    asked = request.parse(rest, verb)
    name, wanted = request.requested_study(asked)
    return {"run": _run, "plan": _plan, "status": _status, "report": _report}[verb](
        asked, name, wanted, command
    )


def _run(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    _check(asked)
    folder = asked.runs / "studies" / name
    planned = plan.make(name, wanted, folder / "plan.json")
    store = Store(asked.runs)
    shards = None if asked.share is None else asked.share.count
    command = _of_all_shards(command)
    plan.write(planned, folder / "plan.json", command, shards)
    print(_matching_lines(planned) + _warm_up_lines(planned), end="")
    chosen = _choose_rates(planned, store, asked)
    if chosen.open:
        _say_what_waits(chosen, asked)
        return 0
    planned = chosen.plan
    plan.write(planned, folder / "plan.json", command, shards)
    _train(f"{name}: {_size(planned)}", planned.trials(), planned.labels(), store, asked)
    return _write_report(planned, store, folder, asked.share)


def _of_all_shards(command: str) -> str:
    """The command line without its shard: it runs whatever is missing."""
    words = shlex.split(command)
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before != "--shard" and word.partition("=")[0] != "--shard"
    ]
    return shlex.join(kept)


def _check(asked: Request) -> None:
    """Refuse what cannot run before anything is planned.

    Raises:
        InputError: a placement, a shard or a backend that does not exist.
    """
    _ = asked.share
    if asked.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs tensorboard, which is not installed: uv sync --extra tensorboard"
        )
    _executor(asked).check(asked.runtime, asked.placement)


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
    """Run those of the trials that are not finished and in this shard, and say so."""
    trials = _own(trials, asked)
    for note in launch.set_unusable_aside(trials, store):
        print(f"note: {note}")
    to_do = launch.missing(trials, store)
    where = f" of shard {asked.shard}" if asked.shard else ""
    print(f"{what}, {len(to_do)} of {len(trials)} trials{where} to run", flush=True)
    if not to_do:
        return
    monitor = Monitor({trial.id: labels[trial.id] for trial in trials}, store)
    try:
        _executor(asked).run(trials, store, asked.runtime, asked.placement, monitor)
    finally:
        monitor.close()


def _plan(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    store = Store(asked.runs)
    path = store.studies / name / "plan.json"
    planned = plan.make(name, wanted, path)
    if not path.exists():  # the run, and whoever asks for the plan again, need no torch to read it
        shards = None if asked.share is None else asked.share.count
        plan.write(planned, path, _of_all_shards(command.replace(" plan", "", 1)), shards)
    print(f"{name}: {wanted.question}")
    print(f"  task {wanted.task}, skeleton {wanted.skeleton}, {planned.details['budget']}")
    print(f"  seeds 0..{wanted.seeds - 1}, matched in {wanted.match}, margin {wanted.margin:g}")
    first, *others = wanted.all_cases()
    arms = [arm for arm in planned.arms if arm.case == first.name]
    for arm in arms:
        print(f"  {arm.name}: {arm.template.mixer_text}")
    print("What differs between the arms that are compared:")
    for name, baseline in wanted.all_comparisons():
        before, after = (planned.arm(plan.planned_name(each, first.name)) for each in (baseline, name))
        print(f"  {before.name} -> {after.name}: {_difference(before, after, wanted)}")
    for case in others:
        after = planned.arm(plan.planned_name(wanted.baseline, case.name))
        before = planned.arm(plan.planned_name(wanted.baseline, first.name))
        print(f"  {before.name} -> {after.name}: {_difference(before, after, wanted)}")
    print(_matching_lines(planned) + _warm_up_lines(planned), end="")
    found = search.settle(planned, store)
    if found.open:
        rates = ", ".join(f"{rate:g}" for rate in sorted(wanted.lr_grid))
        print(
            f"Learning rates are chosen first, on validation, from {rates} (more where the best lies at an "
            f"edge): {len(found.open)} trials"
        )
    elif found.plan.search:
        print(_rate_lines(found.plan), end="")
    trials = found.plan.trials()
    done = sum(launch.finished(store.folder(trial.id)) for trial in trials)
    cost = f"; {wanted.cost}" if wanted.cost else ""
    print(f"{len(trials)} trials, {done} finished, {len(trials) - done} to run{cost}")
    return 0


def _difference(before: PlannedArm, after: PlannedArm, wanted: study.Study) -> str:
    """What one arm has that the other has not; what was solved for to match them comes last."""
    changed = plan.differences(before.template, after.template)
    if before.metric != after.metric:
        changed["metric"] = after.metric
    solved = changed.pop("skeleton.expansion_ratio", None) if wanted.match != "none" else None
    fields = [f"{field}={value}" for field, value in changed.items()]
    width = [f"and, to match, expansion_ratio={solved:.4g}"] if solved is not None else []
    return ", ".join([*fields, *width]) or "nothing"


def _report(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    folder = asked.runs / "studies" / name
    if not (folder / "plan.json").exists():
        raise InputError(f"{folder} holds no study: run it first, without the word report")
    store = Store(asked.runs)
    planned = search.settle(plan.make(name, wanted, folder / "plan.json"), store).plan
    return _write_report(planned, store, folder, asked.share)


def _status(asked: Request, name: str, wanted: study.Study, command: str) -> int:
    folder = asked.runs / "studies" / name
    if not (folder / "plan.json").exists():
        raise InputError(f"{folder} holds no study: run it first, without the word status")
    store = Store(asked.runs)
    found = search.settle(plan.make(name, wanted, folder / "plan.json"), store)
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


def _paper(arguments: Sequence[str]) -> int:
    from analysis.paper import write_paper

    asked = request.read(request.PaperRequest(), arguments, "run_ablation.py report --paper")
    Store(asked.runs)  # or a sentence
    report = write_paper(asked.runs / "paper", asked.runs)
    for note in report.notes:
        print(f"note: {note}")
    beside = (
        f"beside {len(report.studies)} studies of ours" if report.studies else "no study of ours has results"
    )
    print(f"{report.figures} figures and {report.tables} tables, {beside}\npage     {report.index}")
    return 0


def _long(arguments: Sequence[str]) -> int:
    asked = request.read(request.LongRequest(), arguments, "run_ablation.py long")
    asked.check()
    patches, images = asked.patches, asked.images

    from analysis.paper import long_sequences

    chosen = long_sequences.own_stages(asked.dims, patches)
    if asked.backbone or not asked.dims:
        chosen = [*_published_stages(asked.backbone), *chosen]
    records = long_sequences.analysis(
        chosen, images or long_sequences.RESOLUTIONS, asked.mlp_ratio, asked.causal
    )
    print("\n".join(long_sequences.lines(records, asked.mlp_ratio, asked.causal)))
    return 0


def _published_stages(names: Sequence[str]) -> list[Stage]:
    """The stages of the named backbones, of all if none is named."""
    from analysis.paper import long_sequences

    stages: dict[str, list[Stage]] = {}
    for stage in long_sequences.stages():
        stages.setdefault(stage.backbone.lower().replace("_", "-"), []).append(stage)
    wanted = [name.lower().replace("_", "-") for name in names] or list(stages)
    for name in wanted:
        if name not in stages:
            raise InputError(
                f"--backbone {name} is not published here{suggest(name, stages)} (known: "
                f"{', '.join(stages)}); describe another one by --dims and --patch"
            )
    return [stage for name in dict.fromkeys(wanted) for stage in stages[name]]


def _look(arguments: Sequence[str]) -> int:
    asked = request.read(request.LookRequest(), arguments, "run_ablation.py look")
    if not 1 <= asked.side <= 64:
        raise InputError(f"--side must be from 1 to 64, got {asked.side}")
    Store(asked.runs)  # or a sentence

    from analysis import detections as detections_figure
    from analysis.look import write
    from experiments.detections import sights
    from experiments.look import look

    cells = look(asked.mixer, asked.runs, asked.study, asked.side)
    drawn = write(asked.runs / "look", [dataclasses.asdict(cell) for cell in cells])
    seen = [dataclasses.asdict(sight) for sight in sights(asked.runs, asked.study)]
    drawn += detections_figure.write(asked.runs / "look", seen)
    if not any(cell.figure == "receptive_fields" for cell in cells):
        print(f"note: no trained image model with weights in {asked.runs}; run_ablation.py trains some")
    for path in drawn:
        print(f"figure   {path}")
    return 0


def _demo(arguments: Sequence[str]) -> int:
    asked = request.read(request.DemoRequest(), arguments, "run_ablation.py demo")
    if not 1024 <= asked.port < 65536:
        raise InputError(f"--port must be from 1024 to 65535, got {asked.port}")

    from experiments import demo

    loaded = demo.load(asked.runs, asked.study, asked.weights)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo needs Gradio: uv sync --extra demo")
    from experiments import demo_page

    print(f"{', '.join(loaded.choices)}\nhttp://127.0.0.1:{asked.port} until Ctrl-C", flush=True)
    demo_page.serve(loaded, asked.port)
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    asked = request.parse_evaluate(arguments)

    from experiments.evaluate_weights import evaluate_weights

    found = evaluate_weights(asked)
    print(f"{found.model}\n{found.task}")
    print(f"{found.examples:,} images answered, {found.unreadable:,} passed over as unreadable")
    for name, metric in (("top-1", "accuracy"), ("top-5", "top_5")):
        print(f"{name} {found.metrics[metric]:6.2f} %")
    print(_published_top1(asked.skeleton, asked.mixer))
    return 0


def _published_top1(skeleton: str, mixer: str) -> str:
    """What the paper has for this model."""
    from analysis import published

    name = skeleton.partition("(")[0].replace("-", "_")
    rows = [row for row in published.load("mambaout_released_models").rows if row.text("model") == name]
    if not rows or mixer != "conv":
        return "nothing is published for this model"
    return (
        f"published: top-1 {rows[0].text('top1')} % on ImageNet-1k's 50,000 validation images at 224 x 224 "
        f"({rows[0].origin})"
    )


def _bench(arguments: Sequence[str]) -> int:
    asked = request.read(request.BenchRequest(), arguments, "run_ablation.py bench")
    asked.check()
    Store(asked.runs)  # or a sentence, before anything is measured

    from analysis.bench import crossovers, write
    from experiments.bench import bench, measure_machine
    from mixers import MIXERS

    mixers = asked.mixer or [name for name in MIXERS if 1 in MIXERS.load(name).grid_ranks]
    machine = measure_machine(asked.device, asked.dtype, asked.threads)
    points = []
    for point in bench(mixers, asked.dim, asked.length, asked.batch, asked.seconds, machine):
        points.append(dataclasses.asdict(point))
        took = f"skipped: {point.skipped}" if point.median_ms is None else f"{point.median_ms:9.3f} ms"
        print(f"{point.mixer:<28} {point.dim:>5} x {point.length:<6,} {point.what:<18} {took}", flush=True)
    for path in write(asked.runs / "bench", points, dataclasses.asdict(machine)):
        print(f"written  {path}")
    for sentence in crossovers(points):
        print(sentence)
    return 0


def _write_report(planned: Plan, store: Store, folder: Path, share: Shard | None = None) -> int:
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
        if name in report.paths:  # there is no figure before there are results
            print(f"{label:<8} {report.paths[name]}")
    statuses = status.examine(planned.labels(), planned.arms_by_trial(), store)
    if share is not None:
        print("\n".join(status.shard_lines(statuses, share)))
        statuses = [each for each in statuses if share.of(each.trial_id) == share]
    unfinished = [each for each in statuses if each.state != "finished"]
    for each in unfinished[: status.MOST_LINES]:
        log = store.folder(each.trial_id).log
        print(f"  {each.label} {f'failed: {each.error}; log {log}' if each.error else 'not run'}")
    if len(unfinished) > status.MOST_LINES:
        print(f"  and {len(unfinished) - status.MOST_LINES} more; run_ablation.py status counts them by arm")
    return 1 if unfinished else 0


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
            f"{arm.matching['mismatch']:+.2%} of {planned.study.baseline} (expansion_ratio {ratio:g})\n"
        )
    return "".join(["Matched by the block's hidden width:\n", *lines]) if lines else ""


def _warm_up_lines(planned: Plan) -> str:
    recipes = {arm.template.train for arm in planned.arms}
    return "".join(
        f"note: a warm-up of {recipe.warmup_epochs:g} epochs does not end within {recipe.epochs}: the "
        f"learning rate stays below its {recipe.lr:g} (--train.warmup-epochs)\n"
        for recipe in recipes
        if recipe.warmup_epochs >= recipe.epochs
    )


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
