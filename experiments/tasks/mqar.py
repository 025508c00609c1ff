"""Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import IGNORE, TaskData, TokenClassification
from experiments.tasks.generated import GeneratedData, language_spec
from mixers.registry import InputError

Count = Annotated[int, Field(ge=1)]


class MQAR(TokenClassification):
    """Pairs of a key and its value, then the keys again: which value belongs to each?

    Keys are drawn without replacement from 1..V/2 - 1, values from V/2..V - 1. The row opens with all
    pairs; behind them come S = (L - 2 N) / 2 places of two tokens, and each key is written into a place of
    its own, g places behind the pairs with probability proportional to a (g + 1)^(a - 1), so that most
    questions come early. The value is asked for at the key and never shown again; exactly N tokens are
    scored. With 4 pairs in 24 tokens and a vocabulary of 16:

        input   7 8 4 12 2 9 5 10 7 0 2 0 0 0 5 0 4 0 0 0 0 0 0 0
        target                    8   9       10  12                   (the rest is not scored)

    Args:
        length: L, even.
        vocabulary: V, even.
        pairs: N, at most a quarter of the length.
        power: a.
        random_non_queries: fill what would be 0 with random tokens, as Zoology does by default; they may
            repeat a key before it is asked for.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.
        fresh: draw new training examples in every epoch.

    Raises:
        InputError: the length is odd or too short for the pairs, or the vocabulary too small.
    """

    def __init__(
        self,
        *,
        length: Count = 64,
        vocabulary: Count = 8192,
        pairs: Count = 4,
        power: Annotated[float, Field(gt=0, le=1)] = 0.01,
        random_non_queries: bool = False,
        train: Count = 100_000,
        validation: Count = 1_000,
        test: Count = 3_000,
        fresh: bool = False,
    ) -> None:
        if length % 2 or vocabulary % 2:
            raise InputError(f"task mqar: length {length} and vocabulary {vocabulary} must be even")
        if 4 * pairs > length:
            raise InputError(
                f"task mqar: {pairs} pairs and their questions need a length of {4 * pairs}, got {length}"
            )
        if vocabulary // 2 - 1 < pairs:
            raise InputError(
                f"task mqar: vocabulary {vocabulary} has {vocabulary // 2 - 1} keys, too few for {pairs} "
                f"pairs; it takes {2 * pairs + 2}"
            )
        self.length, self.vocabulary, self.pairs = length, vocabulary, pairs
        self.power, self.random_non_queries, self.fresh = power, random_non_queries, fresh
        self.sizes = {"train": train, "validation": validation, "test": test}

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary, self.length)

    def load(self, seed: int) -> TaskData:
        values = range(self.vocabulary // 2, self.vocabulary)
        return GeneratedData("mqar", self.draw, self.sizes, seed, fresh=self.fresh, answers=values)

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, L) each."""
        half, pairs = self.vocabulary // 2, self.pairs
        keys = 1 + distinct(count, half - 1, pairs, random)  # (count, N)
        values = half + distinct(count, half, pairs, random)
        places = torch.arange((self.length - 2 * pairs) // 2)
        weights = self.power * (places + 1.0) ** (self.power - 1)
        gaps = torch.multinomial(weights.expand(count, -1), pairs, generator=random)  # without replacement
        questions = 2 * pairs + 2 * gaps
        inputs = torch.zeros(count, self.length, dtype=torch.long)
        inputs[:, 0 : 2 * pairs : 2] = keys
        inputs[:, 1 : 2 * pairs : 2] = values
        inputs.scatter_(1, questions, keys)
        targets = torch.full_like(inputs, IGNORE).scatter_(1, questions, values)
        if self.random_non_queries:
            filling = torch.randint(self.vocabulary, inputs.shape, generator=random)
            inputs = torch.where(inputs == 0, filling, inputs)
        return inputs, targets


def distinct(count: int, size: int, chosen: int, random: torch.Generator) -> Tensor:
    """Rows of `chosen` different numbers below `size`, uniform: (count, chosen)."""
    rows = max(1, 2**24 // size)  # at a time: a large vocabulary would not fit at once
    parts = [
        torch.rand(min(rows, count - start), size, generator=random).topk(chosen, dim=1).indices
        for start in range(0, count, rows)
    ]
    return torch.cat(parts)
