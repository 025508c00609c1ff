"""What the records say arm by arm, before any comparison: spread, costs, provenance, under-training."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis import quantities as q
from analysis.read_records import load_curve
from analysis.record_rows import backend_name
from analysis.records import DIVERGED, FAILED, MISSING, OK, UNREADABLE, Arm, Study
from analysis.statistics import Estimate, late_rise, t_interval

# An arm is flagged as under-trained when it still gains more than this share of the equivalence margin per
# window of epochs: four such windows and the gain would be worth a verdict of its own.
RISE_LIMIT_OF_MARGIN = 0.25
RISE_WINDOW = 0.15  # of the epochs
RISE_LEVEL = 0.05  # one-sided level at which the rise must also exceed the noise between seeds


@dataclass(frozen=True)
class Rise:
    """Gain in the validation metric over the last window of epochs, in difference units; positive: better."""

    gain: float
    window: int  # epochs
    flagged: bool


@dataclass(frozen=True)
class Costs:
    """What one arm costs; None where not recorded, or for `state_bytes` where there is no recurrent form."""

    params: float | None
    params_mixer: float | None
    params_rest: float | None
    macs: float | None
    macs_mixer: float | None
    state_bytes: float | None
    state_note: str
    macs_convention: str
    peak_memory_bytes: float | None  # largest over seeds
    examples_per_second: float | None  # mean over seeds
    train_seconds: float | None  # mean over seeds


@dataclass(frozen=True)
class ArmSummary:
    """One row of every table and figure."""

    arm: Arm
    test: Estimate
    validation: Estimate
    costs: Costs
    backends: tuple[str, ...]
    curves: NDArray[np.float64]
    """(finished seeds whose curve can be read, epochs) of the validation metric; NaN where one is shorter."""
    rise: Rise | None
    unread_curves: tuple[int, ...] = ()  # seeds

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def spread(self) -> str:
        """``5``, or ``3 of 5`` where planned seeds have no number."""
        planned = len(self.arm.trials)
        return str(planned) if self.test.n == planned else f"{self.test.n} of {planned}"

    @property
    def under_trained(self) -> bool:
        return self.rise is not None and self.rise.flagged


def summarise(study: Study) -> dict[str, ArmSummary]:
    """Summarise every arm, in the order of the plan."""
    return {name: _arm_summary(arm, study) for name, arm in study.arms.items()}


def training_rise(curves: NDArray[np.float64], direction: int, margin: float | None) -> Rise | None:
    """Whether validation was still improving when training stopped; None if the curves are too short to tell.

    Flagged when the mean gain over the last 15 % of epochs (at least 2), against as many epochs before, is
    above a quarter of the margin and, given two seeds or more, above the noise: its one-sided 95 % t bound
    over seeds is above zero.
    """
    gains = direction * late_rise(curves, RISE_WINDOW) if curves.size else np.empty(0)
    gains = gains[np.isfinite(gains)]
    if not gains.size:
        return None
    estimate = t_interval(gains, 2 * RISE_LEVEL)
    above_noise = estimate.n < 2 or estimate.low > 0
    window = max(2, math.ceil(RISE_WINDOW * curves.shape[1]))
    return Rise(estimate.mean, window, above_noise and estimate.mean > RISE_LIMIT_OF_MARGIN * (margin or 0.0))


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


def _arm_summary(arm: Arm, study: Study) -> ArmSummary:
    name = study.metric.name
    finished = arm.with_status(OK)
    same = not any(trial.own_metric for trial in arm.trials)
    read = {trial.seed: load_curve(trial, f"validation_{name}") for trial in finished}
    curves = _stack([curve for curve in read.values() if curve is not None])
    return ArmSummary(
        arm=arm,
        test=t_interval(list(arm.compared(name).values()), study.alpha),
        validation=t_interval(
            # of a case that reads another number off the test split, the validation split has none
            [v for v in arm.values("validation", name).values() if math.isfinite(v)] if same else [],
            study.alpha,
        ),
        costs=_costs(arm),
        backends=tuple(sorted({backend_name(trial.provenance) for trial in arm.trials if trial.result})),
        curves=curves,
        rise=training_rise(curves, study.metric.direction, study.margin),
        unread_curves=tuple(seed for seed, curve in read.items() if curve is None),
    )


def _stack(curves: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    longest = max((curve.size for curve in curves), default=0)
    stacked = np.full((len(curves), longest), math.nan)
    for row, curve in zip(stacked, curves, strict=True):
        row[: curve.size] = curve
    return stacked


def _costs(arm: Arm) -> Costs:
    recorded = next((trial.costs for trial in arm.trials if trial.costs), {})
    memory, speed, seconds = (
        [trial.timing[key] for trial in arm.trials if isinstance(trial.timing.get(key), int | float)]
        for key in ("peak_memory_bytes", "examples_per_second", "train_seconds")
    )
    return Costs(
        **{
            key: recorded.get(key)
            for key in ("params", "params_mixer", "params_rest", "macs", "macs_mixer", "state_bytes")
        },
        state_note=str(recorded.get("state_note") or ""),
        macs_convention=str(recorded.get("macs_convention") or ""),
        peak_memory_bytes=max(memory, default=None),
        examples_per_second=sum(speed) / len(speed) if speed else None,
        train_seconds=sum(seconds) / len(seconds) if seconds else None,
    )


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
    several = len(study.search_seeds) > 1
    seeds = q.listing([str(seed) for seed in study.search_seeds])
    at_edge = [name for name, search in study.searches.items() if search.at_edge]
    edge = f"; still best at an edge of its grid: {q.listing(at_edge)}" if at_edge else ""
    return (
        f" Learning rates were chosen on validation among {count}, the same for every arm of a case, on "
        f"{'seeds' if several else 'seed'} {seeds}, which {'are' if several else 'is'} not reported{edge}."
    )


def _matching(study: Study) -> str:
    if study.match == "none":
        return "The arms are not matched in size or cost."
    left = {arm.name: arm.matching["mismatch"] for arm in study.arms.values() if arm.matching}
    if not left:
        return f"The arms are matched on {_words(study.match)}."
    worst = max(left, key=lambda name: abs(left[name]))
    size = f"{100 * abs(left[worst]):.2g} %"
    widths: dict[str, list[str]] = {}
    for arm in study.arms.values():
        if channels := (arm.matching or {}).get("mixer_channels"):
            new, old = (", ".join(map(str, channels[key])) for key in ("achieved", "target"))
            widths.setdefault(f"{new} channels instead of {old}", []).append(arm.name)
    found = [f"{text} ({q.listing(names)})" for text, names in widths.items()]
    return (
        f"The arms are matched on {_words(study.match)}; the largest mismatch left is {size} ({worst})."
        + (f" Their mixers differ in width: {'; '.join(found)}." if found else "")
    )


def _words(match: str) -> str:
    return {"params": "parameters", "macs": "MACs"}.get(match, match)


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
        for status, verb in (
            (DIVERGED, "diverged"),
            (FAILED, "failed"),
            (MISSING, "missing"),
            (UNREADABLE, "unreadable"),
        ):
            trials = arm.with_status(status)
            if trials:
                seeds = q.listing([str(trial.seed) for trial in trials])
                reasons = sorted({trial.error for trial in trials if trial.error})
                why = f": {'; '.join(reasons)}" if reasons else ""
                word = "seed" if len(trials) == 1 else "seeds"
                found.append(
                    f"{len(trials)} of {q.plural(len(arm.trials), f'{arm.name} trial')} "
                    f"{verb} ({word} {seeds}){why}."
                )
    return found


def differing(study: Study) -> str:
    """`Trials differ in code and scan backend.` for a caption; empty where they do not."""
    mixed = [what for what, values in sorted(_circumstances(study).items()) if len(values) > 1]
    return f" Trials differ in {q.listing(mixed)}." if mixed else ""


def _circumstances(study: Study) -> dict[str, Counter[str]]:
    """What was recorded of where and how trials ran, and of how many trials each value is."""
    alike = Counter(json.dumps(trial.provenance) for trial in study.trials if trial.result)
    seen: dict[str, Counter[str]] = {}
    for text, trials in alike.items():
        provenance = json.loads(text)
        facts = {f"{part} backend": name for part, name in (provenance.get("backend") or {}).items()}
        facts |= {f"{name} version": version for name, version in (provenance.get("versions") or {}).items()}
        facts |= {
            name: provenance[name]
            for name in ("device", "hardware", "threads", "code")
            if provenance.get(name) is not None
        }
        facts["micro-batch"] = provenance.get("micro_batch") or "the whole batch"
        for what, value in facts.items():
            seen.setdefault(what, Counter())[str(value)] += trials
    return seen


def _mixed(study: Study) -> list[str]:
    """One sentence per recorded circumstance that is not the same in all trials."""
    seen = _circumstances(study)
    found = [
        f"Mixed {what}: "
        + ", ".join(f"{value} ({q.plural(n, 'trial')})" for value, n in sorted(values.items()))
        + "."
        for what, values in sorted(seen.items())
        if len(values) > 1
    ]
    dirty = sum(n for code, n in seen.get("code", Counter()).items() if "+" in code)  # <commit>+changes
    if dirty:
        found.append(f"{q.plural(dirty, 'trial')} ran from code with uncommitted changes.")
    return found


def _under_trained(study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    decimals = q.decimals_for(study.margin, study.metric.unit)
    unit = study.metric.difference_unit
    by_case = any(trial.own_metric for trial in study.trials)  # all of them read off the same models
    name = q.metric_in_words(study.metric.name)
    found = [
        f"{arm.arm.label if by_case else arm.name} was still improving when training stopped "
        f"(under-trained): validation {name} over the last {arm.rise.window} epochs was "
        f"{q.number(arm.rise.gain, decimals)} {unit} better than over the {arm.rise.window} before."
        for arm in arms.values()
        if arm.rise is not None and arm.rise.flagged
    ]
    short = [arm.name for arm in arms.values() if arm.curves.size and arm.rise is None]
    if short:
        found.append(f"Too few epochs to tell whether training was done: {q.listing(short)}.")
    return list(dict.fromkeys(found))


def _unread_curves(study: Study, arms: dict[str, ArmSummary]) -> list[str]:
    by_case = any(trial.own_metric for trial in study.trials)  # all of them read off the same models
    found = []
    for arm in arms.values():
        if arm.unread_curves:
            name = arm.arm.label if by_case else arm.name
            word = "seed" if len(arm.unread_curves) == 1 else "seeds"
            seeds = q.listing([str(seed) for seed in arm.unread_curves])
            found.append(
                f"curve.csv of {name} ({word} {seeds}) cannot be read: whether training was done there is "
                "unknown."
            )
    return list(dict.fromkeys(found))
