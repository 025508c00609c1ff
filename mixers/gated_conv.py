"""A convolution with a gate of its own, the mixer of gated convolutional networks.

    y = W_o (conv(W_v x) * act(W_g x))

Dauphin et al. (arXiv 1612.08083, equation 1) multiply a convolution by the sigmoid of another one. Here, as
in Hyena (Poli et al., arXiv 2302.10866) but with a short kernel, the value's convolution is depthwise, that
of the `conv` or `causal-conv` mixer, and the gate sees its own token only. It differs from `conv` in a Gated
CNN block in that the gate belongs to the mixer: it is there in a MetaFormer block too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import State, TokenMixer
from mixers.conv import CausalConv, DepthwiseConv

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
}


class GatedConv(TokenMixer):
    """Value and gate by a linear map C -> 2 C, depthwise convolution of the value, product, linear map.

    Args:
        dim: C.
        grid_rank: 1 or 2.
        conv: "symmetric" (that of the `conv` mixer) or "causal" (that of `causal-conv`, the default on causal
            tasks).
        kernel_size: of the convolution; odd, except for a causal convolution on a sequence. The default is 7,
            and 4 on a causal sequence task.
        act: of the gate.

    Raises:
        ValueError: a `kernel_size` that the convolution does not take.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        conv: Literal["symmetric", "causal"] = "symmetric",
        kernel_size: Annotated[int, Field(ge=1)] = 7,
        act: Literal["sigmoid", "silu", "gelu"] = "sigmoid",
    ) -> None:
        super().__init__(dim, grid_rank)
        convolution = DepthwiseConv if conv == "symmetric" else CausalConv
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.conv: TokenMixer = convolution(dim, grid_rank, kernel_size=kernel_size)
        self.act = ACTIVATIONS[act]
        self.out_proj = nn.Linear(dim, dim)
        self.causal = self.conv.causal

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        return {"conv": "causal", **CausalConv.place_defaults(grid_rank, causal)} if causal else {}

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(self.conv(value) * self.act(gate))

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return self.conv.dependency_mask(grid)

    def macs(self, grid: Sequence[int]) -> int:
        """3 C^2 per token, and the convolution."""
        return 3 * math.prod(grid) * self.dim**2 + self.conv.macs(grid)

    def state_size(self, length: int) -> int | None:
        """That of the convolution."""
        return self.conv.state_size(length)

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        return self.conv.init_state(batch_size, device)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        convolved, state = self.conv.step(value, state)
        return self.out_proj(convolved * self.act(gate)), state
