"""A study whose arms are resolved: its trials, what `plan.json` says of it, and the key of its models.

Free of torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments import pretrained
from experiments.code_version import source_digest
from experiments.history import History
from experiments.launch import Shard
from experiments.skeletons import SKELETONS
from experiments.study import Option, Study
from experiments.tasks import TASKS
from experiments.trial import SCHEMA_VERSION, Trial, digest
from mixers import GATED, MIXERS
from mixers.registry import Component, Registry, is_own

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
        """The arm with its case, unique within the study."""
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
        key: that it is stored under, of the files as they were when it was made: one may be edited since.
        arms: case by case.
        details: what the report says of metric and naive baselines, as stored.
        search: how the learning rates were chosen, as stored; None where there was nothing to choose,
            or where that is not settled yet.
        fingerprints: of the data with seed 0, by task; of a stored plan, which loads none, there are none.
    """

    name: str
    study: Study
    key: str
    arms: tuple[PlannedArm, ...]
    details: dict[str, Any]
    search: dict[str, Any] | None = None
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @cached_property
    def _by_arm(self) -> list[list[Trial]]:
        """The trials of each arm, by seed: a thousand of them take a while to hash."""
        return [[arm.trial(seed) for seed in range(self.study.seeds)] for arm in self.arms]

    def trials(self) -> list[Trial]:
        """All trials, each once even if two arms share it; seed by seed, so that pairs are complete early."""
        trials = (own[seed] for seed in range(self.study.seeds) for own in self._by_arm)
        return list({trial.id: trial for trial in trials}.values())

    def labels(self) -> dict[str, str]:
        """What to call each trial, by its id."""
        return {trial: f"{arm} seed {seed}" for trial, (arm, seed) in self._first_arms().items()}

    def arms_by_trial(self) -> dict[str, str]:
        """The first arm that each trial stands behind, by the trial's id."""
        return {trial: arm for trial, (arm, _) in self._first_arms().items()}

    def _first_arms(self) -> dict[str, tuple[str, int]]:
        """Arm and seed of each trial, seed by seed in the order of the arms; of several arms the first."""
        found: dict[str, tuple[str, int]] = {}
        for seed in range(self.study.seeds):
            for arm, own in zip(self.arms, self._by_arm, strict=True):
                found.setdefault(own[seed].id, (arm.name, seed))
        return found

    def arm(self, name: str) -> PlannedArm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self, origin: Origin) -> dict[str, Any]:
        """The plan as it is stored in `plan.json`."""
        study = self.study
        comparisons, families = self.comparisons()
        return {
            "schema_version": SCHEMA_VERSION,
            "key": self.key,
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
                {"entry": planned_name(row.arm, row.case or "")}
                | {key: value for key, value in vars(row).items() if key not in ("arm", "case")}
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
                "skeleton": str(changed_component(SKELETONS, self.study.skeleton, case.skeleton)),
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


def key_of(name: str, study: Study) -> str:
    """Hash of the source files and of all that decides the models of a study."""
    models = {
        field: value for field, value in dataclasses.asdict(study).items() if field not in BESIDE_THE_MODELS
    }
    return digest([name, models, source_digest(), _own_sources(study), _weight_files(study)])


def _own_sources(study: Study) -> list[str]:
    """The user's own mixers and tasks with the hashes of their files, which `source_digest` lacks."""
    texts = [arm.mixer for arm in study.all_arms()]
    texts += [text for case in study.all_cases() for text in case.mixers.values()]
    mixers = [component for text in texts for component in MIXERS.parse_pattern(text)]
    tasks = [changed_component(TASKS, study.task, case.task) for case in study.all_cases()]
    named = [(MIXERS, each) for each in mixers] + [(TASKS, each) for each in tasks]
    return [registry.with_source(each.name) for registry, each in named if is_own(each.name)]


def _weight_files(study: Study) -> list[str]:
    """The files of weights that the study starts from, with their hashes; those of timm do not change."""
    changes = [arm.train for arm in study.all_arms()] + [case.train for case in study.all_cases()]
    named = {study.train.weights, *(change.get("weights") for change in changes)} - {None, "timm"}
    return [pretrained.with_source(weights, "") for weights in sorted(map(str, named))]


def changed_component(registry: Registry, original: str, change: str | dict[str, Option]) -> Component:
    """Another component in the place of the original, or the original with some options replaced."""
    if isinstance(change, str):
        return registry.parse(change)
    return registry.parse(original).with_options(change)
