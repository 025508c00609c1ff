"""From a study to its plan: every option filled in, sizes matched, models built once on nothing.

Free of torch until a study is resolved: what builds models is imported in the functions that do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from analysis.quantities import plural
from experiments.interface import Metric
from experiments.plan import Plan, PlannedArm, changed_component, key_of
from experiments.skeletons import SKELETONS
from experiments.study import Arm, Case, Study, changed_recipe
from experiments.tasks import TASKS
from experiments.trial import Recipe, Trial
from mixers import MIXERS
from mixers.registry import InputError, is_own


def resolve(name: str, study: Study) -> Plan:
    """Resolve every arm in every case.

    Raises:
        InputError: something the study asks for does not exist or does not fit.
    """
    key = key_of(name, study)  # first: of a file that is edited meanwhile the plan is then out of date
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
    return Plan(name, study, key, tuple(planned), details, fingerprints=fingerprints)


def _resolve_case(
    study: Study, case: Case, fingerprints: dict[str, str]
) -> tuple[list[PlannedArm], Metric, dict[str, float]]:
    """The arms of a case, the study's metric as its task has it, and what naive predictors reach.

    The fingerprint of the data is added to `fingerprints`.
    """
    from experiments import budget, build
    from experiments.choose_metric import choose_metric, choose_test_metric, extra_test_of, is_part_of
    from experiments.tasks import contract as task_contract

    templates = {arm.name: _template(study, case, arm) for arm in study.all_arms()}
    baseline = templates[study.baseline]
    task = build.create_task(baseline.task)
    unknown = is_own(baseline.task.name) and str(baseline.task) not in fingerprints
    data = task_contract.check(baseline.task.name, task) if unknown else task.load(task_contract.SEED)
    fingerprints[str(baseline.task)] = data.fingerprint
    _check_batches(templates, data.sizes["train"])
    metric = choose_metric(task, baseline.task.name, study.metric)
    compared, test = metric, None
    if case.metric is not None:
        compared = choose_test_metric(task, data, f"case {case.name}: metric", case.metric, like=metric)
        test = extra_test_of(compared, data)
    planned = []
    for arm, trial in templates.items():
        matching = None
        if arm != study.baseline and study.match != "none":
            trial, matched = budget.match(trial, study.match, budget.size_of(baseline, study.match))
            matching = matched.to_dict() | budget.mixer_widths(baseline, trial)
        build.check(trial, None if test is None else data.extra_tests[test])
        trained_on = _budget(trial.train, data.sizes["train"])
        planned.append(PlannedArm(arm, case.name, trial, matching, trained_on, case.metric))
    if not is_part_of(compared, task.metric):
        return planned, metric, {}
    return planned, metric, data.baselines("test" if test is None else f"test_{test}")


def _template(study: Study, case: Case, arm: Arm) -> Trial:
    """The trial with seed 0 of an arm in a case; where both change something, the arm has the last word."""
    from experiments import build

    where = f"case {case.name}: " if case.name else ""
    task = changed_component(TASKS, study.task, case.task)
    skeleton = changed_component(SKELETONS, study.skeleton, case.skeleton)
    recipe = changed_recipe(study.train, case.train, f"{where}train.")
    try:
        return build.resolve(
            MIXERS.parse_pattern(case.mixers.get(arm.name, arm.mixer)),
            skeleton.with_options(arm.skeleton),
            task.with_options(arm.task),
            changed_recipe(recipe, arm.train, f"arm {arm.name}: train."),
            seed=0,
        )
    except InputError as error:
        raise InputError(f"{where}{error}") from None


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
    return f"{plural(recipe.all_epochs, 'epoch')} of {plural(examples, 'example')}, batch {recipe.batch_size}"


def difference_unit(study: Study) -> str:
    """The unit of a study's margin."""
    from experiments import build
    from experiments.choose_metric import choose_metric

    component = TASKS.parse(study.task)
    return choose_metric(build.create_task(component), component.name, study.metric).difference_unit
