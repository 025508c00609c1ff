"""Data that a rule generates: splits, batches and epochs for tasks that only say how to draw examples.

All draws come from explicit generators seeded by `trial.stream`, so that every arm of a seed sees the same
examples and no other code's use of randomness moves them. The splits are drawn from streams of their own;
a validation or test row that the rule happens to repeat from another split is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import IGNORE, Batch, example_ids, fingerprint, generator, shuffled
from experiments.trial import stream
from mixers.registry import InputError

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws a number of examples: -> inputs, tokens (n, L) in int64 or images (n, channels, H, W) in float32, and
targets, (n, L) or (n,), in int64."""

REDRAWS = 200  # even where 9 rows of 10 are held out, a batch is through by then
NOTABLY = 1.0  # points by which a guess in the row is better, to be listed
GUESSED = 2**20  # tokens of an extra test set that are enough to tell what guesses get


def language_spec(vocabulary: int, length: int) -> TaskSpec:
    """Tokens in, a token of the same vocabulary as the answer at each of them, none of which sees ahead."""
    return TaskSpec("tokens", vocabulary, (length,), vocabulary, output="per-token", causal=True)


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
        answers: the tokens that may be asked for; None where answers are classes and no tokens.

    Raises:
        InputError: a split without examples, or too few different ones to keep the splits apart.
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
        answers: range | None = None,
    ) -> None:
        self._draw, self._train_draw = draw, train_draw or draw
        self._seed, self._fresh, self._answers = seed, fresh, answers
        self._task = task
        self.sizes = dict(sizes)
        for split in ("train", "validation", "test"):
            if self.sizes.get(split, 0) < 1:
                raise InputError(f"task {task}: no {split} examples: sizes are {self.sizes}")
        self._extra = {f"test_{name}": rule for name, rule in (extra_tests or {}).items()}
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        taken: set[bytes] = set()
        for split in ("test", "validation"):
            self._splits[split] = self._distinct(split, taken)
        self._held_out = taken
        if fresh:
            # fails here, not in training, where there is nothing else to train on
            self._fresh_examples(0, 0, 1)
        else:
            self._splits["train"] = self._distinct("train", set(taken), repeat=True)

    @cached_property
    def extra_tests(self) -> dict[str, tuple[int, ...]]:
        return {
            name.removeprefix("test_"): tuple(self._extra_examples(name, 1)[0].shape[1:])
            for name in self._extra
        }

    def baselines(self, split: str = "test") -> dict[str, float]:
        """How often mere guesses are right, in %: any answer, and the better guess of one in the row.

        A guess in the row is left out where it is hardly better than any answer, or not surely.
        """
        inputs, targets = self._some_examples(split)
        answers = self._answers or targets[targets != IGNORE].unique()
        anywhere = {"a random answer": 100 / len(answers)}
        if self._answers is None or len(inputs) == 1:
            return anywhere
        targets = targets.view(len(targets), -1)
        best = anywhere
        for name, guess in IN_THE_ROW.items():
            right = 100 * guess(inputs, targets, self._answers)  # (n,)
            level, error = right.mean().item(), right.std().item() / len(right) ** 0.5
            least = next(iter(best.values()))
            if level > least + NOTABLY and level > least + 2 * error:
                best = {name: level, **anywhere}
        return best

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

    def _some_examples(self, split: str) -> tuple[Tensor, Tensor]:
        """A test set, of an extra one that is very long only as many rows as `GUESSED` tokens make."""
        if split not in self._extra:
            return self._splits[split]
        (length,) = self.extra_tests[split.removeprefix("test_")]
        return self._extra_examples(split, min(self.sizes["test"], max(1, GUESSED // length)))

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
        size = f"length {inputs.shape[1]}" if inputs.ndim == 2 else f"shape {tuple(inputs.shape[1:])}"
        raise InputError(
            f"task {self._task}: too few different examples to keep the splits apart: of {len(inputs):,} of "
            f"{size} for {split}, {count:,} are still among the {len(taken):,} of other "
            f"splits after {REDRAWS} draws; make it longer, give it a larger vocabulary or ask for fewer "
            "examples"
        )


def right_with_any(inputs: Tensor, targets: Tensor, answers: range) -> Tensor:
    """How often a draw among the answers that stand in a row is the one asked for: (n,).

    Args:
        inputs: tokens, (n, L).
        targets: (n, asked), `IGNORE` where nothing is asked.
        answers: the tokens that may be asked for.
    """
    tokens = max(answers.stop, int(inputs.max()) + 1)
    stands = torch.zeros(len(inputs), tokens, dtype=torch.bool).scatter_(1, inputs, True)
    stands[:, : answers.start] = stands[:, answers.stop :] = False
    asked = targets != IGNORE
    right = stands.gather(1, targets.where(asked, 0)) & asked
    return right.sum(1) / stands.sum(1).clamp(min=1) / asked.sum(1)


def right_with_most_frequent(inputs: Tensor, targets: Tensor, answers: range) -> Tensor:
    """How often the answer that a row has had most often so far is the one asked for: (n,).

    Among equals it is the one that got there first. Arguments are those of `right_with_any`.
    """
    is_answer = (inputs >= answers.start) & (inputs < answers.stop)
    times = torch.where(is_answer, times_so_far(inputs), 0)
    length = inputs.shape[1]
    guess = inputs.gather(1, (length * times - torch.arange(length)).cummax(1).indices)  # (n, L)
    asked = targets != IGNORE
    right = (guess[:, -targets.shape[1] :] == targets) & asked
    return right.sum(1) / asked.sum(1)


def times_so_far(tokens: Tensor) -> Tensor:
    """How many times each token has been in its row, itself included: (n, L) -> (n, L)."""
    ordered, places = tokens.sort(dim=1, stable=True)
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered.diff(dim=1) != 0
    first = torch.where(begins, position, 0).cummax(1).values  # of the run of equal tokens
    return torch.empty_like(tokens).scatter_(1, places, position - first + 1)


IN_THE_ROW = {
    "any answer of the row": right_with_any,
    "the row's most frequent answer so far": right_with_most_frequent,
}
"""Guesses that know neither order nor keys."""


def _rows(inputs: Tensor) -> list[bytes]:
    """Each example as bytes."""
    exact = inputs if inputs.is_floating_point() else inputs.to(torch.int32)  # tokens; half the bytes
    rows = exact.flatten(1).numpy()
    return [row.tobytes() for row in rows]
