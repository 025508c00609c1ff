"""The whole mixer of Mamba (Gu & Dao, arXiv 2312.00752, section 3.4 and figure 3).

    u, z = W_in x,   y = W_out (SSM(silu(conv(u))) * silu(z))

`ssm` is the middle of it, conv -> SiLU -> SSM, for the gated blocks, which project and gate themselves. Here
the mixer does both, so its place is the block that does neither, `metaformer`. With an MLP or a mixture of
experts behind it that is a layer of Jamba (arXiv 2403.19887, which also has norms on Delta, B and C) or of
MoE-Mamba (arXiv 2401.04081); with neither it is a layer of Mamba.

Symbols beyond `mixers.base`: E expansion, R rank of the Delta projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import State, TokenMixer, as_grid, as_sequence
from mixers.conv import CausalConv, draw_as_torch
from mixers.directions import KernelSize, ScanMixer
from mixers.s6 import SelectiveScan
from mixers.scan_orders import scan_pattern

Expand = Annotated[int, Field(ge=1, le=64)]


class Mamba(TokenMixer):
    """Linear C -> 2 E C, then conv -> SiLU -> SSM of one half times SiLU of the other, linear E C -> C.

    An image is read in raster order, the convolution included: it is along the sequence. R is the width C
    over 16, rounded up, not that of the E C channels that are scanned. Everything starts as in Mamba's code
    of the mixer: the linear maps and the convolution as torch draws them, the SSM as `mixers.s6` says. (Its
    language models, and Vision Mamba, then divide the last map by the square root of the number of layers.)

    With `scan="bidirectional"` it is Vision Mamba's mixer (arXiv 2401.09417, algorithm 1): each way has its
    own convolution and SSM, and their mean is gated.

    Args:
        dim: C.
        grid_rank: 1 or 2.
        d_state: N.
        expand: E.
        kernel_size: of the convolution, which is causal along its way.
        scan: "forward" or "bidirectional".
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        d_state: Annotated[int, Field(ge=1, le=256)] = 16,
        expand: Expand = 2,
        kernel_size: KernelSize = 4,
        scan: Literal["forward", "bidirectional"] = "forward",
    ) -> None:
        super().__init__(dim, grid_rank)
        inner = expand * dim
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.ssm = ScanMixer(
            inner,
            1,  # an image, too, is a sequence here
            pattern=scan_pattern(scan, 1),
            conv="causal" if scan == "forward" else "per-pass",
            kernel_size=kernel_size,
            make_core=partial(SelectiveScan, inner, d_state, dt_rank=math.ceil(dim / 16)),
        )
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for module in self.ssm.modules():
            if isinstance(module, CausalConv):
                draw_as_torch(module)
        self.causal = self.ssm.causal

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(as_sequence(x)).chunk(2, dim=-1)  # (B, L, E C) each
        mixed: Tensor = self.out_proj(self.ssm(u) * F.silu(z))
        return as_grid(mixed, x.shape)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        return self.ssm.dependency_mask((math.prod(grid),))

    def macs(self, grid: Sequence[int]) -> int:
        """3 E C^2 per token, and the convolutions and SSMs."""
        length = math.prod(grid)
        linear = self.in_proj.weight.numel() + self.out_proj.weight.numel()
        return length * linear + self.ssm.macs((length,))

    def state_size(self, length: int) -> int | None:
        """E C N numbers, and the convolution's window."""
        return self.ssm.state_size(length) if self.grid_rank == 1 else None

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        return self.ssm.init_state(batch_size, device)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        u, z = self.in_proj(x).chunk(2, dim=-1)
        y, state = self.ssm.step(u, state)
        return self.out_proj(y * F.silu(z)), state

    def no_weight_decay(self) -> set[str]:
        return {f"ssm.{name}" for name in self.ssm.no_weight_decay()}
