"""Linear attention, fully visible or causal (Katharopoulos et al., arXiv 2006.16236).

    y_i = (sum_j phi(k_j) v_j^T)^T phi(q_i) / (sum_j phi(k_j))^T phi(q_i),   phi(x) = elu(x) + 1

over all j, or over j <= i. With RoPE the queries and keys of the numerator are turned, those of the
denominator are not, so that it stays positive (RoFormer, arXiv 2104.09864, equation 19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.base import State, as_grid, full_mask, full_precision, raster_causal_mask
from mixers.heads import MultiHeadMixer
from mixers.linear_recurrence import linear_recurrence, linear_recurrence_step
from mixers.rope import rotary_angles, rotate

LEAST_DENOMINATOR = 1e-30  # far below any that matters, far above where its inverse overflows


class LinearAttention(MultiHeadMixer):
    """Attention with phi(q)^T phi(k) in place of exp(q^T k / sqrt(head_dim)): linear in the length.

    Options are those of `MultiHeadMixer`.
    """

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        q, k, v = self._features(x)
        turned = self.turn(q, grid), self.turn(k, grid)
        mixed = linear_attention((q, k), turned, v, causal=self.causal)  # (B, heads, L, head_dim)
        return as_grid(self.merge_heads(mixed.to(x.dtype)), x.shape)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, *grid, C) -> phi(q), phi(k), v (B, heads, L, head_dim), in float32 or wider for the sums."""
        q, k, v = self.split_heads(x)
        dtype = torch.promote_types(q.dtype, torch.float32)
        return elu_plus_one(q.to(dtype)), elu_plus_one(k.to(dtype)), v.to(dtype)

    def dependency_mask(self, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        return raster_causal_mask(length) if self.causal else full_mask(length)

    def macs(self, grid: Sequence[int]) -> int:
        """4 L C D + 2 L D head_dim + L D: projections, numerator, denominator.

        That is the recurrence; the causal form, computed in chunks, does somewhat more.
        """
        return self.projection_macs(grid) + math.prod(grid) * self.attention_dim * (2 * self.head_dim + 1)


class CausalLinearAttention(LinearAttention):
    """`LinearAttention` in which token i sees tokens 0..i (raster order on an image)."""

    causal = True

    def state_size(self, length: int) -> int | None:
        """Per head the head_dim x head_dim numbers of the numerator and head_dim of the denominator."""
        return self.attention_dim * (self.head_dim + 1) if self.grid_rank == 1 else None

    def init_state(self, batch_size: int, device: torch.device | None = None) -> State:
        if self.state_size(1) is None:
            return super().init_state(batch_size, device)
        numerator = torch.zeros(batch_size, self.num_heads, self.head_dim, self.head_dim, device=device)
        return numerator, torch.zeros(batch_size, self.num_heads, self.head_dim, device=device)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.state_size(1) is None:
            return super().step(x, state)
        q, k, v = (each[:, :, 0] for each in self._features(x[:, None]))  # (B, heads, head_dim)
        S, z = state
        if self.rope:
            S = self._one_token_on(S)
        numerator, S = linear_recurrence_step(q, k, v, S)
        z = z + k
        mixed = _divide(numerator, (q * z).sum(-1, keepdim=True))
        return self.proj(mixed.flatten(1).to(x.dtype)), (S, z)

    def _one_token_on(self, S: Tensor) -> Tensor:
        """The keys in the state, turned to the next token's point of view.

        Offsets are all that matters, so the query stays and the past turns; no position is counted.
        """
        by_one = rotary_angles((2,), self.head_dim, dtype=S.dtype, device=S.device)[1:]
        return rotate(S.mT, -by_one).mT


def linear_attention(
    features: tuple[Tensor, Tensor], turned: tuple[Tensor, Tensor], v: Tensor, *, causal: bool = False
) -> Tensor:
    """The fraction of the module's docstring; every tensor is (B, heads, L, head_dim), in float32 or wider.

    Args:
        features: phi(q) and phi(k), for the denominator.
        turned: the same, turned by their positions, for the numerator.
        v: the values.
        causal: sum over j <= i.
    """
    q, k = features
    with full_precision(v.device):
        if causal:
            return _divide(linear_recurrence(*turned, v), (q * k.cumsum(2)).sum(3, keepdim=True))
        numerator = turned[0] @ (turned[1].mT @ v)  # (B, heads, L, head_dim)
        return _divide(numerator, q @ k.sum(2)[..., None])


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The fraction; 0, not 0 / 0, where all features of a query or of its keys have been rounded to zero."""
    return numerator / denominator.clamp(min=LEAST_DENOMINATOR)


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, written so that it stays positive: 1 is not added to what has been rounded to -1."""
    return F.relu(x) + x.clamp(max=0).exp()
