"""What each verb of the command line does. Torch, pandas and matplotlib are imported only where needed."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import command_line, request, study_commands
from experiments.store import Store
from mixers.registry import InputError, suggest

if TYPE_CHECKING:
    from analysis.paper.long_sequences import Stage

IMAGENET_CLASSES = 1_000


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line.

    Args:
        arguments: what follows the program's name.

    Returns:
        The exit code.

    Raises:
        InputError: something in it cannot be used.
    """
    verb, rest = command_line.split_verb(arguments)
    if verb in ("list", "doctor") and not set(command_line.HELP).isdisjoint(rest):
        print(f"usage: run_ablation.py {verb}{' [NAME ...]' if verb == 'list' else ''}\n")
        print(command_line.COMMANDS[verb])
        return 0
    if verb == "report" and "--paper" in rest:
        return _paper([argument for argument in rest if argument != "--paper"])
    if verb in BESIDE_STUDIES:
        return BESIDE_STUDIES[verb](rest)
    try:
        return study_commands.perform(verb, rest)
    except InputError as error:
        raise InputError(f"{error}{command_line.late_verb(arguments)}") from error


def _paper(arguments: Sequence[str]) -> int:
    from analysis.paper import write_paper

    asked = command_line.read(request.PaperRequest(), arguments, "run_ablation.py report --paper")
    runs = Store(asked.runs).root
    report = write_paper(runs / "paper", runs)
    for note in report.notes:
        print(f"note: {note}")
    beside = (
        f"beside {len(report.studies)} studies of ours" if report.studies else "no study of ours has results"
    )
    print(f"{report.figures} figures and {report.tables} tables, {beside}\npage     {report.index}")
    return 0


def _long(arguments: Sequence[str]) -> int:
    asked = command_line.read(request.LongRequest(), arguments, "run_ablation.py long")
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
    asked = command_line.read(request.LookRequest(), arguments, "run_ablation.py look")
    if not 1 <= asked.side <= 64:
        raise InputError(f"--side must be from 1 to 64, got {asked.side}")
    runs = Store(asked.runs).root

    from analysis import detections as detections_figure
    from analysis.look import write
    from experiments.detections import sights
    from experiments.look import look

    cells = look(asked.mixer, runs, asked.study, asked.side)
    drawn = write(runs / "look", [dataclasses.asdict(cell) for cell in cells])
    seen = [dataclasses.asdict(sight) for sight in sights(runs, asked.study)]
    drawn += detections_figure.write(runs / "look", seen)
    if not any(cell.figure == "receptive_fields" for cell in cells):
        print(f"note: no trained image model with weights in {runs}; uv run run_ablation.py trains some")
    for path in drawn:
        print(f"{'figure ' if path.suffix == '.png' else 'caption'}  {path}")
    return 0


def _demo(arguments: Sequence[str]) -> int:
    asked = command_line.read(request.DemoRequest(), arguments, "run_ablation.py demo")
    if not 1024 <= asked.port < 65536:
        raise InputError(f"--port must be from 1024 to 65535, got {asked.port}")

    from experiments import demo

    loaded = demo.load(asked.runs, asked.study, asked.weights)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo needs Gradio: uv sync --extra demo")
    from experiments import demo_page

    blocks = demo_page.serve(loaded, asked.port)
    print(f"{', '.join(loaded.choices)}\nhttp://127.0.0.1:{asked.port} until Ctrl-C", flush=True)
    blocks.block_thread()
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    asked = command_line.parse_evaluate(arguments)

    from experiments.evaluate_weights import evaluate_weights

    found = evaluate_weights(asked)
    print(f"{found.model}\n{found.task}")
    print(f"{found.examples:,} images answered, {found.unreadable:,} passed over as unreadable")
    for name, metric in (("top-1", "accuracy"), ("top-5", "top_5")):
        print(f"{name} {found.metrics[metric]:6.2f} %")
    print(_published_top1(asked, found.classes))
    return 0


def _published_top1(asked: request.EvaluateRequest, classes: int) -> str:
    """What the paper has for this model: its skeleton and mixer, every option as it is by default.

    It was measured on ImageNet-1k, and so is set beside nothing that has another number of classes.
    """
    if classes != IMAGENET_CLASSES:
        return f"nothing is published for this model with {classes:,} classes"

    from analysis import published
    from experiments.skeletons import SKELETONS, option_defaults
    from mixers import MIXERS

    skeleton = SKELETONS.parse(asked.skeleton).with_options(asked.options.get("skeleton", {}))
    bare = SKELETONS.parse(skeleton.name)
    resolved, default = (SKELETONS.resolve(each, option_defaults(each)) for each in (skeleton, bare))
    chosen = {str(MIXERS.resolve(each)) for each in MIXERS.parse_pattern(asked.mixer)}
    name = skeleton.name.replace("-", "_")
    rows = [row for row in published.load("mambaout_released_models").rows if row.text("model") == name]
    if not rows or resolved != default or chosen != {str(MIXERS.resolve(MIXERS.parse("conv")))}:
        return "nothing is published for this model"
    return (
        f"published: top-1 {rows[0].text('top1')} % on ImageNet-1k's 50,000 validation images at 224 x 224 "
        f"({rows[0].origin})"
    )


def _bench(arguments: Sequence[str]) -> int:
    asked = command_line.read(request.BenchRequest(), arguments, "run_ablation.py bench")
    asked.check()
    batches = asked.batches
    runs = Store(asked.runs).root  # it can be written to, or is refused before anything is measured

    from analysis import quantities as q
    from analysis.bench import crossovers, write
    from experiments.bench import FAILED, bench, measure_machine
    from mixers import MIXERS

    mixers = asked.mixer or [name for name in MIXERS if 1 in MIXERS.load(name).grid_ranks]
    mixers, dims = list(dict.fromkeys(mixers)), list(dict.fromkeys(asked.dim))  # named twice, measured once
    machine = measure_machine(asked.device, asked.dtype, asked.threads)
    points = []
    print("mixer, batch x length x channels, pass, median time", flush=True)
    try:
        for point in bench(mixers, dims, batches, asked.seconds, machine):
            points.append(dataclasses.asdict(point))
            size = f"{point.batch:,} x {point.length:,} x {point.dim:,}"
            took = point.skipped or f"{point.median_ms:9.3f} ms"
            print(f"{point.mixer:<28} {size:<20} {point.what:<18} {took}", flush=True)
    finally:  # what was measured before an interruption is written, too
        for path in write(runs / "bench", points, dataclasses.asdict(machine)) if points else ():
            print(f"written  {path}")
    for sentence in crossovers(points):
        print(sentence)
    failed = [
        f"{point['mixer']} at {point['dim']:,} channels and {point['length']:,} tokens ({point['what']})"
        for point in points
        if (point["skipped"] or "").startswith(FAILED)
    ]
    if failed:
        print(
            f"failed: {len(failed):,} of {q.plural(len(points), 'point')}, and bench.md says why: "
            f"{q.first_of(failed, 10)}"
        )
    return 1 if failed else 0


def _list(arguments: Sequence[str]) -> int:
    from analysis.terminal_lines import terminal_width
    from experiments import listing

    width = terminal_width()
    print("\n\n".join(listing.describe(name, width) for name in arguments) or listing.overview(width))
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    from experiments.doctor import examine

    if arguments:
        raise InputError(f"doctor takes no arguments, got {' '.join(arguments)}")
    for line in examine():
        print(line, flush=True)
    return 0


BESIDE_STUDIES = {
    "bench": _bench,
    "demo": _demo,
    "doctor": _doctor,
    "evaluate": _evaluate,
    "list": _list,
    "long": _long,
    "look": _look,
}
"""Commands that no study is planned for."""
