"""A trial: everything that is asked for to get one number, resolved, hashed. Free of torch.

Device, workers, paths and backends are not in it: they change speed or place, not what was asked. Nor is the
code behind the names that come with this project (see `experiments.sources`). These are recorded beside the
result instead.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from mixers.registry import Component

LEAST_SEEDS = 3
"""Of a verdict."""
SCHEMA_VERSION = 1
"""Raised whenever a stored trial or result would be read differently; older ones are set aside."""

Precision = Literal["float32", "bfloat16", "float16"]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """How every arm is trained; the names are timm's."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Examples per step; an even number where mixup or cutmix is on. The last short batch is dropped."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    opt: Literal["adamw", "sgd", "lamb"] = "adamw"
    """timm's optimizer; sgd is with Nesterov momentum 0.9 and ignores betas and eps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Not applied to norms, biases and the parameters that a mixer exempts."""
    sched: Literal["cosine", "multistep", "poly"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 2.0
    """Linear warm-up, inside `epochs`."""
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate that the warm-up starts from."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    """Learning rate that cosine and poly end at."""
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at `min_lr`, added to `epochs`."""
    decay_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs at which multistep multiplies the learning rate by `decay_rate`."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of multistep; of poly, the power to which the share of steps that is left is raised."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm; None for no clipping, as in the paper."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread evenly over all classes."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mixup's alpha; 0 turns it off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """CutMix's alpha; 0 turns it off."""
    mixup_prob: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of batches that are mixed."""
    mixup_switch_prob: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of those, the share that gets cutmix when both are on."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the moving average of the weights, which is then what is tested; None for none."""
    precision: Precision = "float32"
    """Of matrix products in training and tests (autocast); weights stay in float32."""
    weights: str | None = None
    """Weights to start from: "timm" for the released ones, or a file; None to start from the seed."""
    selection: Literal["last", "best"] = "last"
    """Weights that are tested: those of the last epoch, or of the best one on the validation split."""

    @property
    def all_epochs(self) -> int:
        """Epochs that are run, cooldown included."""
        return self.epochs + self.cooldown_epochs


@dataclass(frozen=True, config=_STRICT)
class Trial:
    """One mixer, skeleton, task, recipe and seed -> one result. Every option is filled in."""

    mixer: tuple[Component, ...]
    """One for the whole backbone; or several, one per stage or repeated over the layers."""
    skeleton: Component
    task: Component
    train: Recipe
    seed: Annotated[int, Field(ge=0)]

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return digest(self.to_dict())

    @property
    def mixer_text(self) -> str:
        """The mixer, or mixers, as `Registry.parse_pattern` reads them back."""
        return ",".join(str(mixer) for mixer in self.mixer)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, as stored in `trial.json`."""
        # not asdict, which copies every number: a study of a thousand trials would wait for it
        return {
            "schema_version": SCHEMA_VERSION,
            "mixer": [_component(each) for each in self.mixer],
            "skeleton": _component(self.skeleton),
            "task": _component(self.task),
            "train": {each.name: getattr(self.train, each.name) for each in fields(self.train)},
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Trial:
        """Inverse of `to_dict`.

        Raises:
            ValueError: another schema version, or fields that do not fit.
        """
        values = dict(stored)
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, this code reads {SCHEMA_VERSION}")
        return cls(**values)


def _component(component: Component) -> dict[str, Any]:
    return {"name": component.name, "options": dict(component.options)}


def canonical_json(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """16 hexadecimal digits that stand for `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


Purpose = Literal["init", "data", "order", "augmentation", "noise"]


def stream(seed: int, purpose: Purpose, *index: int | str) -> int:
    """A seed for one use of randomness, below 2^63.

    It depends on the trial's seed, on what the randomness is for and on where in the run it is used,
    never on the mixer or on a global generator: two arms with the same seed draw the same data, order
    and augmentations, and a resumed run draws what it would have drawn.

    Args:
        seed: the trial's seed.
        purpose: what it is for.
        index: position within the purpose: an epoch, a step, a parameter's name.
    """
    text = canonical_json([seed, purpose, *index])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
