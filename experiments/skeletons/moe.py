"""A channel MLP of which every token uses a few of many copies: the mixture of experts.

Switch Transformer (Fedus et al., arXiv 2101.03961) routes a token to one expert, as does MoE-Mamba
(Pióro et al., arXiv 2401.04081), in every block; Jamba (Lieber et al., arXiv 2403.19887) to two of 16, in
every other block. In all of them an expert's weight is its probability among all experts, not renormalised
over the chosen ones. Here no expert has a capacity limit, so no token is dropped.

Symbols: N = B * prod(grid) tokens, C channels, E experts, k of them per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mixers.registry import InputError

Experts = Annotated[int, Field(ge=1, le=1024)]
ExpertsPerToken = Annotated[int, Field(ge=1, le=1024)]
MoeEvery = Annotated[int, Field(ge=1)]
Balance = Annotated[float, Field(ge=0)]

BALANCE = 0.01  # Switch Transformer's


@dataclass(frozen=True)
class ExpertOptions:
    """How many experts, and where; with one there is no router, but a plain MLP in every block.

    Args:
        experts: E.
        experts_per_token: k.
        moe_every: the last of every so many blocks has the experts, the others a plain MLP.
        balance: weight of the load-balancing loss.

    Raises:
        InputError: k > E, or a single expert with options that only several can have.
    """

    experts: int = 1
    experts_per_token: int = 1
    moe_every: int = 1
    balance: float = BALANCE

    def __post_init__(self) -> None:
        if self.experts_per_token > self.experts:
            raise InputError(
                f"experts_per_token {self.experts_per_token} is more than there are: experts {self.experts}"
            )
        if self.experts == 1 and (self.moe_every, self.balance) != (1, BALANCE):
            raise InputError(
                "moe_every and balance have no meaning with experts 1, where every block has a plain MLP"
            )

    def layers(self, depth: int) -> range:
        """Which of `depth` blocks have experts.

        Raises:
            InputError: several experts were asked for, but no block would have them.
        """
        if self.experts == 1:
            return range(0)
        if self.moe_every > depth:
            raise InputError(f"moe_every {self.moe_every} leaves none of {depth} blocks with experts")
        return range(self.moe_every - 1, depth, self.moe_every)


PLAIN = ExpertOptions()


class MixtureOfExperts(nn.Module):
    """sum over the k likeliest experts e of p_e(x) expert_e(x), where p = softmax(router(x)).

    (B, *grid, C) -> (B, *grid, C). Every expert is called even when no token chose it, so that each of
    its parameters has a gradient, then 0.

    Args:
        dim: C.
        make_expert: makes an expert, (*, C) -> (*, C).
        options: E, k and the weight of the loss.

    Attributes:
        balance_loss: the weighted load-balancing loss of the last forward pass; 0.0 if that was not in
            training. A copy has none: it is part of this module's graph.
    """

    balance_loss: Tensor | float

    def __init__(self, dim: int, make_expert: Callable[[], nn.Module], options: ExpertOptions) -> None:
        super().__init__()
        self.experts_per_token = options.experts_per_token
        self.balance = options.balance
        self.router = nn.Linear(dim, options.experts, bias=False)
        self.experts = nn.ModuleList(make_expert() for _ in range(options.experts))
        self.balance_loss = 0.0

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (N, C)
        probabilities = self.router(tokens).softmax(-1)  # (N, E)
        weights, chosen = probabilities.topk(self.experts_per_token)  # (N, k) each
        loads = count_choices(chosen, len(self.experts))  # (E,)
        self.balance_loss = self.balance * load_balancing(probabilities, loads) if self.training else 0.0
        y = self._dispatch(tokens, chosen, loads)  # (N, k, C)
        return (weights.unsqueeze(-1) * y).sum(1).view(x.shape)

    def take_balance_loss(self) -> Tensor | float:
        """Hand over the loss, once: kept here it would keep the pass that it belongs to in memory."""
        taken, self.balance_loss = self.balance_loss, 0.0
        return taken

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "balance_loss": 0.0}  # a part of a graph can be copied nowhere

    def _dispatch(self, tokens: Tensor, chosen: Tensor, loads: Tensor) -> Tensor:
        """What every token's chosen experts make of it: (N, C), (N, k), (E,) -> (N, k, C).

        The N k pairs of token and expert are sorted by expert, and sorted back afterwards.
        """
        order = chosen.flatten().argsort(stable=True)  # (N k,)
        parts = tokens[order // chosen.shape[1]].split(_sizes(loads, len(order)))
        y = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return y[order.argsort()].unflatten(0, chosen.shape)

    def extra_repr(self) -> str:
        return f"experts_per_token={self.experts_per_token}, balance={self.balance:g}"


def _sizes(loads: Tensor, total: int) -> list[int]:
    """(E,) as numbers. On the meta device, which has none, the first expert gets all: each costs the same."""
    if loads.is_meta:
        return [total] + [0] * (len(loads) - 1)
    sizes: list[int] = loads.tolist()
    return sizes


def count_choices(chosen: Tensor, experts: int) -> Tensor:
    """How often every expert was chosen: (N, k) -> (E,)."""
    choices = chosen.flatten()
    return choices.new_zeros(experts).scatter_add(0, choices, torch.ones_like(choices))


def load_balancing(probabilities: Tensor, loads: Tensor) -> Tensor:
    """Switch Transformer's E sum_i f_i P_i (eq. 4-6): 1 at uniform routing, E / k when all tokens agree.

    Without tokens it is 0.

    f_i is the share of all choices that fell on expert i, which sums to 1 for any k (with k > 1 as in
    DeepSeekMoE, arXiv 2401.06066, eq. 12-14); P_i is the mean probability of i. Gradients flow through P.

    Args:
        probabilities: (N, E).
        loads: (E,), how often every expert was chosen.
    """
    if len(probabilities) == 0:
        return probabilities.sum()
    share = loads / loads.sum()
    return len(loads) * (share * probabilities.mean(0)).sum()
