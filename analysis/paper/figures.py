"""The paper's figures, published numbers and ours told apart: ours have intervals, and are filled if decided.

Figures 2 and 3(b) of MambaOut (arXiv 2405.07992), the analysis of sequence lengths, the margins of its
claim, and what single ingredients were worth. Every data file names the row that each number comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis import published
from analysis import quantities as q
from analysis.comparison import Comparison
from analysis.drawing import (
    COLOURS,
    GREY,
    PAGE,
    ZONE,
    Drawing,
    coinciding,
    colour_and_marker,
    finished_drawing,
    legend,
    legend_label,
    line_style,
    paper_style,
    whole_bytes,
)
from analysis.paper import bubbles, diagrams, long_sequences
from analysis.paper.evidence import (
    DECIDED,
    HOLLOW,
    NO_SPREAD,
    OPEN,
    PUBLISHED,
    draw_difference,
    evidence,
    kind,
    legend_of,
    reservations_of_differences,
    t_interval_of,
)
from analysis.paper.ours import OurStudy, widest
from analysis.paper.tables import margins
from analysis.published import Effect
from analysis.records import Json

FULL: Json = {"marker": "o", "color": COLOURS[0], "linestyle": "", "markersize": 4}
CAUSAL: Json = {
    "marker": "o",
    "color": COLOURS[1],
    "linestyle": "",
    "markersize": 4,
    **HOLLOW,
}


def draw_all(studies: Sequence[OurStudy], decoding: Sequence[Json]) -> list[Drawing]:
    """Every figure, in the order of the page; those that need records of ours only where there are any."""
    with paper_style():
        drawings = [
            diagrams.blocks(),
            bubbles.accuracy_against_macs(studies),
            memory(decoding),
            diagrams.masks(),
            causality(studies),
            diagrams.stages(),
            sequence_lengths(),
            claim_margins(),
            ingredients(studies),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def memory(decoding: Sequence[Json]) -> Drawing | None:
    """Figure 2, measured: bytes carried and time per token against the length of the context."""
    decoding = [row for row in decoding if float(row["state_bytes"]) > 0]
    if not decoding:
        return None
    names = list(dict.fromkeys(str(row["mixer"]) for row in decoding))
    figure = Figure(figsize=(PAGE, max(2.4, 0.5 + 0.14 * len(names))), layout="constrained")
    carried, timed = figure.subplots(1, 2)
    for index, name in enumerate(names):
        points = [row for row in decoding if row["mixer"] == name]
        contexts = [float(row["context"]) for row in points]
        style: Json = {
            **colour_and_marker(index),
            "linestyle": line_style(index),
            "markersize": 3,
            "label": legend_label(name),
        }
        carried.plot(contexts, [float(row["state_bytes"]) for row in points], **style)
        timed.plot(contexts, [float(row["microseconds_per_token"]) for row in points], **style)
    for axes, what in ((carried, "carried to the next token"), (timed, "time of a token (µs)")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("context (tokens)")
        axes.set_ylabel(what)
        axes.grid(axis="y")
    carried.set_yscale("log", base=2)
    carried.yaxis.set_major_locator(LogLocator(base=4, numticks=12))
    carried.yaxis.set_major_formatter(FuncFormatter(lambda value, _: whole_bytes(value)))
    timed.set_yscale("log")
    timed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    timed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axes in (carried, timed):
        axes.yaxis.set_minor_locator(NullLocator())
    legend(figure, carried)
    where = q.listing(sorted({str(row["machine"]) for row in decoding}))
    caption = (
        "What a token mixer carries while decoding, and the time of one step, against the tokens before it. "
        f"{_carried_in_words(decoding)} One run of benchmarks/decoding.py, so without intervals: {where}. A "
        "mixer that carries nothing is left out."
        f"{_equal_in_what_they_carry(decoding)}"
    )
    return finished_drawing(
        "figure_2", "Figure 2, measured: cache and state", caption, figure, list(decoding)
    )


CARRIED = {
    "causal-attention": (
        "Causal attention keeps every token, and its step here copies the whole cache, so its time has that "
        "copy in it."
    ),
    "window-attention": (
        "Window attention is neither a growing cache nor a state: it keeps the last tokens as they are and "
        "drops the others."
    ),
}
"""What is to be known of single mixers of Figure 2."""


def _carried_in_words(decoding: Sequence[Json]) -> str:
    """Which mixers of Figure 2 carry more after more tokens, and what is to be known of single ones."""
    sizes: dict[str, set[float]] = {}
    for row in decoding:
        sizes.setdefault(str(row["mixer"]), set()).add(float(row["state_bytes"]))
    growing = [name for name, seen in sizes.items() if len(seen) > 1]
    said = [f"What is carried grows with the context for {q.listing(growing)} only."] if growing else []
    return " ".join([*said, *(about for name, about in CARRIED.items() if name in sizes)])


def _equal_in_what_they_carry(decoding: Sequence[Json]) -> str:
    """What a caption says of mixers of which the left panel of Figure 2 shows only the last."""
    carried: dict[str, list[float]] = {}
    for row in decoding:
        carried.setdefault(str(row["mixer"]), []).extend([float(row["context"]), float(row["state_bytes"])])
    found = "; ".join(map(q.listing, coinciding(carried)))
    return f" They carry equally much, so that their lines lie on one another: {found}." if found else ""


def causality(studies: Sequence[OurStudy]) -> Drawing:
    """Figure 3(b): fully visible against causal; published pairs, and ours with intervals."""
    pairs = _causal_pairs(studies)
    published_rows = _published_pairs()
    rows = [*published_rows, *(_our_pair(study, comparison) for study, comparison in pairs)]
    kinds = [PUBLISHED] * len(published_rows) + [kind(comparison) for _, comparison in pairs]
    figure = Figure(figsize=(PAGE, 1.0 + 0.17 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, row in enumerate(rows):
        pair = [row["full"], row["causal"]]
        left.plot(pair, [place, place], color=GREY, linewidth=0.8, zorder=1)
        left.plot(pair[:1], [place], label="fully visible" if place == 0 else None, **FULL)
        left.plot(pair[1:], [place], label="causal" if place == 0 else None, **CAUSAL)
        draw_difference(right, place, kinds[place], row, "difference")
    _rows(left, [row["label"] for row in rows])
    _rows(right, [""] * len(rows))
    right.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    for axes in (left, right):
        axes.grid(axis="x")
        if pairs:
            axes.axhline(len(published_rows) - 0.5, color=GREY, linewidth=0.5, linestyle=(0, (1, 2)))
    left.set_xlabel("accuracy (%): published on ImageNet, ours below" if pairs else "ImageNet top-1 (%)")
    right.set_xlabel("causal \N{MINUS SIGN} fully visible (points)")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    figure.legend(handles=legend_of(kinds), loc="outside lower right", ncols=4)
    caption = (
        "Left: accuracy with fully visible and with causal token mixing. Right: the difference. Published "
        "(MambaOut, Figure 3(b); De-focus Attention Networks, Table 1, the same comparison by others with "
        "DeiT): one training each, so without intervals."
    )
    if pairs:
        caption += _our_differences(pairs)
    return finished_drawing("figure_3b", "Figure 3(b): the price of causality", caption, figure, rows)


def sequence_lengths() -> Drawing:
    """Tokens over 6 D for every backbone, stage and resolution."""
    records = long_sequences.analysis()
    shown = [*long_sequences.PLAIN, "mambaout_femto", "mambaout_tiny", "mambaout_small", "mambaout_base"]
    lines = [(backbone, task) for backbone in shown for task in long_sequences.RESOLUTIONS]
    figure = Figure(figsize=(PAGE, 0.7 + 0.145 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(1, 1e3, color=ZONE, linewidth=0, zorder=0)
    axes.axvline(1, color=GREY, linewidth=0.7, zorder=1)
    colours = dict(zip(long_sequences.RESOLUTIONS, COLOURS, strict=False))
    for place, (backbone, task) in enumerate(lines):
        points = [r for r in records if r["backbone"] == backbone and r["task"] == task]
        ratios = [float(str(record["ratio"])) for record in points]
        axes.plot(ratios, [place] * len(ratios), color=colours[task], linewidth=0.7, zorder=2)
        for record, ratio in zip(points, ratios, strict=True):
            number = record["stage"]
            if number is None:
                axes.plot([ratio], [place], marker="o", color=colours[task], markersize=4)
            else:
                axes.annotate(
                    str(number),
                    (ratio, place),
                    ha="center",
                    va="center",
                    fontsize=5.5,
                    color="white",
                    bbox={"boxstyle": "circle,pad=0.15", "facecolor": colours[task], "linewidth": 0},
                )
    axes.set_xscale("log")
    axes.set_xlim(0.007, 320)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _rows(axes, [f"{backbone}, {task}" for backbone, task in lines])
    axes.set_xlabel(
        "tokens / 6 D; shaded: long, attention's quadratic part is the larger one\n"
        "numbers in circles: stages 1 to 4 of a hierarchy; dots: plain ViTs, of one length throughout"
    )
    axes.grid(axis="x")
    caption = (
        "Length of the sequences that a block sees over 6 D, MambaOut's measure of a long one, at 224 x 224 "
        "(ImageNet), 800 x 1280 (COCO) and 512 x 2048 (ADE20K). Dots: plain ViTs with 16 x 16 patches, as in "
        "the paper. Numbers in circles: the stages of MambaOut's hierarchies, where the paper does not look: "
        "stage 1 is long everywhere, stage 4 nowhere."
    )
    return finished_drawing("long_sequences", "Which sequences are long", caption, figure, records)


def claim_margins() -> Drawing:
    """MambaOut minus the best SSM of its size, task by task."""
    found = margins()
    tasks = list(dict.fromkeys(margin.task for margin in found))
    figure = Figure(figsize=(PAGE, 1.9), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.7, zorder=0)
    for place, margin in enumerate(found):
        colour = COLOURS[tasks.index(margin.task)]
        axes.bar([place], [margin.points], width=0.62, color=colour, zorder=2)
        side, align = (2, "bottom") if margin.points >= 0 else (-2, "top")
        axes.annotate(
            q.signed(margin.points, 1),
            (place, margin.points),
            (0, side),
            textcoords="offset points",
            ha="center",
            va=align,
            fontsize=6,
        )
    axes.set_xticks(range(len(found)), [margin.size for margin in found])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(-2.8, 1.2)
    axes.set_ylabel("published: MambaOut\n\N{MINUS SIGN} best SSM (points)")
    for task in tasks:
        places = [place for place, margin in enumerate(found) if margin.task == task]
        axes.annotate(
            task,
            (sum(places) / len(places), 1.15),
            ha="center",
            va="top",
            fontweight="bold",
            color=COLOURS[tasks.index(task)],
        )
    rows = [
        {
            "task": m.task,
            "size": m.size,
            "mambaout": m.mambaout.number(m.column),
            "best": m.best.number(m.column),
            "which": m.best.text(m.model_column),
            "points": m.points,
            "origin": f"{m.mambaout.origin}, {m.best.line}",
        }
        for m in found
    ]
    caption = (
        "What the claim rests on: MambaOut minus the best model of its size that has an SSM, from the "
        "paper's Tables 1 to 3. One published number each, no seeds: how far a second run would move a bar "
        "is not known."
    )
    return finished_drawing("margins", "Margins of the claim", caption, figure, rows)


def ingredients(studies: Sequence[OurStudy]) -> Drawing:
    """What each ingredient was worth: in papers, and in our trials on the task of the widest study."""
    effects = sorted(published.effects(), key=lambda effect: effect.points)
    ours = _our_effects(studies)
    rows = [*map(_published_effect, effects), *(_our_effect(study, comparison) for study, comparison in ours)]
    counts = [len(effects), len(ours)]
    figure = Figure(figsize=(PAGE, 0.9 + 0.16 * sum(counts)), layout="constrained")
    if ours:
        top, bottom = figure.subplots(2, 1, height_ratios=counts)
        _our_effect_rows(bottom, ours, rows[len(effects) :])
    else:
        top = figure.subplots()
    for place, effect in enumerate(effects):
        top.plot([0, effect.points], [place, place], color=GREY, linewidth=0.7, zorder=1)
        draw_difference(top, place, PUBLISHED, rows[place], "points")
    _rows(top, [f"{effect.component} ({effect.paper})" for effect in effects])
    top.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    top.grid(axis="x")
    top.set_xlabel("published, one training each (points)")
    kinds = [PUBLISHED, *(kind(comparison) for _, comparison in ours)]
    figure.legend(handles=legend_of(kinds), loc="outside lower right", ncols=4)
    caption = (
        "What a change was worth: published differences of two rows of one table (open diamonds; ImageNet "
        "top-1 unless said otherwise), one training each, so without intervals."
    )
    if ours:
        caption += (
            f"{_our_differences(ours)} The scale of ours is linear between −1 and 1 point, logarithmic "
            "beyond."
        )
    return finished_drawing("ingredients", "What each ingredient was worth", caption, figure, rows)


def _our_differences(shown: Sequence[tuple[OurStudy, Comparison]]) -> str:
    """What a caption says of differences of ours: of which studies, how sure, and with which reservations."""
    studies = list({ours.study.name: ours for ours, _ in shown}.values())
    named = "; ".join(f"{ours.label}, {ours.place}" for ours in studies)
    kinds = {kind(comparison) for _, comparison in shown}
    interval = t_interval_of(studies)
    text = f" Below ({named}): mean paired difference and {interval}."
    if any(comparison.family_size > 1 for _, comparison in shown):
        text += (
            " Whiskers: the interval at the level at which Holm's adjustment over the comparisons of its "
            "study judges this one; a mixer helps or hurts where they leave out zero."
        )
    if DECIDED in kinds:
        text += " Filled circles: helps, hurts or, by a test that is not drawn, equivalent within the margin."
    if OPEN in kinds:
        text += (
            " Hollow circles: undecided, or no verdict, by the study's own rules; their sign is no result."
        )
    if NO_SPREAD in kinds:
        text += " Crosses: the same difference on all seeds, which says nothing about further seeds."
    return text + reservations_of_differences(shown)


def _our_effects(studies: Sequence[OurStudy]) -> list[tuple[OurStudy, Comparison]]:
    """Our comparisons by one metric on one task: effects in points are comparable only there."""
    chosen = widest(studies)
    return [
        (study, comparison)
        for study in studies
        if chosen is not None and study.on_one_scale and _measured(study) == _measured(chosen)
        for comparison in study.comparisons
        if math.isfinite(comparison.interval.mean)
    ]


def _measured(ours: OurStudy) -> tuple[list[str], str]:
    return ours.study.settings["task"], ours.study.metric.name


def _published_effect(effect: Effect) -> Json:
    return {
        "component": effect.component,
        "from": effect.paper,
        "points": effect.points,
        "low": None,
        "high": None,
        "origin": f"{effect.before.origin}, {effect.after.line}",
    }


def _our_effect(ours: OurStudy, comparison: Comparison) -> Json:
    return {
        "component": f"{comparison.arm} in place of {comparison.baseline}",
        "from": ours.study.name,
        "points": comparison.interval.mean,
        **evidence(ours, comparison),
    }


def _our_effect_rows(axes: Axes, ours: Sequence[tuple[OurStudy, Comparison]], rows: Sequence[Json]) -> None:
    kinds = [kind(comparison) for _, comparison in ours]
    for place, (what, row) in enumerate(zip(kinds, rows, strict=True)):
        draw_difference(axes, place, what, row, "points")
    _rows(axes, [f"{row['component']} ({row['from']})" for row in rows])
    axes.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    axes.grid(axis="x")
    axes.set_xscale("symlog", linthresh=1.0)
    ticks = (-30, -10, -3, -1, 0, 1, 3, 10, 30)
    low, high = axes.get_xlim()
    axes.set_xticks([value for value in ticks if low <= value <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: q.amount(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ours, paired over seeds (points)")


def _published_pairs() -> list[Json]:
    """Published accuracies of the same model with fully visible and with causal mixing."""
    vit, defocus = published.load("mambaout_fig3_causal_vit"), published.load("defocus_causal_vs_full")
    found = [
        (
            f"{model} (MambaOut)",
            vit.find(model=model, attention_mode="fully_visible"),
            vit.find(model=model, attention_mode="causal"),
            "imagenet_top1",
        )
        for model in ("ViT-Ti", "ViT-S")
    ]
    found += [
        (
            f"{model} (De-focus)",
            defocus.find(model=model, causal=0),
            defocus.find(model=model, causal=1),
            "top1",
        )
        for model in ("DeiT-Small", "DeiT-Base")  # its other pairs are other models, not plain ViTs
    ]
    return [
        {
            "label": label,
            "ours": 0,
            "study": "",
            "full": before.number(column),
            "causal": after.number(column),
            "difference": after.number(column) - before.number(column),
            "low": None,
            "high": None,
            "origin": f"{before.origin}, {after.line}",
        }
        for label, before, after, column in found
    ]


def _causal_pairs(studies: Sequence[OurStudy]) -> list[tuple[OurStudy, Comparison]]:
    """Our comparisons of an arm "causal X" with its baseline "X"."""
    return [
        (study, comparison)
        for study in studies
        if study.in_percent
        for comparison in study.comparisons
        if comparison.arm == f"causal {comparison.baseline}" and math.isfinite(comparison.interval.mean)
    ]


def _our_pair(ours: OurStudy, comparison: Comparison) -> Json:
    return {
        "label": f"{comparison.baseline} (ours)",
        "ours": 1,
        "study": ours.study.name,
        "full": ours.arms[comparison.baseline].test.mean,
        "causal": ours.arms[comparison.arm].test.mean,
        "difference": comparison.interval.mean,
        **evidence(ours, comparison),
    }


def _rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
