"""What tasks, skeletons and reports know of one another, so that none imports another. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Output = Literal["one", "per-token", "per-pixel", "instances"]
MixerState = tuple["Tensor", ...]


@dataclass(frozen=True)
class TaskSpec:
    """The shapes that a task hands to a skeleton and expects back, and what it forbids.

    Attributes:
        input: "image" for floats `(B, channels, H, W)`, "tokens" for integer ids `(B, L)`.
        channels: image channels, or the vocabulary size.
        grid: `(H, W)` in pixels, or `(L,)`.
        classes: size of the output's last axis; for "instances", classes of objects.
        output: "one" for logits `(B, classes)`, "per-token" for `(B, *grid, classes)`, "per-pixel" for
            `(B, h, w, classes)` of any `h <= H` and `w <= W`, which the task resizes to its labels (in
            training also a tuple of such logits: the answer, then those of auxiliary heads), "instances" for
            the boxes, masks and classes of the objects in each image.
        causal: whether seeing a later token would be cheating.
    """

    input: Literal["image", "tokens"]
    channels: int
    grid: tuple[int, ...]
    classes: int
    output: Output = "one"
    causal: bool = False


@dataclass(frozen=True)
class Metric:
    """The number that a task reports. Differences of numbers in % are in points."""

    name: str
    unit: str
    difference_unit: str
    higher_is_better: bool

    @property
    def direction(self) -> int:
        """+1 if higher is better, -1 if lower is."""
        return 1 if self.higher_is_better else -1


class Mixer(Protocol):
    """What a skeleton knows of the module in a block's slot; `mixers.base` says what each method does."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def init_state(self, batch_size: int, device: torch.device | None = None) -> MixerState: ...

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]: ...

    def no_weight_decay(self) -> set[str]: ...


class MixerFactory(Protocol):
    """Makes the token mixer of one block; what a skeleton receives instead of a mixer's name."""

    def __call__(self, dim: int, *, grid_rank: int, stage: int, layer: int) -> Mixer:
        """A module `(B, *grid, dim) -> (B, *grid, dim)`.

        Args:
            dim: channels handed to the mixer.
            grid_rank: 1 for sequences, 2 for images.
            stage: index of the stage, 0 in an isotropic backbone.
            layer: index of the block, counted over the whole backbone.
        """
