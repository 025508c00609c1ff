"""How and where a trial runs; nothing here changes what is asked of it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Runtime:
    """What a user may choose about the machine.

    Attributes:
        device: "auto", "cpu" or "cuda".
        threads: of one trial. One by default: more would change the order of sums, and so the bits.
        backend: of the scans and the causal convolution; "auto" takes the fastest that runs, and so does
            what has none of that name.
        checkpoint_every: seconds between two checkpoints.
        keep_weights: of a finished trial, for `look` and `demo`.
        micro_batch: examples per forward and backward pass, whose gradients are summed to those of the
            batch; None for all at once. Order, augmentation, mixup, stochastic depth and dropout are drawn
            for the whole batch, so that this changes the rounding only. A head with BatchNorm and a balanced
            mixture of experts, which look at the whole batch, refuse; Mask R-CNN samples its boxes part by
            part.
        compile: run training steps through `torch.compile`.
        channels_last: keep images and convolutions in channels-last memory.
        log_every: steps between two lines of live metrics.
        tensorboard: whether to write the live metrics for TensorBoard, too.
        loaders: processes that read and augment the data of one trial, if that lies in files; 0 for none
            beside the one that trains.
    """

    device: str = "auto"
    threads: int = 1
    backend: str = "auto"
    checkpoint_every: float = 60.0
    keep_weights: bool = True
    micro_batch: int | None = None
    compile: bool = False
    channels_last: bool = False
    log_every: int = 50
    tensorboard: bool = False
    loaders: int = 0


@dataclass(frozen=True)
class Placement:
    """Where trials go.

    Attributes:
        executor: who starts them.
        workers: trials at once; None for as many as there is room for.
        gpus_per_trial: 1 or a share of one; None for one where there are GPUs.
        slurm: options of sbatch by their long names.
    """

    executor: Literal["local", "ray", "slurm"] = "local"
    workers: int | None = None
    gpus_per_trial: float | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)
