"""What the commands say of a plan: what differs between its arms, how they were matched, what to note."""

from __future__ import annotations

from collections import Counter

from analysis.quantities import plural, size_in_words, with_unit
from experiments import plan, study
from experiments.plan import Plan, PlannedArm
from experiments.request import Request
from experiments.search import Search
from experiments.trial import LEAST_SEEDS


def overview(planned: Plan) -> str:
    """What is asked, of which arms, trained how and judged when."""
    wanted = planned.study
    budgets = dict.fromkeys(arm.budget for arm in planned.arms)
    matched = "not matched in size" if wanted.match == "none" else f"matched on {size_in_words(wanted.match)}"
    unit = planned.details["metric"]["difference_unit"]
    lines = [
        f"{planned.name}: {wanted.question}",
        f"  task {wanted.task}, skeleton {wanted.skeleton}, {'; '.join(budgets)}",
        f"  seeds 0..{wanted.seeds - 1}, {matched}, margin {with_unit(wanted.margin, unit)}",
    ]
    if wanted.looks:
        looks, level = ", ".join(map(str, wanted.looks)), 100 * wanted.alpha
        lines.append(
            f"  judged at {looks} seeds, as long as anything is undecided; each time at {level:.4g} %"
        )
    if wanted.seeds < LEAST_SEEDS:
        count = plural(wanted.seeds, "seed")
        lines.append(f"  note: no verdict with {count}; it takes at least {LEAST_SEEDS}")
    case = wanted.all_cases()[0].name
    lines += [f"  {arm.name}: {arm.template.mixer_text}" for arm in planned.arms if arm.case == case]
    return "".join(f"{line}\n" for line in lines)


def differences(planned: Plan) -> str:
    """What differs between the arms that are compared, and between the first case and the others."""
    wanted = planned.study
    first, *others = wanted.all_cases()
    pairs = [((baseline, first), (arm, first)) for arm, baseline in wanted.all_comparisons()]
    pairs += [((wanted.baseline, first), (wanted.baseline, case)) for case in others]
    lines = ["What differs between the arms that are compared:\n"] if wanted.all_comparisons() else []
    for pair in pairs:
        before, after = (planned.arm(plan.planned_name(arm, case.name)) for arm, case in pair)
        lines.append(f"  {before.name} -> {after.name}: {_difference(before, after, wanted)}\n")
    return "".join(lines)


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


def matching_lines(planned: Plan) -> str:
    """How near each arm came to the size of the baseline, and by what width of its block."""
    lines = []
    matched: dict[str, list[PlannedArm]] = {}  # cases that read other numbers off one model share its trial
    for arm in planned.arms:
        if arm.matching:
            matched.setdefault(arm.template.id, []).append(arm)
    for arm, *others in matched.values():
        assert arm.matching is not None
        size = f"{arm.matching['achieved']:,} {size_in_words(arm.matching['what'])}"
        ratio = arm.template.skeleton.options["expansion_ratio"]
        lines.append(
            f"  {arm.arm if others else arm.name}: {size}, "
            f"{arm.matching['mismatch']:+.2%} of {planned.study.baseline} "
            f"(expansion_ratio {ratio:g}{_mixer_channels(None, arm)})\n"
        )
    return "".join(["Matched by the block's hidden width:\n", *lines]) if lines else ""


def rates_ahead(found: Search) -> str:
    """That learning rates have to be chosen first, and among which."""
    rates = ", ".join(f"{rate:g}" for rate in sorted(found.plan.study.lr_grid))
    return (
        f"Learning rates are chosen first, on validation, from {rates} (more where the best lies at an "
        f"edge): {plural(len(found.open), 'trial')}\n"
    )


def rate_lines(planned: Plan) -> str:
    """A line per search, if there was one; cases that test the same trained models share a line."""
    if not planned.search:
        return ""
    lines: dict[str, str] = {}
    for arm in planned.search["arms"]:
        trials = [trial for point in arm["points"] for trial in point["trials"]]
        edge = f", still at the {arm['at_edge']} edge" if arm["at_edge"] else ""
        text = f"{arm['name']}: {arm['chosen']:g} of {len(arm['points'])}{edge}"
        lines.setdefault(" ".join(trials), f"  {text}\n")
    return "".join(["Learning rates, chosen on validation:\n", *lines.values()])


def notes(planned: Plan, wanted: study.Study, asked: Request) -> str:
    """What may not be meant as it was asked for, a line each."""
    twice = "".join(f"note: {sentence}\n" for sentence in plan.gated_twice(planned))
    return (
        _arm_lines(wanted, asked)
        + _same_trials(planned)
        + twice
        + _warm_up_lines(planned)
        + _no_search_line(wanted, asked)
    )


def _arm_lines(wanted: study.Study, asked: Request) -> str:
    twice = [name for name, times in Counter(asked.mixer).items() if times > 1]
    notes = [f"note: --mixer names {', '.join(twice)} more than once: it is one arm\n"] if twice else []
    if not wanted.all_comparisons():
        notes.append(
            f"note: nothing will be compared: the baseline, {wanted.baseline}, is the only arm (--mixer "
            "names others, --baseline another)\n"
        )
    return "".join(notes)


def _same_trials(planned: Plan) -> str:
    """Arms of a case that ask for one thing in two ways, as `ssm` and `ssm(d_state=16)` do."""
    first: dict[tuple[str, str], str] = {}
    lines = []
    for arm in planned.arms:
        before = first.setdefault((arm.case, arm.template.id), arm.name)
        if before != arm.name:
            lines.append(f"note: {arm.name} is {before} under another name: these are the same trials\n")
    return "".join(lines)


def _no_search_line(wanted: study.Study, asked: Request) -> str:
    searched = study.load(study.find(asked.study)).lr_grid and not wanted.lr_grid
    rate = f"{wanted.train.lr:g}"
    return f"note: the learning rate is {rate}, as given: none is searched for\n" if searched else ""


def _warm_up_lines(planned: Plan) -> str:
    recipes = dict.fromkeys(arm.template.train for arm in planned.arms)
    return "".join(
        f"note: a warm-up of {recipe.warmup_epochs:g} epoch{'s' * (recipe.warmup_epochs != 1)} does not end "
        f"within {recipe.epochs}: the learning rate stays below its {recipe.lr:g} (--train.warmup-epochs)\n"
        for recipe in recipes
        if recipe.warmup_epochs >= recipe.epochs
    )


def size(planned: Plan) -> str:
    """Arms, cases and seeds, whose product is the number of trials where no two arms share one."""
    wanted = planned.study
    counts = [(len(wanted.all_arms()), "arm"), (len(wanted.cases), "case"), (wanted.seeds, "seed")]
    return " x ".join(plural(n, noun) for n, noun in counts if n)
