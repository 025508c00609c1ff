"""Gated linear attention (GLA; Yang et al., arXiv 2312.06635): linear attention that learns to forget.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t / sqrt(K),   a_t = sigmoid(W_2 W_1 x_t + b)^(1/16)

with a decay for every key channel. The output is normalised per head, as in the paper, in place of linear
attention's denominator. K is the number of key channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixers.base import State, TokenMixer, as_grid, as_sequence, full_mask, raster_causal_mask
from mixers.heads import HeadDim
from mixers.linear_recurrence import linear_recurrence, linear_recurrence_step

GATE_RANK = 16
GATE_TEMPERATURE = 16
NORM_EPS = 1e-5


class DecayGate(nn.Module):
    """(..., C) -> log a (..., keys): a logsigmoid of low rank over the temperature."""

    def __init__(self, dim: int, keys: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, GATE_RANK, bias=False)
        self.up = nn.Linear(GATE_RANK, keys)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(self.down(x))
        # in float32: log a of a decay near 1 is smaller than what bfloat16 has there
        return F.logsigmoid(gate.to(torch.promote_types(gate.dtype, torch.float32))) / GATE_TEMPERATURE


class GatedLinearAttention(TokenMixer):
    """GLA of one direction or of both.

    With `scan="bidirectional"` the same queries, keys and values are read both ways, each way with a gate
    of its own, and the outputs are averaged before the norm (direction-wise gating of ViG, Liao et al.,
    arXiv 2405.18425). It is the default except on causal tasks.

    Args:
        dim: channels.
        grid_rank: 1 or 2; an image is read in raster order.
        head_dim: value channels per head; the number of heads is `dim // head_dim`, at least 1.
        expand_k: key channels per value channel, half in the paper; rounded down to whole ones, at least 1.
        scan: "forward", or "bidirectional".
        output_gate: multiply the normalised output by swish(W x), as the paper's layer does; off where the
            block brings a gate of its own.
    """

    def __init__(
        self,
        dim: int,
        grid_rank: int,
        *,
        head_dim: HeadDim = 32,
        expand_k: Annotated[float, Field(gt=0)] = 0.5,
        scan: Literal["forward", "bidirectional"] = "bidirectional",
        output_gate: bool = False,
    ) -> None:
        super().__init__(dim, grid_rank)
        self.head_dim = min(head_dim, dim)
        self.key_dim = max(1, int(expand_k * self.head_dim))
        self.num_heads = dim // self.head_dim
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.head_dim
        self.widths = (keys, keys, values)
        directions = 2 if scan == "bidirectional" else 1
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.gates = nn.ModuleList(DecayGate(dim, keys) for _ in range(directions))
        self.norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS)
        self.output_gate = nn.Linear(dim, values, bias=False) if output_gate else None
        self.proj = nn.Linear(values, dim, bias=False)
        self.causal = scan == "forward"

    @classmethod
    def place_defaults(cls, grid_rank: int, causal: bool) -> dict[str, Any]:
        return {"scan": "forward"} if causal else {}

    def forward(self, x: Tensor) -> Tensor:
        tokens = as_sequence(x)
        q, k, v = self._split_heads(tokens)
        o = linear_recurrence(q, k, v, self._log_decay(tokens, 0))  # (B, heads, L, head_dim)
        if not self.causal:
            log_decay = self._log_decay(tokens, 1)
            back = linear_recurrence(*(each.flip(2) for each in (q, k, v, log_decay)))
            o = (o + back.flip(2)) / 2
        return as_grid(self._merge_heads(o.transpose(1, 2), tokens), x.shape)

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, C) -> q, k (B, heads, L, K) and v (B, heads, L, head_dim); q is scaled."""
        parts = self.qkv(tokens).split(self.widths, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return q * self.key_dim**-0.5, k, v

    def _log_decay(self, tokens: Tensor, direction: int) -> Tensor:
        """(B, L, C) -> (B, heads, L, K)."""
        return self.gates[direction](tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _merge_heads(self, o: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, heads, head_dim) and the input (B, L, C) -> (B, L, C)."""
        normed = F.rms_norm(o, (self.head_dim,), self.norm.weight.to(o.dtype), NORM_EPS)
        mixed = normed.flatten(2).to(tokens.dtype)
        if self.output_gate is not None:
            mixed = mixed * F.silu(self.output_gate(tokens))
        return self.proj(mixed)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        return raster_causal_mask(length) if self.causal else full_mask(length)

    def macs(self, grid: Sequence[int]) -> int:
        """Linear maps, and 3 MACs per (token, key, value) and direction: decay, input, readout.

        That is the recurrence; what is computed, in chunks, is more.
        """
        linear = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        recurrence = 3 * len(self.gates) * self.num_heads * self.key_dim * self.head_dim
        return math.prod(grid) * (linear + recurrence)

    def state_size(self, length: int) -> int | None:
        """Per head K x head_dim numbers."""
        if not self.causal or self.grid_rank == 2:
            return None
        return self.num_heads * self.key_dim * self.head_dim

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        return (torch.zeros(batch_size, self.num_heads, self.key_dim, self.head_dim, device=device),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        token = x[:, None]
        q, k, v = (each[:, :, 0] for each in self._split_heads(token))
        log_decay = self._log_decay(token, 0)[:, :, 0]
        o, S = linear_recurrence_step(q, k, v, state[0].to(log_decay), log_decay)
        return self._merge_heads(o[:, None], token)[:, 0], (S,)

    def no_weight_decay(self) -> set[str]:
        """The gates' biases, which say how long the memory is."""
        return {f"gates.{direction}.up.bias" for direction in range(len(self.gates))}
