"""What it takes to divide a batch: among processes, or into parts that fit the memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.ranks import Ranks
from experiments.runtime import Runtime
from experiments.skeletons.base import Skeleton
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


def with_whole_batches(
    model: Skeleton, recipe: Recipe, runtime: Runtime, ranks: Ranks, device: torch.device
) -> Skeleton:
    """The model, so that its BatchNorms, if it has any, see all of a batch though it is divided.

    Raises:
        InputError: they cannot.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    share = recipe.batch_size // ranks.count
    if (runtime.micro_batch or share) < share:
        raise InputError(
            f"a head of this model normalises over the batch, which {runtime.micro_batch} examples at a time "
            "would change: it takes more memory, more processes or a smaller --train.batch-size"
        )
    if ranks.count == 1:
        return model
    if device.type != "cuda":
        raise InputError("a head of this model normalises over the batch, which processes share on GPUs only")
    shared: Skeleton = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return shared
