"""When is a sequence long? MambaOut's answer (arXiv 2405.07992, eq. 6 and 7), for any backbone.

A Transformer block with an MLP of ratio r on L tokens of D channels takes (8 + 4 r) D^2 L operations that
grow with the number of tokens and 4 D L^2 that grow with its square (one multiplication or addition = one
operation; half of the latter if attention is causal). With r = 4 that is 24 D^2 L + 4 D L^2: the square
outgrows the rest beyond L = 6 D. The paper applies this to plain ViTs; a hierarchy has another L and D in
each of its stages, and there the answer changes from stage to stage.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import published
from analysis import quantities as q

MLP_RATIO = 4.0
HIERARCHY_STRIDES = (4, 8, 16, 32)
RESOLUTIONS = {
    "ImageNet": (224, 224),
    "COCO": (800, 1280),
    "ADE20K": (512, 2048),
}
"""Where MambaOut's models are trained and tested: height and width in pixels."""
PLAIN = {"ViT-Ti": 192, "ViT-S": 384, "ViT-B": 768}  # channels; 16 x 16 patches


@dataclass(frozen=True)
class Stage:
    """Tokens at one width: `dim` channels, one token per `stride` x `stride` pixels."""

    backbone: str
    number: int | None  # None in a backbone without stages
    dim: int
    stride: int
    origin: str  # where the width was looked up


def linear_operations(dim: int, length: int, mlp_ratio: float = MLP_RATIO) -> float:
    """Operations of a block that grow with the number of tokens."""
    return (8 + 4 * mlp_ratio) * dim**2 * length


def quadratic_operations(dim: int, length: int, causal: bool = False) -> float:
    """Operations of a block that grow with the square of the number of tokens."""
    return (2 if causal else 4) * dim * length**2


def threshold(dim: int, mlp_ratio: float = MLP_RATIO, causal: bool = False) -> float:
    """Tokens from which the quadratic part is the larger one: 6 `dim` with an MLP ratio of 4."""
    return linear_operations(dim, 1, mlp_ratio) / quadratic_operations(dim, 1, causal)


def tokens(height: int, width: int, stride: int) -> int:
    """Tokens of an image, its last row and column of patches filled up."""
    return math.ceil(height / stride) * math.ceil(width / stride)


def stages() -> Iterator[Stage]:
    """Plain ViTs, then MambaOut's released hierarchies."""
    for name, dim in PLAIN.items():
        yield Stage(name, None, dim, 16, "")
    table = published.load("mambaout_released_models")
    for row in table.rows:
        dims = ast.literal_eval(row.text("dims"))
        for number, (dim, stride) in enumerate(zip(dims, HIERARCHY_STRIDES, strict=True), start=1):
            yield Stage(row.text("model"), number, dim, stride, row.origin)


def own_stages(dims: Sequence[int], patch: Sequence[int]) -> list[Stage]:
    """A backbone that nobody published: channels and pixels per token along a side, stage by stage."""
    numbers = [None] if len(dims) == 1 else range(1, len(dims) + 1)
    return [
        Stage("yours", number, dim, stride, "")
        for number, dim, stride in zip(numbers, dims, patch, strict=True)
    ]


def analysis(
    chosen: Iterable[Stage] | None = None,
    images: Mapping[str, tuple[int, int]] = RESOLUTIONS,
    mlp_ratio: float = MLP_RATIO,
    causal: bool = False,
) -> list[dict[str, Any]]:
    """One record per backbone, stage and resolution: tokens, threshold, their ratio, and both operations.

    Args:
        chosen: default: those of `stages`.
        images: height and width in pixels by name.
        mlp_ratio: of the block.
        causal: whether attention is.
    """
    return [
        {
            "backbone": stage.backbone,
            "stage": stage.number,
            "task": task,
            "height": height,
            "width": width,
            "tokens": (length := tokens(height, width, stage.stride)),
            "channels": stage.dim,
            "threshold": (limit := threshold(stage.dim, mlp_ratio, causal)),
            "ratio": length / limit,
            "linear_operations": linear_operations(stage.dim, length, mlp_ratio),
            "quadratic_operations": quadratic_operations(stage.dim, length, causal),
            "origin": stage.origin,
        }
        for stage in (stages() if chosen is None else chosen)
        for task, (height, width) in images.items()
    ]


def lines(records: list[dict[str, Any]], mlp_ratio: float = MLP_RATIO, causal: bool = False) -> list[str]:
    """The records as a table for the terminal, and below it what its columns are."""
    linear, quadratic = 8 + 4 * mlp_ratio, 2 if causal else 4
    limit = f"{linear / quadratic:g} D"
    columns = (f"{linear:g} D\N{SUPERSCRIPT TWO} L", f"{quadratic:g} D L\N{SUPERSCRIPT TWO}")
    said = [
        f"{'backbone':<18} {'stage':>5}  {'image':<20} {'L':>9} {'D':>6} {limit:>8} {'L / ' + limit:>9} "
        f"{columns[0]:>10} {columns[1]:>10}"
    ]
    for each in records:
        size = f"{each['height']} x {each['width']}"
        image = size if each["task"] == size else f"{each['task']} {size}"
        said.append(
            f"{each['backbone']:<18} {each['stage'] or q.MISSING:>5}  {image:<20} {each['tokens']:>9,} "
            f"{each['channels']:>6,} {each['threshold']:>8,.6g} {each['ratio']:>9.3f} "
            f"{q.count(each['linear_operations']):>10} {q.count(each['quadratic_operations']):>10}"
            f"{'  long' if each['ratio'] > 1 else ''}"
        )
    kind = "causal Transformer block" if causal else "Transformer block"
    source = "MambaOut," if mlp_ratio == MLP_RATIO and not causal else "after MambaOut,"
    return [
        *said,
        "",
        f"Operations of a {kind} with an MLP of ratio {mlp_ratio:g} on L tokens of D channels ({source}",
        f"eq. 6 and 7). Long: the part that is quadratic in L is the larger one, L > {limit}.",
    ]
