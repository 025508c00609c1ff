"""How and where a trial runs; nothing here changes what is asked of it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Runtime:
    """What a user may choose about the machine.

    Attributes:
        device: "auto", "cpu" or "cuda".
        threads: of one trial. One by default: more would change the order of sums, and so the bits.
        backend: of the selective scan; "auto" takes the fastest that runs.
        checkpoint_every: seconds between two checkpoints.
        keep_weights: of a finished trial, for `look` and `demo`.
        micro_batch: examples per forward and backward pass, whose gradients are summed to those of the
            batch; None for all at once. Order, augmentation and mixup are drawn for the whole batch, so
            that this changes the rounding, and the noise inside the model (stochastic depth).
        compile: run training steps through `torch.compile`.
        channels_last: keep images and convolutions in channels-last memory.
    """

    device: str = "auto"
    threads: int = 1
    backend: str = "auto"
    checkpoint_every: float = 20.0
    keep_weights: bool = True
    micro_batch: int | None = None
    compile: bool = False
    channels_last: bool = False
