"""Selective copying (Gu and Dao, Mamba, arXiv 2312.00752, section 4.1.1): remember what matters, in order."""

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


class SelectiveCopy(TokenClassification):
    """Data tokens at random places among noise, then markers at which they are asked for in order.

    Token 0 is noise, V - 1 the marker, 1..V - 2 are data. The M data tokens lie at sorted random places of
    the first `length` tokens, so that what to keep depends on content and not on position: a
    time-invariant model cannot tell them from noise. M markers follow, and only they are scored: the whole
    input has length + M tokens. With 3 data tokens in 8 and a vocabulary of 6:

        input   0 4 0 0 1 2 0 0 5 5 5
        target                  4 1 2

    Args:
        length: tokens before the markers.
        vocabulary: V, noise and marker included.
        tokens: M.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.
        fresh: draw new training examples in every epoch, as in the paper.

    Raises:
        InputError: more data tokens than places, or no data in the vocabulary.
    """

    def __init__(
        self,
        *,
        length: Count = 4096,
        vocabulary: Count = 16,
        tokens: Count = 16,
        train: Count = 64_000,
        validation: Count = 1_000,
        test: Count = 1_000,
        fresh: bool = True,
    ) -> None:
        if tokens > length:
            raise InputError(f"task selective-copy: {tokens} data tokens do not fit into length {length}")
        if vocabulary < 4:
            raise InputError(
                f"task selective-copy: vocabulary {vocabulary} leaves fewer than two data tokens beside "
                "noise and marker; it takes 4"
            )
        self.length, self.vocabulary, self.tokens = length, vocabulary, tokens
        self.sizes, self.fresh = {"train": train, "validation": validation, "test": test}, fresh

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary, self.length + self.tokens)

    def load(self, seed: int) -> TaskData:
        answers = range(1, self.vocabulary - 1)
        return GeneratedData("selective-copy", self.draw, self.sizes, seed, fresh=self.fresh, answers=answers)

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, length + M) each."""
        order = torch.rand(count, self.length, generator=random).topk(self.tokens, dim=1).indices
        places = order.sort(dim=1).values  # (count, M)
        data = torch.randint(1, self.vocabulary - 1, (count, self.tokens), generator=random)
        inputs = torch.zeros(count, self.length + self.tokens, dtype=torch.long)
        inputs.scatter_(1, places, data)
        inputs[:, self.length :] = self.vocabulary - 1
        targets = torch.full_like(inputs, IGNORE)
        targets[:, self.length :] = data
        return inputs, targets
