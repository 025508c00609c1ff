"""From a study to its trials, resolved and matched, and back from the stored plan. Free of torch.

A plan is stored with a key over the source files and what of the study decides its models. Asked for again
under the same key it is read, not made: a finished study is reported without importing torch, and so is one
whose words, seeds or comparisons changed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import pretrained
from experiments.code_version import source_digest
from experiments.history import History
from experiments.launch import Shard
from experiments.skeletons import SKELETONS
from experiments.store import write_json
from experiments.study import Arm, Case, Option, Study, changed_recipe
from experiments.tasks import TASKS
from experiments.trial import SCHEMA_VERSION, Recipe, Trial, canonical_json, digest
from mixers import GATED, MIXERS
from mixers.registry import Component, InputError, Registry, is_own

if TYPE_CHECKING:  # it imports torch
    from experiments.tasks.base import Metric

DETAILS = ("metric", "baselines")
BESIDE_THE_MODELS = {
    *("question", "varied", "fixed", "cost", "answer", "published", "axis", "log_axis"),
    *("seeds", "looks", "comparisons"),
}
"""Fields of a study that its arms do not depend on."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm in one case, with every option filled in.

    Attributes:
        arm: as named in the study.
        case: where; "" in a study without cases.
        template: its trial with seed 0.
        matching: how near its size came to the baseline's, as stored, and how wide the mixers of both are
            where that differs; None for the baseline.
        budget: what it is trained on, in words.
        metric: what is read of its results in place of the study's metric; None for that.
    """

    arm: str
    case: str
    template: Trial
    matching: dict[str, Any] | None
    budget: str
    metric: str | None = None

    @property
    def name(self) -> str:
        """Unique within the study."""
        return planned_name(self.arm, self.case)

    def trial(self, seed: int) -> Trial:
        """The arm's trial with this seed."""
        return dataclasses.replace(self.template, seed=seed)


def planned_name(arm: str, case: str) -> str:
    """What an arm is called in a case."""
    return f"{arm} @ {case}" if case else arm


@dataclass(frozen=True)
class Origin:
    """Where a stored plan comes from.

    Attributes:
        command: which runs what is missing.
        file: of the study; "" for one that is checked in.
        history: what was settled late.
        shards: in how many the trials are divided; the report then says which of them a missing one is in.
    """

    command: str
    file: str = ""
    history: History = dataclasses.field(default_factory=History)
    shards: int | None = None


@dataclass(frozen=True)
class Plan:
    """A study whose arms are resolved.

    Attributes:
        name: of the study.
        study: as asked for.
        arms: case by case.
        details: what the report says of metric and naive baselines, as stored.
        search: how the learning rates were chosen, as stored; None where there was nothing to choose,
            or where that is not settled yet.
        fingerprints: of the data with seed 0, by task; of a stored plan, which loads none, there are none.
    """

    name: str
    study: Study
    arms: tuple[PlannedArm, ...]
    details: dict[str, Any]
    search: dict[str, Any] | None = None
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @cached_property
    def _by_arm(self) -> list[list[Trial]]:
        """The trials of each arm, by seed: a thousand of them take a while to hash."""
        return [[arm.trial(seed) for seed in range(self.study.seeds)] for arm in self.arms]

    def trials(self) -> list[Trial]:
        """Seed by seed, so that pairs are complete early; a trial that stands behind two arms comes once."""
        trials = (own[seed] for seed in range(self.study.seeds) for own in self._by_arm)
        return list({trial.id: trial for trial in trials}.values())

    def labels(self) -> dict[str, str]:
        """What to call each trial, by its id."""
        return {
            own[seed].id: f"{arm.name} seed {seed}"
            for seed in range(self.study.seeds)
            for arm, own in zip(reversed(self.arms), reversed(self._by_arm), strict=True)
        }

    def arms_by_trial(self) -> dict[str, str]:
        """The first arm that each trial stands behind, by the trial's id."""
        return {
            own[seed].id: arm.name
            for seed in range(self.study.seeds)
            for arm, own in zip(reversed(self.arms), reversed(self._by_arm), strict=True)
        }

    def arm(self, name: str) -> PlannedArm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self, origin: Origin) -> dict[str, Any]:
        """As stored in `plan.json`."""
        study = self.study
        comparisons, families = self.comparisons()
        return {
            "schema_version": SCHEMA_VERSION,
            "key": _key(self.name, study),
            "study": {
                "name": self.name,
                **{
                    field: getattr(study, field)
                    for field in ("question", "varied", "fixed", "cost", "answer")
                },
            },
            **self.details,
            "margin": study.margin,
            **dataclasses.asdict(origin.history),
            "alpha": study.alpha,
            "planned_looks": list(study.looks),
            "match": study.match,
            "task": study.task,
            "skeleton": study.skeleton,
            "command": origin.command,
            "file": origin.file,
            "cases": self._cases(),
            "comparisons": comparisons,
            "families": families,
            "arms": [
                self._arm(arm, own, origin.shards) for arm, own in zip(self.arms, self._by_arm, strict=True)
            ],
            "search": self.search,
            "published": [
                {"entry": planned_name(row.arm, row.case or ""), **_without(row, "arm", "case")}
                for row in study.published
            ],
        }

    def _arm(self, arm: PlannedArm, trials: list[Trial], shards: int | None) -> dict[str, Any]:
        baseline = self.arm(planned_name(self.study.baseline, arm.case))
        return {
            "name": arm.name,
            "arm": arm.arm,
            "case": arm.case or None,
            "metric": arm.metric,
            "budget": arm.budget,
            "mixer": arm.template.mixer_text,
            "switches": differences(baseline.template, arm.template),
            "matching": arm.matching,
            "template": arm.template.to_dict(),
            "trials": [
                {"seed": trial.seed, "trial_id": trial.id}
                | ({} if shards is None else {"shard": str(Shard(1, shards).of(trial.id))})
                for trial in trials
            ],
        }

    def _cases(self) -> dict[str, Any] | None:
        if not self.study.cases:
            return None
        entries = [
            {
                "name": case.name,
                "at": case.at,
                "series": case.series,
                "about": str(self.arm(planned_name(self.study.baseline, case.name)).template.task),
                "skeleton": str(_changed(SKELETONS, self.study.skeleton, case.skeleton)),
            }
            for case in self.study.cases
        ]
        return {"axis": self.study.axis, "log": self.study.log_axis, "entries": entries}

    def comparisons(self) -> tuple[list[dict[str, str]], list[list[int]]]:
        """Pairs of arms, and which of them form a family: those of a case, which is a question of its own."""
        pairs: list[dict[str, str]] = []
        families = []
        for case in self.study.all_cases():
            start = len(pairs)
            for arm, baseline in self.study.all_comparisons():
                names = (planned_name(each, case.name) for each in (arm, baseline))
                pairs.append(dict(zip(("arm", "baseline"), names, strict=True)))
            families.append(list(range(start, len(pairs))))
        return pairs, [family for family in families if family]


def _without(row: Any, *fields: str) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(row).items() if name not in fields}


def differences(one: Trial, other: Trial) -> dict[str, Any]:
    """Fields of `other` that differ from `one`, by dotted name; another mixer is a single field."""
    before = _flat(one)
    changed = {
        key: value for key, value in _flat(other).items() if key != "seed" and before.get(key) != value
    }
    names, other_names = ([mixer.name for mixer in trial.mixer] for trial in (one, other))
    if names != other_names:
        changed = {key: value for key, value in changed.items() if not key.startswith("mixer.")}
        return {"mixer": ",".join(other_names), **changed}
    return changed


def _flat(trial: Trial) -> dict[str, Any]:
    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list):
            for position, inner in enumerate(value):
                yield from walk(f"{prefix}.{position}" if len(value) > 1 else prefix, inner)
        else:
            yield prefix.replace(".options.", "."), value

    return dict(walk("", trial.to_dict()))


def _key(name: str, study: Study) -> str:
    models = {
        field: value for field, value in dataclasses.asdict(study).items() if field not in BESIDE_THE_MODELS
    }
    return digest([name, models, source_digest(), _own_sources(study), _weight_files(study)])


def _own_sources(study: Study) -> list[str]:
    """The user's own mixers and tasks with the hashes of their files, which `source_digest` lacks."""
    texts = [arm.mixer for arm in study.all_arms()]
    texts += [text for case in study.all_cases() for text in case.mixers.values()]
    mixers = [component for text in texts for component in MIXERS.parse_pattern(text)]
    tasks = [_changed(TASKS, study.task, case.task) for case in study.all_cases()]
    named = [(MIXERS, each) for each in mixers] + [(TASKS, each) for each in tasks]
    return [registry.with_source(each.name) for registry, each in named if is_own(each.name)]


def _weight_files(study: Study) -> list[str]:
    """The files of weights that the study starts from, with their hashes; those of timm do not change."""
    changes = [arm.train for arm in study.all_arms()] + [case.train for case in study.all_cases()]
    named = {study.train.weights, *(change.get("weights") for change in changes)} - {None, "timm"}
    return [pretrained.with_source(weights, "") for weights in sorted(map(str, named))]


def make(name: str, study: Study, stored: Path) -> Plan:
    """The plan of a study, read from `stored` if that was made for the same study by the same code.

    Raises:
        InputError: something the study asks for does not exist or does not fit; nothing is written.
    """
    return _read(stored, name, study) or _resolve(name, study)


def _read(path: Path, name: str, study: Study) -> Plan | None:
    try:
        stored = json.loads(path.read_bytes())
        if stored["key"] != _key(name, study):
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
        return Plan(name, study, arms, {key: stored[key] for key in DETAILS}, stored["search"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(plan: Plan, path: Path, origin: Origin) -> None:
    """Store the plan, options in the order of their definition: so their text is the same when it is read."""
    write_json(path, plan.to_dict(origin), sort_keys=False)


def load_stored(path: Path) -> dict[str, Any] | None:
    """A stored plan as it is, or None if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
        whole = content["arms"][0]["trials"] and content.keys() >= {"command", "comparisons", "families"}
        return content if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def gated_twice(plan: Plan) -> list[str]:
    """A sentence for every mixer that projects and gates by itself and sits in a block that does so, too."""
    found = {
        (mixer.name, str(skeleton.options["block"]))
        for skeleton, mixers in ((arm.template.skeleton, arm.template.mixer) for arm in plan.arms)
        for mixer in mixers
        if mixer.name in GATED and skeleton.options.get("gate")
    }
    return [
        f"mixer {mixer} projects and gates by itself, and so does the block {block} around it; "
        "block=metaformer leaves both to the mixer"
        for mixer, block in sorted(found)
    ]


def stored_seeds(content: Mapping[str, Any]) -> int:
    """Of a stored plan."""
    return max(len(arm["trials"]) for arm in content["arms"])


def renew(plan: Plan, path: Path, history: History) -> str | None:
    """Let the stored plan of a study that has run say what the study says now; its trials must be the same.

    Args:
        plan: of the study as it is now.
        path: the stored one, whose command stays; one that cannot be read is left for the report to refuse.
        history: as in `Origin`.

    Returns:
        Why it was left as it is, in a sentence; None if it is up to date.
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
        write_json(path, fresh, sort_keys=False)
    return None


def _same(one: Any, other: Any) -> bool:
    return canonical_json(one) == canonical_json(other)


def _resolve(name: str, study: Study) -> Plan:
    planned: list[PlannedArm] = []
    baselines: list[dict[str, Any]] = []
    metrics: dict[str, Metric] = {}
    fingerprints: dict[str, str] = {}
    for case in study.all_cases():
        arms, metrics[case.name], naive = _resolve_case(study, case, fingerprints)
        planned += arms
        baselines += [
            {"case": case.name or None, "name": key, "value": value} for key, value in naive.items()
        ]
    metric, *others = dict.fromkeys(metrics.values())
    if others:
        named = ", ".join(f"{each.name} in {case}" for case, each in metrics.items())
        raise InputError(f"the cases report different numbers: {named}; metric must name one that all have")
    details = {"metric": dataclasses.asdict(metric), "baselines": baselines}
    return Plan(name, study, tuple(planned), details, fingerprints=fingerprints)


def difference_unit(study: Study) -> str:
    """Of the study's margin."""
    from experiments import build

    component = TASKS.parse(study.task)
    return build.choose_metric(build.create_task(component), component.name, study.metric).difference_unit


def _resolve_case(
    study: Study, case: Case, fingerprints: dict[str, str]
) -> tuple[list[PlannedArm], Metric, dict[str, float]]:
    """The arms of a case, the study's metric as its task has it, and what naive predictors reach.

    The fingerprint of the data is added to `fingerprints`.
    """
    from experiments import budget, build

    templates = {arm.name: _template(study, case, arm) for arm in study.all_arms()}
    baseline = templates[study.baseline]
    task = build.create_task(baseline.task)
    data = task.load(0)
    fingerprints[str(baseline.task)] = data.fingerprint
    _check_batches(templates, data.sizes["train"])
    metric = build.choose_metric(task, baseline.task.name, study.metric)
    compared, test = metric, None
    if case.metric is not None:
        compared = build.choose_test_metric(task, data, f"case {case.name}: metric", case.metric, like=metric)
        test = build.extra_test_of(compared, data)
    planned = []
    for arm, trial in templates.items():
        matching = None
        if arm != study.baseline and study.match != "none":
            trial, matched = budget.match(trial, study.match, budget.measure(baseline, study.match))
            matching = matched.to_dict() | budget.mixer_widths(baseline, trial)
        build.check(trial, None if test is None else data.extra_tests[test])
        trained_on = _budget(trial.train, data.sizes["train"])
        planned.append(PlannedArm(arm, case.name, trial, matching, trained_on, case.metric))
    if not build.is_part_of(compared, task.metric):
        return planned, metric, {}
    return planned, metric, data.baselines("test" if test is None else f"test_{test}")


def _check_batches(templates: Mapping[str, Trial], examples: int) -> None:
    """An epoch takes full batches only.

    Raises:
        InputError: it has none.
    """
    for trial in templates.values():
        size = trial.train.batch_size
        if size > examples:
            raise InputError(
                f"--train.batch-size {size:,} is more than the {examples:,} training examples of "
                f"{trial.task.name}"
            )


def _budget(recipe: Recipe, examples: int) -> str:
    epochs = f"{recipe.all_epochs} epoch{'s' if recipe.all_epochs > 1 else ''}"
    return f"{epochs} of {examples:,} examples, batch {recipe.batch_size}"


def _template(study: Study, case: Case, arm: Arm) -> Trial:
    """The trial with seed 0 of an arm in a case; where both change something, the arm has the last word."""
    from experiments import build

    where = f"case {case.name}: " if case.name else ""
    task = _changed(TASKS, study.task, case.task)
    skeleton = _changed(SKELETONS, study.skeleton, case.skeleton)
    recipe = changed_recipe(study.train, case.train, f"{where}train.")
    try:
        return build.resolve(
            MIXERS.parse_pattern(case.mixers.get(arm.name, arm.mixer)),
            build.with_options(skeleton, arm.skeleton),
            build.with_options(task, arm.task),
            changed_recipe(recipe, arm.train, f"arm {arm.name}: train."),
            seed=0,
        )
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def _changed(registry: Registry, original: str, change: str | dict[str, Option]) -> Component:
    if isinstance(change, str):
        return registry.parse(change)
    component = registry.parse(original)
    return dataclasses.replace(component, options={**component.options, **change})
