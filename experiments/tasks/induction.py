"""Induction heads (Olsson et al., arXiv 2209.11895), as in the Mamba paper (section 4.1.2)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import Classification, TaskData
from experiments.tasks.generated import GeneratedData
from mixers.registry import InputError

Count = Annotated[int, Field(ge=1)]


class Induction(Classification):
    """What came after the special token when it was there before?

    Ordinary tokens are 0..V - 1; the special one, V, stands once at a random place and again at the very
    end, where the token that followed it is to be named. Trained at one length, tested also at others.
    In the code that the paper used, V counts two special tokens, and every next token is trained; here only
    the answer is. With 8 tokens and V = 4:

        input   2 0 4 3 1 1 0 4
        target                3

    Args:
        length: of training, validation and main test.
        vocabulary: V.
        test_lengths: of the further test sets, "64..1024" for 64 and its doublings up to 1,024; "none".
        train: examples per epoch.
        validation: examples for choosing.
        test: examples of each test set.
        fresh: draw new training examples in every epoch, as in the paper.

    Raises:
        InputError: a length below 4, or text that is not a range of lengths.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Field(ge=4)] = 256,
        vocabulary: Annotated[int, Field(ge=2)] = 16,
        test_lengths: str = "64..16384",
        train: Count = 65_536,
        validation: Count = 1_000,
        test: Count = 1_000,
        fresh: bool = True,
    ) -> None:
        self.length, self.vocabulary, self.fresh = length, vocabulary, fresh
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.test_lengths = read_lengths("induction", test_lengths)

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("tokens", self.vocabulary + 1, (self.length,), self.vocabulary, causal=True)

    def load(self, seed: int) -> TaskData:
        further = {str(length): partial(self.draw, length=length) for length in self.test_lengths}
        return GeneratedData(
            "induction",
            self.draw,
            self.sizes,
            seed,
            answers=range(self.vocabulary),
            fresh=self.fresh,
            extra_tests=further,
        )

    def draw(self, count: int, random: torch.Generator, length: int = 0) -> tuple[Tensor, Tensor]:
        """-> inputs (count, length) and targets (count,); length 0 is that of training."""
        length = length or self.length
        inputs = torch.randint(self.vocabulary, (count, length), generator=random)
        place = torch.randint(length - 2, (count, 1), generator=random)  # what follows is not the last
        inputs.scatter_(1, place, self.vocabulary)
        inputs[:, -1] = self.vocabulary
        return inputs, inputs.gather(1, place + 1)[:, 0]


def read_lengths(task: str, text: str) -> tuple[int, ...]:
    """(64, 128, 256) from "64..256", none from "none".

    Raises:
        InputError: anything else.
    """
    if text == "none":
        return ()
    first, _, last = text.partition("..")
    if not (first.isdigit() and last.isdigit() and 4 <= int(first) <= int(last)):
        raise InputError(
            f"task {task}: test_lengths must be like 64..1024 (64, 128, 256, 512, 1024), from 4, got {text!r}"
        )
    doublings = (int(last) // int(first)).bit_length()
    return tuple(int(first) << power for power in range(doublings))
