"""Mamba's selective state space model as a token mixer (S6; Gu & Dao, arXiv 2312.00752).

In MambaOut's words (arXiv 2405.07992, eq. 10) the mixer of a Mamba block is SSM(act(Conv(Z))), where
the mixer of a Gated CNN block is Conv(Z). `SelectiveSSM` is built from the very convolution of the
`conv` mixer, on the same channels, so that `ssm` minus `conv` is act and SSM and nothing more. Gate,
projections in and out, and the norm belong to the block.

In a block that expands by 2 it differs from Mamba in two ways, and the mixer `mamba` in none. The rank of the
Delta projection follows from the mixer's own channels, so it is twice Mamba's, which follows from the model's
width. And the convolution starts as MambaOut's (std 0.02), 14 times smaller than Mamba's, so the scan starts
small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from mixers.continuous_scan import ContinuousScan
from mixers.directions import Conv, KernelSize, ScanMixer
from mixers.s6 import Selective, SelectiveScan
from mixers.scan_orders import scan_pattern

DState = Annotated[int, Field(ge=1, le=256)]
Scan = Literal[
    "forward", "bidirectional", "cross", "local", "vertical", "vertical-slip", "continuous", "atrous"
]


class SelectiveSSM(ScanMixer):
    """conv -> SiLU -> selective scan(s).

    With `scan="bidirectional"` two scans with their own parameters run over the same convolved input,
    one each way, and their outputs are averaged (Vision Mamba, arXiv 2401.09417, is that with
    conv=per-pass). It is the default on images; causal sequence tasks get the forward scan and Mamba's
    causal convolution of width 4. The other patterns are in `mixers.scan_orders`; every pass has its own
    parameters, except those of "continuous" (`mixers.continuous_scan`).

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        d_state: N, state size per channel.
        scan: a pattern; on sequences "forward" or "bidirectional".
        conv: "symmetric", "causal", "per-pass" or "none" (`mixers.directions`).
        kernel_size: of the convolution; odd with conv="symmetric", and with "causal" on images.
        selective: which of Delta, B and C depend on the input; the rest is constant (`mixers.s6`).
        window: side of the windows; scan="local" needs it.
        atrous_step: distance of the rows and columns of a phase; scan="atrous" needs it.
        raster_params: reproduce a slip in the code of PlainMamba, for scan="continuous"; there is another
            that is not reproduced (`mixers.continuous_scan`).

    Raises:
        ValueError: `scan` does not fit the grid, or has too many options or too few.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        d_state: DState = 16,
        scan: Scan = "bidirectional",
        conv: Conv = "symmetric",
        kernel_size: KernelSize = 7,
        selective: Selective = "all",
        window: Annotated[int, Field(ge=1)] | None = None,
        atrous_step: Annotated[int, Field(ge=2, le=8)] | None = None,
        raster_params: bool = False,
    ) -> None:
        if raster_params and scan != "continuous":
            raise ValueError(f"raster_params belongs to scan=continuous, not to scan={scan}")
        if conv == "per-pass" and scan == "continuous":
            raise ValueError(
                "conv=per-pass does not go with scan=continuous, whose passes share all they have"
            )
        make_core: Callable[[], SelectiveScan] = partial(SelectiveScan, dim, d_state, selective=selective)
        if scan == "continuous":
            make_core = partial(
                ContinuousScan, dim, d_state, selective=selective, raster_params=raster_params
            )
        super().__init__(
            dim,
            grid_rank,
            pattern=scan_pattern(scan, grid_rank, window=window, atrous_step=atrous_step),
            conv=conv,
            kernel_size=kernel_size,
            make_core=make_core,
            num_cores=1 if scan == "continuous" else None,
        )

    def run_passes(self, u: Tensor, grid: Sequence[int]) -> Tensor:
        core = self.scans[0]
        return core.run_snakes(u, grid) if isinstance(core, ContinuousScan) else super().run_passes(u, grid)

    def macs(self, grid: Sequence[int]) -> int:
        core = self.scans[0]
        if isinstance(core, ContinuousScan):
            return self.conv.macs(grid) + core.macs(grid[0] * grid[1])
        return super().macs(grid)
