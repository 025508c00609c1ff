"""What it takes to divide a batch: among processes, or into parts that fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.ranks import Ranks
from experiments.runtime import Runtime
from experiments.skeletons.base import Skeleton
from experiments.skeletons.moe import MixtureOfExperts
from experiments.tasks.base import Batch, TaskData, chosen, share
from experiments.tasks.reading import FilesRead
from experiments.trial import Recipe
from mixers.registry import InputError


def check_share(recipe: Recipe, ranks: Ranks) -> None:
    """Every rank needs as many examples, and both of each pair that is mixed.

    Raises:
        InputError: they cannot have them.
    """
    parts = ranks.count * (2 if recipe.mixup or recipe.cutmix else 1)
    if recipe.batch_size % parts:
        raise InputError(
            f"a batch of {recipe.batch_size} cannot be divided among {ranks.count} processes"
            f"{', in pairs for mixup' if parts > ranks.count else ''}: --train.batch-size must be a multiple "
            f"of {parts}"
        )


def own_share(batch: Batch, data: TaskData, ranks: Ranks) -> Batch:
    """This rank's examples of a batch of these data; of files only those have been read."""
    if ranks.count == 1 or isinstance(data, FilesRead):
        return batch
    places = share(len(batch.examples), ranks.rank, ranks.count)
    return Batch(*(chosen(each, places) for each in batch))


def with_whole_batches(
    model: Skeleton, recipe: Recipe, runtime: Runtime, ranks: Ranks, device: torch.device
) -> Skeleton:
    """The model, so that a batch means the same to it though it is divided.

    BatchNorms see all of it; what is noise inside the model is drawn for all of it, unless it is not taken in
    parts: then the model stays as it is.

    Raises:
        InputError: it would not mean the same.
    """
    share = recipe.batch_size // ranks.count
    normalises = any(isinstance(module, _BatchNorm) for module in model.modules())
    if (runtime.micro_batch or share) < share:
        if normalises:
            raise _indivisible("a head of this model normalises over the batch", runtime)
        if any(isinstance(module, MixtureOfExperts) and module.balance > 0 for module in model.modules()):
            raise _indivisible("a mixture of experts balances their load over the batch", runtime)
        _draw_for_whole_batches(model, share)
    if ranks.count == 1 or not normalises:
        return model
    if device.type != "cuda":
        raise InputError("a head of this model normalises over the batch, which processes share on GPUs only")
    shared: Skeleton = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return shared


def _indivisible(why: str, runtime: Runtime) -> InputError:
    return InputError(
        f"{why}, which {runtime.micro_batch} examples at a time would change: it takes more memory, more "
        "processes or a smaller --train.batch-size"
    )


class WholeBatchNoise(nn.Module):
    """Stochastic depth or dropout of a batch that comes in parts: what would be drawn for all of it at once.

    Drawn part by part it would be other noise, and no longer the same for two arms of which one has to take
    its batches in smaller parts.

    Args:
        noise: multiplies its input by random factors.
        examples: of the whole batch.

    Attributes:
        part: of the batch that comes next, the first of them first; None for a batch that comes whole.
    """

    def __init__(self, noise: DropPath | nn.Dropout, examples: int) -> None:
        super().__init__()
        self.noise = noise
        self.part: slice | None = None
        self._examples = examples
        self._factors = torch.empty(0)

    @torch.compiler.disable  # which would compile it anew for every part
    def forward(self, x: Tensor) -> Tensor:
        if self.part is None or not self.training:
            noisy: Tensor = self.noise(x)
            return noisy
        if self.part.start == 0:
            each = (1,) * (x.ndim - 1) if isinstance(self.noise, DropPath) else x.shape[1:]
            self._factors = self.noise(x.detach().new_ones(self._examples, *each))
        return x * self._factors[self.part]


def _draw_for_whole_batches(model: nn.Module, examples: int) -> None:
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, DropPath) or (isinstance(module, nn.Dropout) and module.p > 0):
                setattr(parent, name, WholeBatchNoise(module, examples))


@contextmanager
def noise_of(part: slice, noises: Sequence[WholeBatchNoise]) -> Iterator[None]:
    """Within it the model gets a part of a batch."""
    for noise in noises:
        noise.part = part
    try:
        yield
    finally:
        for noise in noises:
            noise.part = None
