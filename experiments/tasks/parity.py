"""Parity: is the number of ones odd? What a state can track and a fixed number of attention layers cannot."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import TaskData, TokenClassification
from experiments.tasks.generated import GeneratedData
from experiments.tasks.induction import read_lengths

Count = Annotated[int, Field(ge=1)]


class Parity(TokenClassification):
    """The parity of random bits, asked for at the last bit or after each.

    input   0 1 1 0 1
    target  0 1 0 0 1        (target "every"; with "last" only the 1)

    Args:
        length: bits in training, validation and main test.
        target: "last" for one answer per row, "every" for the running parity.
        test_lengths: of the further test sets, "64..1024" for 64 and its doublings up to 1,024; "none".
        train: examples per epoch.
        validation: examples for choosing.
        test: examples of each test set.
        fresh: draw new training examples in every epoch.

    Raises:
        InputError: text that is not a range of lengths.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Field(ge=4)] = 40,
        target: Literal["last", "every"] = "last",
        test_lengths: str = "64..256",
        train: Count = 10_000,
        validation: Count = 1_000,
        test: Count = 1_000,
        fresh: bool = True,
    ) -> None:
        self.length, self.target, self.fresh = length, target, fresh
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.test_lengths = read_lengths("parity", test_lengths)

    @property
    def spec(self) -> TaskSpec:
        output: Literal["one", "per-token"] = "one" if self.target == "last" else "per-token"
        return TaskSpec("tokens", 2, (self.length,), 2, output=output, causal=True)

    def load(self, seed: int) -> TaskData:
        further = {str(length): partial(self.draw, length=length) for length in self.test_lengths}
        return GeneratedData(
            "parity", self.draw, self.sizes, seed, answers=range(2), fresh=self.fresh, extra_tests=further
        )

    def measure(self, predictions: Tensor, targets: Tensor, mean_loss: float) -> dict[str, float]:
        rows = (len(targets), -1)  # one answer is a row of one
        return super().measure(predictions.view(rows), targets.view(rows), mean_loss)

    def draw(self, count: int, random: torch.Generator, length: int = 0) -> tuple[Tensor, Tensor]:
        """-> inputs (count, length), targets (count,) or the same; length 0 is that of training."""
        inputs = torch.randint(2, (count, length or self.length), generator=random)
        running = inputs.cumsum(1) % 2
        return inputs, running[:, -1] if self.target == "last" else running
