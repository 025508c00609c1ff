"""Where an SSM's step sizes start: log-uniform in [0.001, 0.1] (Mamba, arXiv 2312.00752, section 3.6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DELTA_MIN, DELTA_MAX, DELTA_FLOOR = 1e-3, 1e-1, 1e-4


def initial_delta(size: int) -> Tensor:
    """(size,) step sizes, from the global generator."""
    span = math.log(DELTA_MAX) - math.log(DELTA_MIN)
    return torch.exp(torch.rand(size) * span + math.log(DELTA_MIN)).clamp(min=DELTA_FLOOR)


def inverse_softplus(delta: Tensor) -> Tensor:
    """b such that softplus(b) = delta."""
    return delta + torch.log(-torch.expm1(-delta))
