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
from collections.abc import Iterator
from dataclasses import dataclass

from analysis import published

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


def analysis() -> list[dict[str, object]]:
    """One record per backbone, stage and resolution: tokens, threshold, their ratio, and both operations."""
    return [
        {
            "backbone": stage.backbone,
            "stage": stage.number,
            "task": task,
            "height": height,
            "width": width,
            "tokens": (length := tokens(height, width, stage.stride)),
            "channels": stage.dim,
            "threshold": threshold(stage.dim),
            "ratio": length / threshold(stage.dim),
            "linear_operations": linear_operations(stage.dim, length),
            "quadratic_operations": quadratic_operations(stage.dim, length),
            "origin": stage.origin,
        }
        for stage in stages()
        for task, (height, width) in RESOLUTIONS.items()
    ]
