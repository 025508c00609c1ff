"""What tasks with an answer for every pixel share: logits at the labels' size, and auxiliary heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

AUXILIARY_WEIGHT = 0.4  # PSPNet's (arXiv 1612.01105, section 3.3), and mmsegmentation's for UPerNet


def pixel_loss(outputs: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss of a model's answer, plus 0.4 times that of each auxiliary head.

    Args:
        outputs: as `TaskSpec.output` "per-pixel" says: logits, or a tuple of the answer's and the others'.
        loss: of the logits of one head.
    """
    answer, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    return loss(answer) + AUXILIARY_WEIGHT * sum(loss(logits) for logits in auxiliary)


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, h, w, classes) -> (B, *size, classes) in float32, bilinear."""
    channels_first = logits.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)
