"""conv -> SiLU -> passes over the tokens: the shape that every recurrent mixer here has.

A *core* is what takes the place of the SSM: a map from sequence to sequence, u (B, L, C) -> (B, L, C),
causal by itself. `ScanMixer` puts it behind a convolution and leads it over the grid. Two such mixers differ
in the core alone.

    conv=symmetric   that of the `conv` mixer, shared by all passes: what is added to it is the core
    conv=causal      that of the `causal-conv` mixer, shared too. Under passes that go both ways it is not
                     mirrored for the way back, as in the first version of Vision Mamba's code
    conv=per-pass    each pass has its own, causal along its own way: as Vision Mamba (arXiv 2401.09417,
                     algorithm 1) and LocalMamba (arXiv 2403.09338) are defined, with kernel_size=4
    conv=none        no convolution

Where several passes visit a token, their outputs are averaged, in every pattern: so the scale of the
output does not depend on their number. (Vision Mamba averages. PlainMamba sums; VMamba sums and then
normalises; LocalMamba sums after an attention over the channels of each output. The norm and the attention
are not here.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers import backends
from mixers.backends import HasBackend
from mixers.base import State, TokenMixer, as_grid, as_sequence
from mixers.conv import CausalConv, DepthwiseConv
from mixers.identity import Identity
from mixers.scan_orders import ScanPattern, raster

Scan = Literal["forward", "bidirectional", "cross"]
Conv = Literal["symmetric", "causal", "per-pass", "none"]
KernelSize = Annotated[int, Field(ge=1)]


class ScanCore(nn.Module, HasBackend, ABC):
    """One pass over a sequence: causal, or from the last token to the first.

    Attributes:
        hidden_shape: shape of the state of one sequence.
    """

    hidden_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""

    @abstractmethod
    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One token: (B, C) and (B, *hidden_shape) -> (B, C) and the next state."""

    @abstractmethod
    def macs(self, length: int) -> int:
        """Multiply-accumulates of one sequence."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return set()

    def reads_channels_first(self, device: str) -> bool:
        """Whether its kernel on such a device wants channels before length in memory: mamba-ssm's scan does.

        A convolution in front then writes them so. Turned behind it instead, the gradients of the scan and of
        the linear maps beside it would meet in two layouts, in which adding them is slow.
        """
        return self.operation == "scan" and backends.chosen("scan", self.backend, device) == "mamba_ssm"


class ConvolvedPass(ScanCore):
    """conv -> SiLU -> core, all in the order of one pass.

    Args:
        dim: channels.
        kernel_size: of the convolution, which sees the token and what the pass has visited before it.
        make_core: makes the core.
    """

    def __init__(self, dim: int, kernel_size: int, make_core: Callable[[], ScanCore]) -> None:
        super().__init__()
        self.conv = CausalConv(dim, 1, kernel_size=kernel_size)
        self.core = make_core()
        self.hidden_shape = self.core.hidden_shape

    def forward(self, u: Tensor, *, reverse: bool = False) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        channels_first = self.core.reads_channels_first(u.device.type)
        convolved = self.conv.silu(u.flip(1) if reverse else u, channels_first)
        y: Tensor = self.core(convolved.flip(1) if reverse else convolved, reverse=reverse)
        return y

    def step(self, u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("a pass with a convolution of its own runs over whole sequences only")

    def macs(self, length: int) -> int:
        """Those of the convolution and of the core."""
        return self.conv.macs((length,)) + self.core.macs(length)

    def no_weight_decay(self) -> set[str]:
        return {f"core.{name}" for name in self.core.no_weight_decay()}


class ScanMixer(TokenMixer):
    """conv -> SiLU -> the mean over the passes of a pattern.

    Args:
        dim: channels.
        grid_rank: 1 or 2.
        pattern: the passes.
        conv: as in the module docstring.
        kernel_size: of the convolution.
        make_core: called once per pass, order by order, segment by segment, forward before backward.
        num_cores: how many cores there are; None for one per pass.

    Raises:
        ValueError: conv=per-pass with a single pass over a sequence.
    """

    scans: Sequence[ScanCore]  # an nn.ModuleList, whose type does not say what is in it

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        pattern: ScanPattern,
        conv: Conv,
        kernel_size: int,
        make_core: Callable[[], ScanCore],
        num_cores: int | None = None,
    ) -> None:
        super().__init__(dim, grid_rank)
        if conv == "per-pass" and grid_rank == 1 and pattern.passes == 1:
            raise ValueError(
                "conv=per-pass is for several passes; the one pass over a sequence has conv=causal"
            )
        self.pattern = pattern
        self.conv = _shared_conv(conv, dim, grid_rank, kernel_size)  # draws before the cores do
        self.convolved_before = conv != "per-pass"
        make = make_core if self.convolved_before else partial(ConvolvedPass, dim, kernel_size, make_core)
        num_cores = pattern.passes if num_cores is None else num_cores
        self.scans = nn.ModuleList(make() for _ in range(num_cores))  # type: ignore[assignment]
        self.causal = pattern == ScanPattern((raster,)) and self.conv.causal

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        if not causal:
            return {}
        kernel_size = CausalConv.place_defaults(grid_rank, causal)
        return {"scan": "forward", "conv": "causal", **kernel_size}

    def forward(self, x: Tensor) -> Tensor:
        u = as_sequence(self._convolve(x) if self.convolved_before else x)  # (B, L, C)
        return as_grid(self.run_passes(u, x.shape[1:-1]), x.shape)

    def _convolve(self, x: Tensor) -> Tensor:
        if not isinstance(self.conv, CausalConv):
            return F.silu(self.conv(x))
        return self.conv.silu(x, self.scans[0].reads_channels_first(x.device.type))

    def run_passes(self, u: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        cores = iter(self.scans)
        total: Tensor | None = None
        for make_order in self.pattern.orders:
            if make_order is raster:
                y = self._walk(u, cores)
            else:
                order = make_order(grid, u.device)
                y = order.unscan([self._walk(segment, cores) for segment in order.scan(u)])
            total = y if total is None else total + y
        assert total is not None
        return total / self.pattern.visits if self.pattern.visits > 1 else total

    def _walk(self, u: Tensor, cores: Iterator[ScanCore]) -> Tensor:
        """The next passes, over one segment (B, l, C), added up."""
        total: Tensor | None = None
        for reverse in self.pattern.directions:
            core = next(cores)
            if u.shape[1] > 0:  # else a phase of a grid smaller than the step
                y = core(u, reverse=reverse)
                total = y if total is None else total + y
        return u if total is None else total

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        through_conv = self.conv.dependency_mask(grid)
        return (self.pattern.visible(grid).float() @ through_conv.float()) > 0

    def macs(self, grid: Sequence[int]) -> int:
        """The convolution's and those of every pass."""
        lengths = [length for make in self.pattern.orders for length in make(grid, "cpu").segments]
        lengths = [length for length in lengths for _ in self.pattern.directions]
        passes = zip(self.scans, lengths, strict=True)
        return self.conv.macs(grid) + sum(core.macs(length) for core, length in passes)

    def state_size(self, length: int) -> int | None:
        """The core's state and the convolution's window."""
        if not self.causal or self.grid_rank != 1:
            return None
        window = self.conv.state_size(length)
        return None if window is None else window + torch.Size(self.scans[0].hidden_shape).numel()

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        hidden = torch.zeros(batch_size, *self.scans[0].hidden_shape, device=device)
        return hidden, *self.conv.init_state(batch_size, device)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        convolved, window = self.conv.step(x, state[1:])
        y, hidden = self.scans[0].step(F.silu(convolved), state[0])
        return y, (hidden, *window)

    def no_weight_decay(self) -> set[str]:
        return {f"scans.{i}.{name}" for i, core in enumerate(self.scans) for name in core.no_weight_decay()}


def _shared_conv(conv: Conv, dim: int, grid_rank: int, kernel_size: int) -> TokenMixer:
    """The convolution before the passes, which they share."""
    if conv == "symmetric":
        return DepthwiseConv(dim, grid_rank, kernel_size=kernel_size)
    if conv == "causal":
        return CausalConv(dim, grid_rank, kernel_size=kernel_size)
    return Identity(dim, grid_rank)
