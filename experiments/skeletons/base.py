"""What every skeleton has: options that resolve without building, a head, and its own initialisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.interface import MixerFactory, Output, TaskSpec
from experiments.skeletons.blocks import (
    LAYER_SCALE,
    NORM_EPS,
    Block,
    BlockName,
    BlockOptions,
    mixer_slots,
    preset,
)
from experiments.skeletons.dense import PerPixel, UPerNet
from experiments.skeletons.mask_rcnn import MaskRCNN, initial_std
from experiments.skeletons.moe import MixtureOfExperts
from mixers.registry import InputError

Readout = Literal["mean", "last", "middle"]
HeadName = Literal["mlp", "linear", "upernet", "fpn", "mask-rcnn", "mask-rcnn-slim"]
Init = Literal["fixed", "fan-in", "fixed-all"]
PatternOver = Literal["stage", "layer"]
DropRate = Annotated[float, Field(ge=0, lt=1)]

HEADS: Mapping[Output, tuple[HeadName, ...]] = {
    "one": ("mlp", "linear"),
    "per-pixel": ("linear", "upernet", "fpn"),
    "instances": ("mask-rcnn", "mask-rcnn-slim"),
}
"""Heads by the kind of answer."""

INIT_STD = 0.02  # MambaOut's and ViT's, meant for hundreds of channels
POSITION_STD = 0.5  # with init "fan-in", whose tokens have unit scale: attention must be able to read them


class Skeleton(nn.Module, ABC):
    """A backbone and a head around token mixers that it receives from a factory and never looks into.

    An entry of the registry is a subclass whose class attributes are its size. Options that a user left
    out come from the block's preset and from the class; `option_defaults` says them without building.
    """

    block_name: ClassVar[BlockName] = "gated"
    drop_path_rate: ClassVar[float]
    heads: ClassVar[Mapping[Output, HeadName]]
    """The kinds of task that it takes, and the head of each unless another is asked for."""
    dense_width: ClassVar[int] = 512  # channels of the heads "upernet" and "fpn"
    init_name: ClassVar[Init] = "fixed"
    pattern_over: ClassVar[PatternOver] = "layer"  # what several mixers alternate over

    def __init__(self, init: Init | None) -> None:
        super().__init__()
        self.init = init or self.init_name
        self.stage_norms: nn.ModuleList | None = None  # of the maps that dense heads read

    @classmethod
    def option_defaults(
        cls, block: str | None = None, output: Output = "one", mlp: str | None = None
    ) -> dict[str, Any]:
        """The values that options have when left out, where they depend on block, its MLP, size or task."""
        of_the_size = {"drop_path": cls.drop_path_rate, "head": cls.heads.get(output), "init": cls.init_name}
        return {**preset(block or cls.block_name, mlp), **of_the_size}

    def add_head(self, task: TaskSpec, dims: Sequence[int], readout: Readout, name: HeadName | None) -> None:
        """Add what answers the task and, if it is a dense one, a LayerNorm for each map that it reads.

        Args:
            task: what is asked.
            dims: channels of the maps of `forward_stages`.
            readout: of a task with one answer.
            name: of the head; None for that of the class.

        Raises:
            InputError: the head or the readout does not suit the task.
        """
        name = name or self.heads[task.output]
        if name not in HEADS[task.output]:
            raise InputError(
                f"head {name} does not suit this task, whose output is {task.output}: choose "
                f"{' or '.join(HEADS[task.output])}"
            )
        if task.output == "one":
            self.head: nn.Module = Head(dims[-1], task.classes, readout, name)
            return
        if readout != "mean":
            raise InputError(f"readout {readout} has no meaning where every pixel has an answer of its own")
        self.stage_norms = nn.ModuleList(nn.LayerNorm(dim, eps=NORM_EPS) for dim in dims)
        if task.output == "instances":
            self.head = MaskRCNN(dims, task, slim=name == "mask-rcnn-slim")
        elif name == "linear":
            self.head = PerPixel(dims, task.classes)
        else:
            self.head = UPerNet(dims, task.classes, self.dense_width, pooling=name == "upernet")

    @property
    def detector(self) -> MaskRCNN | None:
        """The head, if it is one that finds objects; a skeleton with an answer of its own has no head."""
        head = self._modules.get("head")
        return head if isinstance(head, MaskRCNN) else None

    def build_blocks(
        self,
        mixer: MixerFactory,
        options: BlockOptions,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        grid_rank: int,
        drop_path: float | None,
    ) -> list[list[Block]]:
        """The blocks of every stage, given how many each has and of how many channels.

        The rate of stochastic depth grows linearly from 0 at the first block to `drop_path` at the last; None
        stands for that of the class.
        """
        last_rate = self.drop_path_rate if drop_path is None else drop_path
        count = sum(depths)
        with_experts = options.experts.layers(count)
        layers = iter(range(count))
        return [
            [
                options.build(
                    dim,
                    partial(mixer, grid_rank=grid_rank, stage=stage, layer=layer),
                    last_rate * layer / max(count - 1, 1),
                    has_experts=layer in with_experts,
                )
                for layer in islice(layers, depth)
            ]
            for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True))
        ]

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """The task's input -> (B, *grid, C)."""

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The task's input -> the output of every stage, the finest first; (B, h, w, C) each on images."""
        return [self.forward_features(x)]

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Images (B, channels, H, W) -> the maps that dense heads read: `forward_stages`, each normalised.

        Raises:
            TypeError: the skeleton was built for a task that is not dense.
        """
        if self.stage_norms is None:
            raise TypeError("this model was built for a task with one answer; it has no pyramid of features")
        return [norm(stage) for norm, stage in zip(self.stage_norms, self.forward_stages(x), strict=True)]

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, *grid, C) -> logits: (B, classes), or (B, *grid, classes) with an answer per token."""
        return self.head(features)

    def forward(self, x: Any, targets: Any = None) -> Any:
        """The task's input -> what its `TaskSpec.output` says.

        Args:
            x: the task's input; for "instances" a list of images (channels, H, W).
            targets: for "instances" in training, where losses by name are returned.
        """
        if self.detector is not None:
            return self.detector(self.forward_pyramid, x, targets)
        if self.stage_norms is not None:
            return self.head(self.forward_pyramid(x))
        return self.forward_head(self.forward_features(x))

    def forward_nominal(self, x: Tensor) -> None:
        """The work that is counted as the cost of a batch (B, channels, H, W) or (B, L)."""
        if self.detector is not None:
            self.detector.nominal(self.forward_pyramid(x))
        else:
            self(x)

    def auxiliary_loss(self) -> Tensor | float:
        """What training adds to the task's loss: the balance of all mixtures of experts, summed.

        It belongs to the last forward pass: 0.0 if that was not in training, if it was taken before, or if
        there are no mixtures.
        """
        mixtures = (module for module in self.modules() if isinstance(module, MixtureOfExperts))
        return sum((mixture.take_balance_loss() for mixture in mixtures), start=0.0)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay must leave alone, by their full names: what the mixers name."""
        return {f"{slot}.{name}" for slot, mixer in mixer_slots(self) for name in mixer.no_weight_decay()}

    def init_weights(self, generator_for: Callable[[str], torch.Generator]) -> None:
        """Draw the skeleton's own parameters: weights from a normal, biases 0.

        With init "fixed" the standard deviation is 0.02 (MambaOut); with "fan-in" it is 1 / sqrt(inputs),
        which keeps the scale of activations at any width: at a few dozen channels 0.02 lets them vanish.
        Positions then get a scale to match. Mask R-CNN has scales of its own.
        Norms and LayerScale keep the constants they were built with, and a mixer's parameters are its own;
        but "fixed-all" draws the weights of all linear layers as "fixed" does, those inside the mixers too,
        with which VMamba's released code replaces the initial projection of Delta.
        Every tensor has its own generator, so that it does not depend on what else is in the model. Nothing
        happens on the meta device.

        Args:
            generator_for: the generator for a parameter's name.
        """
        slots = tuple(f"{slot}." for slot, _ in mixer_slots(self))
        for name, parameter in self.named_parameters():
            if parameter.is_meta or _is_constant(self, name):
                continue
            if name.startswith(slots) and not (self.init == "fixed-all" and _is_linear_weight(self, name)):
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=self._std(name), generator=generator_for(name))

    def _std(self, name: str) -> float:
        if self.detector is not None and name.startswith("head."):
            return initial_std(name.removeprefix("head."), self.get_parameter(name))
        if self.init != "fan-in":
            return INIT_STD
        return POSITION_STD if name == "pos_embed" else self.get_parameter(name)[0].numel() ** -0.5


def _is_constant(model: nn.Module, parameter: str) -> bool:
    module = parameter.rpartition(".")[0]
    return module.endswith(f".{LAYER_SCALE}") or isinstance(
        model.get_submodule(module), nn.LayerNorm | _BatchNorm
    )


def _is_linear_weight(model: nn.Module, parameter: str) -> bool:
    module, _, name = parameter.rpartition(".")
    return name == "weight" and isinstance(model.get_submodule(module), nn.Linear)


def require_images(task: TaskSpec, outputs: Collection[Output]) -> None:
    """What a skeleton that reads images checks first.

    Args:
        task: that it is built for.
        outputs: kinds of answers that the skeleton has heads for.

    Raises:
        InputError: any other input or output.
    """
    if task.input != "image":
        raise InputError(
            f"this skeleton reads images, but the task's input is {task.input!r}: --skeleton causal-lm reads "
            "tokens; a study of such tasks (--study mqar-small) brings it along"
        )
    if task.output not in outputs:
        raise InputError(
            f"this skeleton answers {' or '.join(outputs)}, but the task asks for {task.output!r}"
        )


class Head(nn.Module):
    """Readout, norm and classifier: (B, *grid, C) -> (B, classes).

    With an MLP it is MambaOut's head, norm -> Linear(C, 4 C) -> GELU -> norm -> Linear.

    Args:
        dim: C.
        classes: width of the output; 0 for no classifier, as in timm, and (B, features) as the output.
        readout: the mean of all tokens, or the last or the middle one in raster order.
        head: "mlp" or "linear".
    """

    def __init__(self, dim: int, classes: int, readout: Readout, head: HeadName) -> None:
        super().__init__()
        self.readout = readout
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pre_logits = nn.Sequential()
        if head == "mlp":
            self.pre_logits.add_module("fc", nn.Linear(dim, 4 * dim))
            self.pre_logits.add_module("act", nn.GELU())
            self.pre_logits.add_module("norm", nn.LayerNorm(4 * dim, eps=NORM_EPS))
        features = 4 * dim if head == "mlp" else dim
        self.fc = nn.Linear(features, classes) if classes else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads: (B, *grid, C) -> (B, features)."""
        token = read_out(x.flatten(1, -2), self.readout)  # (B, C)
        return self.pre_logits(self.norm(token))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def read_out(tokens: Tensor, readout: Readout) -> Tensor:
    """(B, L, C) -> (B, C)."""
    if readout == "mean":
        return tokens.mean(1)
    return tokens[:, -1 if readout == "last" else tokens.shape[1] // 2]
