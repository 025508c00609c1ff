"""Data that a rule generates: splits, batches and epochs for tasks that only say how to draw examples.

All draws come from explicit generators seeded by `trial.stream`, so that every arm of a seed sees the same
examples and no other code's use of randomness moves them. The splits are drawn from streams of their own;
a validation or test row that the rule happens to repeat from another split is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from experiments.tasks.base import IGNORE, Batch, example_ids, fingerprint, generator, shuffled
from experiments.trial import stream
from mixers.registry import InputError

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws a number of examples: -> inputs (n, L) and targets, (n, L) or (n,), both int64."""

REDRAWS = 200  # even where 9 rows of 10 are held out, a batch is through by then
NOTABLY = 1.1


class GeneratedData:
    """The data of one seed of a generated task.

    Args:
        task: name of the task, for messages.
        draw: the rule.
        sizes: examples per split.
        seed: of the trial.
        fresh: whether every epoch draws new training examples, `sizes["train"]` of them, rather than
            going over the same ones in another order.
        extra_tests: rules of further test sets, by name; each gets as many examples as the test split.
        train_draw: the rule of the training split, where it is another one.
    """

    def __init__(
        self,
        task: str,
        draw: Draw,
        sizes: Mapping[str, int],
        seed: int,
        *,
        fresh: bool = False,
        extra_tests: Mapping[str, Draw] | None = None,
        train_draw: Draw | None = None,
    ) -> None:
        self._draw, self._train_draw = draw, train_draw or draw
        self._seed, self._fresh = seed, fresh
        self._task = task
        self.sizes = dict(sizes)
        self._extra = {f"test_{name}": rule for name, rule in (extra_tests or {}).items()}
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        taken: set[bytes] = set()
        for split in ("test", "validation"):
            self._splits[split] = self._distinct(split, taken)
        self._held_out = taken
        if fresh:
            self._fresh_examples(
                0, 0, 1
            )  # fails here, not in training, where there is nothing else to train on
        else:
            self._splits["train"] = self._distinct("train", set(taken), repeat=True)

    @property
    def extra_tests(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("test_") for name in self._extra)

    @property
    def baselines(self) -> dict[str, float]:
        """How often a draw among the answers that occur is right, in %; or among those that stand in the row,
        where that is right more often, as it is where rows hold the few answers that are asked for."""
        inputs, targets = self._splits["test"]
        answers = targets[targets != IGNORE].unique()
        anywhere = 100 / len(answers)
        in_the_row = 100 * _share_right_in_row(inputs, targets.view(len(inputs), -1), answers)
        found = {"any answer of the row": in_the_row} if in_the_row > NOTABLY * anywhere else {}
        return {**found, "a random answer": anywhere}

    @property
    def fingerprint(self) -> str:
        tensors = [tensor for pair in self._splits.values() for tensor in pair]
        if self._fresh:
            tensors += self._fresh_examples(0, 0, min(64, self.sizes["train"]))
        for name in self._extra:
            tensors += self._extra_examples(name, min(64, self.sizes["test"]))
        return fingerprint(*tensors)

    def train_batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        order = shuffled(self.sizes["train"], self._seed, epoch)
        for step in range(start, self.sizes["train"] // batch_size):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            if self._fresh:
                inputs, targets = self._fresh_examples(epoch, step, batch_size)
            else:
                inputs, targets = (tensor[chosen] for tensor in self._splits["train"])
            yield Batch(inputs, targets, chosen)

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        if split in self._extra:
            inputs, targets = self._extra_examples(split, self.sizes["test"])
        elif split == "train" and self._fresh:
            inputs, targets = self._fresh_examples(0, 0, self.sizes["train"])
        else:
            inputs, targets = self._splits[split]
        examples = example_ids(self._seed, split, len(inputs))
        for start in range(0, len(inputs), batch_size):
            chosen = slice(start, start + batch_size)
            yield Batch(inputs[chosen], targets[chosen], examples[chosen])

    def _fresh_examples(self, epoch: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        drawn = self._train_draw(count, generator(stream(self._seed, "data", "train", epoch, step)))
        again = stream(self._seed, "data", "again", epoch, step)
        return self._replace("train", drawn, self._held_out, self._train_draw, again)

    def _extra_examples(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        return self._extra[name](count, generator(stream(self._seed, "data", name)))

    def _distinct(self, split: str, taken: set[bytes], repeat: bool = False) -> tuple[Tensor, Tensor]:
        """A split without rows that are in `taken`, to which it adds its own unless it may repeat itself."""
        draw = self._train_draw if split == "train" else self._draw
        drawn = draw(self.sizes[split], generator(stream(self._seed, "data", split)))
        drawn = self._replace(split, drawn, taken, draw, stream(self._seed, "data", "again", split))
        if not repeat:
            taken |= set(_rows(drawn[0]))
        return drawn

    def _replace(
        self, split: str, drawn: tuple[Tensor, Tensor], taken: set[bytes], draw: Draw, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Draw rows of a split that are in `taken` again until none is.

        Raises:
            InputError: it does not end: there are too few different rows.
        """
        inputs, targets = drawn
        again = generator(seed)
        for _ in range(REDRAWS):
            repeated = torch.tensor([row in taken for row in _rows(inputs)])
            count = int(repeated.sum())
            if count == 0:
                return inputs, targets
            new_inputs, new_targets = draw(count, again)
            inputs, targets = inputs.clone(), targets.clone()
            inputs[repeated], targets[repeated] = new_inputs, new_targets
        raise InputError(
            f"task {self._task}: too few different examples to keep the splits apart: of {len(inputs):,} of "
            f"length {inputs.shape[1]} for {split}, {count:,} are still among the {len(taken):,} of other "
            f"splits after {REDRAWS} draws; make it longer, give it a larger vocabulary or ask for fewer "
            "examples"
        )


def _share_right_in_row(inputs: Tensor, targets: Tensor, answers: Tensor) -> float:
    """How often a draw among the answers that stand in an example is the one asked for.

    Args:
        inputs: tokens, (examples, length).
        targets: (examples, asked), `IGNORE` where nothing is asked.
        answers: those that occur anywhere.
    """
    tokens = 1 + max(int(inputs.max()), int(answers.max()))
    stands = torch.zeros(len(inputs), tokens, dtype=torch.bool).scatter_(1, inputs, True)
    is_answer = torch.zeros(tokens, dtype=torch.bool)
    is_answer[answers] = True
    stands &= is_answer
    example, place = (targets != IGNORE).nonzero(as_tuple=True)
    right = stands[example, targets[example, place]] / stands.sum(1).clamp(min=1)[example]
    return float(right.mean())


def _rows(inputs: Tensor) -> list[bytes]:
    """Each example as bytes."""
    rows = inputs.to(torch.int32).flatten(1).numpy()
    return [row.tobytes() for row in rows]
