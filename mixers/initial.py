"""Initial values that take arithmetic, and where an SSM's step sizes start.

Step sizes are log-uniform in [0.001, 0.1] (Mamba, arXiv 2312.00752, section 3.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

DELTA_MIN, DELTA_MAX = 1e-3, 1e-1


def parameter(values: Callable[[], Tensor]) -> nn.Parameter:
    """A parameter on the device that the model is built on, its values computed on the CPU.

    On the meta device, where models are built to be counted, most arithmetic makes torch import its compiler:
    that takes longer than the count.
    """
    with torch.device("cpu"):
        computed = values()
    return nn.Parameter(torch.empty(computed.shape, dtype=computed.dtype).copy_(computed))


def initial_delta(size: int) -> Tensor:
    """(size,) step sizes, from the global generator."""
    span = math.log(DELTA_MAX) - math.log(DELTA_MIN)
    return torch.exp(torch.rand(size) * span + math.log(DELTA_MIN))


def inverse_softplus(delta: Tensor) -> Tensor:
    """b such that softplus(b) = delta."""
    return delta + torch.log(-torch.expm1(-delta))
