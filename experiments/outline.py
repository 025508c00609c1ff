"""What MambaOut-Tiny and its blocks are made of, read off the modules, for the diagrams of the paper report.

    python -m experiments.outline    writes analysis/paper/outline.json

The report runs without torch, so the outline is checked in; a test makes it again and compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.interface import MixerFactory, TaskSpec
from experiments.skeletons.blocks import GatedBlock
from experiments.skeletons.hierarchical import MambaOutTiny
from mixers import MIXERS

PATH = Path(__file__).parents[1] / "analysis" / "paper" / "outline.json"
MASKED = ("attention", "causal-attention")
TOKENS = 8  # of a mask
IMAGENET = TaskSpec("image", channels=3, grid=(224, 224), classes=1000)


def outline() -> dict[str, Any]:
    """The backbone's parts in the order they run, its first block with and without the SSM, two masks."""
    with torch.device("meta"):
        without, with_ssm = (MambaOutTiny(_mixer(name), IMAGENET) for name in ("conv", "ssm"))
        return {
            "backbone": "mambaout-tiny",
            "input": [IMAGENET.channels, *IMAGENET.grid],
            "parts": _parts(without),
            "blocks": {"Gated CNN block": _block(without), "Mamba block": _block(with_ssm)},
            "masks": {name: _mask(name) for name in MASKED},
        }


def _mixer(name: str) -> MixerFactory:
    mixer_class = MIXERS.load(name)
    options = mixer_class.place_defaults(2, False)
    return lambda dim, *, grid_rank, stage, layer: mixer_class(dim, grid_rank, **options)


def _mask(name: str) -> list[str]:
    """What a mixer declares of a sequence: a row per output token, 1 where it may depend on an input."""
    with torch.device("cpu"):
        mask = MIXERS.load(name)(8, 1).dependency_mask((TOKENS,))
    return ["".join(str(int(allowed)) for allowed in row) for row in mask.tolist()]


def _parts(model: MambaOutTiny) -> list[dict[str, Any]]:
    """Stem, stages and head with what comes out of them, seen by running the model."""
    shapes: dict[str, list[int]] = {}

    def remember(name: str) -> Any:
        return lambda module, inputs, output: shapes.__setitem__(name, list(output.shape[1:]))

    parts: dict[str, nn.Module] = {"stem": model.stem}
    parts |= {f"stage {number}": stage for number, stage in enumerate(model.stages, start=1)}
    parts["head"] = model.head
    for name, part in parts.items():
        part.register_forward_hook(remember(name))
    model(torch.empty(1, IMAGENET.channels, *IMAGENET.grid))
    return [
        {
            "name": name,
            "out": shapes[name],
            "parameters": sum(parameter.numel() for parameter in part.parameters()),
            "blocks": sum(isinstance(module, GatedBlock) for module in part.modules()),
        }
        for name, part in parts.items()
    ]


def _block(model: MambaOutTiny) -> dict[str, Any]:
    block = next(module for module in model.modules() if isinstance(module, GatedBlock))
    return {
        "dim": block.norm.normalized_shape[0],
        "hidden": sum(block.widths),
        "mixed": block.widths[1],
        "act": type(block.act).__name__,
        "mixer": [
            {
                "kind": type(part).__name__,
                "parameters": sum(parameter.numel() for parameter in part.parameters()),
            }
            for part in _mixer_parts(block.get_submodule("mixer"))
        ],
        "parameters": sum(parameter.numel() for parameter in block.parameters()),
    }


def _mixer_parts(mixer: nn.Module) -> list[nn.Module]:
    """A mixer of several parts as those parts, a simple one as itself."""
    parts = [
        part
        for child in mixer.children()
        for part in (child if isinstance(child, nn.ModuleList) else [child])
    ]
    return parts or [mixer]


def main() -> None:
    PATH.write_text(json.dumps(outline(), indent=1) + "\n", encoding="utf-8")
    print(PATH)


if __name__ == "__main__":
    main()
