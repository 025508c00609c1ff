"""What a reader must know of a study beside its numbers, in sentences: its conventions, and what is odd."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from analysis import quantities as q
from analysis.records import DIVERGED, FAILED, MISSING, OK, UNREADABLE, Json, Study
from analysis.summary import ArmSummary


def notes(study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    """The caption's sentences on selection, budget, matching and the conventions of the costs."""
    found = [selection_rule(study, arms.values()), _matching(study)]
    conventions = sorted({arm.costs.macs_convention for arm in arms.values()} - {""})
    if conventions:
        found.append(f"MACs: {'; '.join(conventions).rstrip('.')}.")
    return [sentence for sentence in [*found, *_state(arms)] if sentence]


def warnings(study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    """What to know before believing the table: unfinished cells, mixed provenance, arms stopped too early."""
    return [*_unfinished(study), *_mixed(study), *_under_trained(study, arms), *_unread_curves(study, arms)]


def selection_rule(study: Study, arms: Iterable[ArmSummary]) -> str:
    """Which epoch the test metrics are of, and how learning rates were chosen; empty before any trial."""
    selected: set[int] = set()
    chosen = False
    for arm in arms:
        last = arm.curves.shape[1] if arm.curves.size else None
        epochs = [trial.result.get("selected_epoch") for trial in arm.arm.with_status(OK)]
        own = {int(epoch) for epoch in epochs if epoch is not None}
        selected |= own
        chosen |= len(own) > 1 if last is None else not own <= {last}
    if not selected:
        return ""
    first, final = min(selected), max(selected)
    which = "epoch chosen on validation" if chosen else "last epoch"
    return f"Test metrics are of the {which} ({_range(first, final)}).{_rates(study)}"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _rates(study: Study) -> str:
    if not study.searches:
        return ""
    tried = {len(search.points) for search in study.searches.values()}
    count = _range(min(tried), max(tried))
    are = "are" if len(study.search_seeds) > 1 else "is"
    at_edge = [name for name, search in study.searches.items() if search.at_edge]
    edge = f"; still best at an edge of its grid: {q.listing(at_edge)}" if at_edge else ""
    return (
        f" Learning rates were chosen on validation among {count}, the same for every arm of a case, on "
        f"{q.seeds_listed(study.search_seeds)}, which {are} not reported{edge}."
    )


def _matching(study: Study) -> str:
    if study.match == "none":
        return "The arms are not matched in size or cost."
    left = {arm.name: arm.matching["mismatch"] for arm in study.arms.values() if arm.matching}
    if not left:
        return f"The arms are matched on {q.size_in_words(study.match)}."
    worst = max(left, key=lambda name: abs(left[name]))
    size = f"{100 * abs(left[worst]):.2g} %"
    widths: dict[str, list[str]] = {}
    for arm in study.arms.values():
        if channels := (arm.matching or {}).get("mixer_channels"):
            new, old = (", ".join(map(str, channels[key])) for key in ("achieved", "target"))
            widths.setdefault(f"{new} channels instead of {old}", []).append(arm.name)
    found = [f"{text} ({q.listing(names)})" for text, names in widths.items()]
    on = q.size_in_words(study.match)
    return f"The arms are matched on {on}; the largest mismatch left is {size} ({worst})." + (
        f" Their mixers differ in width: {'; '.join(found)}." if found else ""
    )


def _state(arms: dict[str, ArmSummary]) -> list[str]:
    """What the column of state bytes means, one sentence per distinct note."""
    by_note: dict[str, list[str]] = {}
    for arm in arms.values():
        if arm.costs.params is not None:
            none = "" if arm.costs.state_bytes is not None else "none, "
            by_note.setdefault(none + (arm.costs.state_note or "bytes carried per sequence"), []).append(
                arm.name
            )
    found = []
    for note, names in by_note.items():
        of = "" if len(by_note) == 1 else f" of {q.listing(names)}"
        found.append(f"State{of}: {note.rstrip('.')}.")
    return found


def _unfinished(study: Study) -> list[str]:
    found = []
    for arm in study.arms.values():
        for status in (DIVERGED, FAILED, MISSING, UNREADABLE):
            trials = arm.with_status(status)
            if trials:
                seeds = q.seeds_listed([trial.seed for trial in trials])
                reasons = sorted({trial.error for trial in trials if trial.error})
                why = f": {'; '.join(reasons)}" if reasons else ""
                planned = q.plural(len(arm.trials), f"{arm.name} trial")
                found.append(f"{len(trials)} of {planned} {status} ({seeds}){why}.")
    return found


def differing(study: Study) -> str:
    """`Trials differ in code and scan backend.` for a caption; empty where they do not.

    What changed midway, in the same way in all of them, is no difference between trials, but said as well.
    """
    mixed = {what: values for what, values in sorted(_circumstances(study).items()) if _is_mixed(values)}
    between = [what for what, values in mixed.items() if len(values) > 1]
    within = [what for what in mixed if what not in between]
    found = [f"differ in {q.listing(between)}"] if between else []
    found += [f"all changed {q.listing(within)} midway"] if within else []
    return f" Trials {' and '.join(found)}." if found else ""


Values = tuple[str, ...]
"""Of a circumstance in one trial; more than one where it changed midway."""


def _circumstances(study: Study) -> dict[str, Counter[Values]]:
    """What was recorded of where and how trials ran, and of how many trials it is."""
    alike = Counter(json.dumps(trial.sessions) for trial in study.trials if trial.result)
    seen: dict[str, Counter[Values]] = {}
    for text, trials in alike.items():
        values: dict[str, set[str]] = {}
        for session in json.loads(text):
            for what, value in _facts(session).items():
                values.setdefault(what, set()).add(value)
        for what, found in values.items():
            seen.setdefault(what, Counter())[tuple(sorted(found))] += trials
    return seen


def _is_mixed(values: Counter[Values]) -> bool:
    """Whether a circumstance is another in some trials, or was another in some part of them."""
    return len({value for each in values for value in each}) > 1


def _facts(provenance: Json) -> dict[str, str]:
    """What was recorded of where and how one session of a trial ran."""
    facts = {f"{part} backend": name for part, name in (provenance.get("backend") or {}).items()}
    facts |= {f"{name} version": version for name, version in (provenance.get("versions") or {}).items()}
    facts |= {
        name: str(provenance[name])
        for name in ("device", "hardware", "threads", "code")
        if provenance.get(name) is not None
    }
    return facts | {
        "micro-batch": str(provenance.get("micro_batch") or "the whole batch"),
        "processes per trial": str(provenance.get("ranks") or 1),  # older records do not say
    }


def _mixed(study: Study) -> list[str]:
    """One sentence per recorded circumstance that is not the same throughout all trials."""
    seen = _circumstances(study)
    found = [
        f"Mixed {what}: "
        + ", ".join(f"{' and '.join(each)} ({q.plural(n, 'trial')})" for each, n in sorted(values.items()))
        + "."
        for what, values in sorted(seen.items())
        if _is_mixed(values)
    ]
    codes = seen.get("code", Counter()).items()
    dirty = sum(n for each, n in codes if any("+" in code for code in each))  # <commit>+changes
    if dirty:
        found.append(f"{q.plural(dirty, 'trial')} ran from code with uncommitted changes.")
    return found


def _under_trained(study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    decimals = q.decimals_for(study.margin, study.metric.unit)
    unit = study.metric.difference_unit
    name = q.metric_in_words(study.metric.name)
    found = [
        f"{_model_name(study, arm)} was still improving when training stopped "
        f"(under-trained): validation {name} over the last {arm.rise.window} epochs was "
        f"{q.number(arm.rise.gain, decimals)} {unit} better than over the {arm.rise.window} before."
        for arm in arms.values()
        if arm.rise is not None and arm.rise.flagged
    ]
    short = [arm.name for arm in arms.values() if arm.curves.size and arm.rise is None]
    if short:
        found.append(f"Too few epochs to tell whether training was done: {q.listing(short)}.")
    return list(dict.fromkeys(found))


def _model_name(study: Study, arm: ArmSummary) -> str:
    """What a trained arm is called: without its case where all cases are read off the same models."""
    return arm.arm.label if study.cases_share_models else arm.name


def _unread_curves(study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    found = [
        f"curve.csv of {_model_name(study, arm)} ({q.seeds_listed(arm.unread_curves)}) cannot be read: "
        "whether training was done there is unknown."
        for arm in arms.values()
        if arm.unread_curves
    ]
    return list(dict.fromkeys(found))
