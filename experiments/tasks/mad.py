"""The six tasks of MAD (Poli et al., Mechanistic design and scaling, arXiv 2403.17844).

Generators follow the authors' published code, vectorised; the defaults are MAD's baseline settings, of
which a sweep changes one at a time. Where it trains on the next token of the whole row but scores only what
can be known, so do these tasks. Different here: accuracy is the mean over rows of the share that is right in
each, as in Zoology, MAD's is one over classes first; the last key of a recall is drawn among the pairs that
came before, MAD's among the distinct keys; fuzzy recall places its probe otherwise; and the map that is
memorised comes from another generator and has each of 127 values once, MAD's takes them from 128.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from experiments.interface import TaskSpec
from experiments.tasks.base import IGNORE, TaskData, TokenClassification, generator
from experiments.tasks.generated import Draw, GeneratedData, language_spec
from mixers.registry import InputError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
MAP_SEED = 12_345  # of the map that is memorised; MAD's
PROBE_MOTIF = 3  # tokens of a key, and at most of a value, in fuzzy recall


class Recall(TokenClassification):
    """In-context recall: pairs of a key and its value, keys coming back with the value they had in this row.

    Keys are 0..K - 1 and values K..2 K - 1, for K half of the vocabulary. Every key of a row has one value;
    L / 2 keys are drawn with replacement, the last among those that were there before. Trained to predict
    every next token; scored on values whose key had been seen. With L = 8 and V = 4:

        row      1 2 0 2 1 2 0 2
        input    1 2 0 2 1 2 0          (the row without its last token)
        scored           2   2          (its value where key 1, then key 0, comes back)

    Args:
        length: L, even.
        vocabulary: V.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.

    Raises:
        InputError: the length is odd or below 4, or the vocabulary has no key and value.
    """

    noise_vocabulary = 0
    noise = 0.0

    def __init__(
        self,
        *,
        length: Count = 128,
        vocabulary: Count = 16,
        train: Count = 12_800,
        validation: Count = 1_280,
        test: Count = 1_280,
    ) -> None:
        self.length, self.vocabulary = length, vocabulary
        self.sizes = {"train": train, "validation": validation, "test": test}
        if length % 2 or length < 4:
            raise InputError(f"task mad recall: length must be even and at least 4, got {length}")
        if self.keys < 1:
            raise InputError(
                f"task mad recall: vocabulary {vocabulary} leaves no key and value beside "
                f"{self.noise_vocabulary} noise tokens"
            )

    @property
    def keys(self) -> int:
        """K."""
        return (self.vocabulary - self.noise_vocabulary) // 2

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary, self.length - 1)

    def load(self, seed: int) -> TaskData:
        train_draw, values = next_tokens(self.draw_row), range(self.keys, 2 * self.keys)
        return GeneratedData("mad recall", self.draw, self.sizes, seed, train_draw=train_draw, answers=values)

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, L - 1) each."""
        row, scored = self.draw_row(count, random)
        return row[:, :-1], torch.where(scored, row, IGNORE)[:, 1:]

    def draw_row(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> whole rows, and which of their tokens are scored, (count, L) each."""
        pairs = self.length // 2
        keys = torch.randint(self.keys, (count, pairs), generator=random)
        noisy = torch.rand(count, pairs, generator=random) < self.noise
        noisy.scatter_(1, torch.randint(pairs - 1, (count, 1), generator=random), value=False)
        noisy[:, -1] = False
        probes = torch.where(noisy[:, :-1], 0.0, 1.0)  # the last key comes back from any earlier pair
        keys[:, -1:] = keys.gather(1, torch.multinomial(probes, 1, generator=random))
        values = torch.randint(self.keys, 2 * self.keys, (count, self.keys), generator=random)
        row = torch.stack([keys, values.gather(1, keys)], dim=2)  # (count, pairs, 2)
        scored = torch.zeros_like(row, dtype=torch.bool)
        scored[..., 1] = came_before(keys, noisy) & ~noisy
        if self.noise > 0:
            noise = torch.randint(2 * self.keys, self.vocabulary, row.shape, generator=random)
            row = torch.where(noisy[..., None], noise, row)
        return row.flatten(1), scored.flatten(1)


class NoisyRecall(Recall):
    """`Recall` in which a share of the pairs is replaced by two tokens of noise.

    Args:
        length: L, even.
        vocabulary: V, of which `noise_vocabulary` tokens are noise.
        noise_vocabulary: number of noise tokens, the last of the vocabulary.
        noise: share of pairs that are noise.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.
    """

    def __init__(
        self,
        *,
        length: Count = 128,
        vocabulary: Count = 32,
        noise_vocabulary: Count = 16,
        noise: Share = 0.2,
        train: Count = 12_800,
        validation: Count = 1_280,
        test: Count = 1_280,
    ) -> None:
        self.noise_vocabulary, self.noise = noise_vocabulary, noise
        super().__init__(length=length, vocabulary=vocabulary, train=train, validation=validation, test=test)


class FuzzyRecall(TokenClassification):
    """Recall in which keys and values are words of 1 to 3 different tokens; tested on keys of 3.

    Key letters are 0..K - 1 and value letters K..V - 2; V - 1 fills the row at its beginning. The last
    key was there before. Trained to predict every next token; scored on the values of keys that were seen.

    Args:
        length: L.
        vocabulary: V.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.

    Raises:
        InputError: the row is too short for three pairs, or the vocabulary for words of three letters.
    """

    def __init__(
        self,
        *,
        length: Count = 128,
        vocabulary: Count = 16,
        train: Count = 12_800,
        validation: Count = 1_280,
        test: Count = 1_280,
    ) -> None:
        self.length, self.vocabulary = length, vocabulary
        self.sizes = {"train": train, "validation": validation, "test": test}
        if length < 6 * PROBE_MOTIF:
            raise InputError(
                f"task mad-fuzzy-recall: length must be at least {6 * PROBE_MOTIF}, got {length}"
            )
        if self.letters < PROBE_MOTIF:
            raise InputError(
                f"task mad-fuzzy-recall: vocabulary {vocabulary} has {self.letters} key letters, words "
                f"need {PROBE_MOTIF}"
            )

    @property
    def letters(self) -> int:
        """K."""
        return (self.vocabulary - 1) // 2

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary, self.length)

    def load(self, seed: int) -> TaskData:

        def of_any_length(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
            return self.draw_rows(count, random, shortest_key=1)

        train_draw, values = next_tokens(of_any_length), range(self.letters, self.vocabulary - 1)
        return GeneratedData(
            "mad-fuzzy-recall", self.draw, self.sizes, seed, train_draw=train_draw, answers=values
        )

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, L) each, with keys of three tokens."""
        row, scored = self.draw_rows(count, random, shortest_key=PROBE_MOTIF)
        return row[:, :-1], torch.where(scored, row, IGNORE)[:, 1:]

    def draw_rows(self, count: int, random: torch.Generator, shortest_key: int) -> tuple[Tensor, Tensor]:
        """-> whole rows of L + 1 tokens, and which of them are scored."""
        numbers = np.random.default_rng(int(torch.randint(2**62, (1,), generator=random)))
        drawn = [self._draw_row(numbers, shortest_key) for _ in range(count)]
        rows, scored = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        return rows, scored

    def _draw_row(self, numbers: np.random.Generator, shortest_key: int) -> tuple[np.ndarray, np.ndarray]:
        def word(first: int, end: int, shortest: int) -> tuple[int, ...]:
            size = int(numbers.integers(shortest, PROBE_MOTIF + 1))
            return tuple(first + numbers.permutation(end - first)[:size])

        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        row: list[int] = []
        scored: list[bool] = []
        room = self.length + 1 - 2 * PROBE_MOTIF  # the last pair always fits behind
        while True:
            key = word(0, self.letters, shortest_key)
            value = known.get(key) or word(self.letters, self.vocabulary - 1, 1)
            if len(row) + len(key) + len(value) > room:
                break
            row += [*key, *value]
            scored += [False] * len(key) + [key in known] * len(value)
            known[key] = value
        key, value = list(known.items())[int(numbers.integers(len(known)))]
        row += [*key, *value]
        scored += [False] * len(key) + [True] * len(value)
        missing = self.length + 1 - len(row)
        return np.array([self.vocabulary - 1] * missing + row), np.array([False] * missing + scored)


class MadSelectiveCopy(TokenClassification):
    """Selective copying, MAD's way: data among blanks, one copy token, then blanks at which it is asked for.

    Data are 0..V - 3, the blank is V - 2 and the copy token V - 1. Each blank is put before a random data
    token. With 2 data tokens, L = 7 and V = 6:

        input   4 1 4 0 5 4 4        (the data, 1 and 0, among two blanks; then the copy token)
        target            1 0

    Args:
        length: L.
        vocabulary: V.
        tokens: M, data tokens.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.

    Raises:
        InputError: the length does not hold the data twice and the copy token, or there is no data.
    """

    def __init__(
        self,
        *,
        length: Count = 256,
        vocabulary: Count = 16,
        tokens: Count = 16,
        train: Count = 12_800,
        validation: Count = 1_280,
        test: Count = 1_280,
    ) -> None:
        if length <= 2 * tokens + 1:
            raise InputError(
                f"task mad-selective-copy: {tokens} data tokens need a length of {2 * tokens + 2}, "
                f"got {length}"
            )
        if vocabulary < 4:
            raise InputError(f"task mad-selective-copy: vocabulary must be at least 4, got {vocabulary}")
        self.length, self.vocabulary, self.tokens = length, vocabulary, tokens
        self.sizes = {"train": train, "validation": validation, "test": test}

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary, self.length)

    def load(self, seed: int) -> TaskData:
        return GeneratedData(
            "mad-selective-copy", self.draw, self.sizes, seed, answers=range(self.vocabulary - 2)
        )

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, L) each."""
        blank, copy, tokens = self.vocabulary - 2, self.vocabulary - 1, self.tokens
        data = torch.randint(blank, (count, tokens), generator=random)
        blanks = torch.randint(tokens, (count, self.length - 2 * tokens - 1), generator=random)
        before = torch.zeros(count, tokens, dtype=torch.long).scatter_add_(1, blanks, torch.ones_like(blanks))
        places = torch.arange(tokens) + before.cumsum(1)  # (count, M)
        inputs = torch.full((count, self.length), blank).scatter_(1, places, data)
        inputs[:, self.length - tokens - 1] = copy
        targets = torch.full_like(inputs, IGNORE)
        targets[:, self.length - tokens :] = data
        return inputs, targets


class Compression(TokenClassification):
    """Reproduce what was read, after the token that ends it.

    MAD trains an auto-encoder here: an MLP rebuilds the row from the output at the last token and sines of
    the position asked for. In this framework a model answers at its own tokens, so the row is asked for at
    L - 1 question tokens behind it. A recurrent mixer must carry the whole row past the last token as in
    MAD; attention may look back, so that its numbers are not those of MAD. With L = 4 and V = 4:

        input   2 0 1 3 4 4 4        (three tokens, the compression token V - 1, three questions V)
        target          2 0 1

    Args:
        length: L, the compression token included.
        vocabulary: V, the compression token included.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Field(ge=2)] = 32,
        vocabulary: Annotated[int, Field(ge=3)] = 16,
        train: Count = 12_800,
        validation: Count = 1_280,
        test: Count = 1_280,
    ) -> None:
        self.length, self.vocabulary = length, vocabulary
        self.sizes = {"train": train, "validation": validation, "test": test}

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary + 1, 2 * self.length - 1)

    def load(self, seed: int) -> TaskData:
        return GeneratedData(
            "mad-compression", self.draw, self.sizes, seed, answers=range(self.vocabulary - 1)
        )

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, 2 L - 1) each."""
        data = torch.randint(self.vocabulary - 1, (count, self.length - 1), generator=random)
        end = torch.full((count, 1), self.vocabulary - 1)
        inputs = torch.cat([data, end, torch.full_like(data, self.vocabulary)], dim=1)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, self.length :] = data
        return inputs, targets


class Memorization(TokenClassification):
    """Recall from the weights: a fixed map from keys to values, the same in every row, split and seed.

    Keys are 0..K - 1 and values K..2 K - 1 for K = (V - 1) / 2 rounded down; V - 1 stands where the value of
    the key before it is asked for. Test rows are new, the map in them is not: that is the task. With L = 4
    and V = 5, if the map is 0 -> 3 and 1 -> 2:

        input   1 4 0 4
        target    2   3

    Args:
        length: L, even.
        vocabulary: V.
        train: examples per epoch.
        validation: examples for choosing.
        test: examples for reporting.

    Raises:
        InputError: the length is odd.
    """

    def __init__(
        self,
        *,
        length: Count = 32,
        vocabulary: Annotated[int, Field(ge=5)] = 256,
        train: Count = 256,
        validation: Count = 1_280,
        test: Count = 1_280,
    ) -> None:
        if length % 2:
            raise InputError(f"task mad-memorization: length must be even, got {length}")
        self.length, self.vocabulary = length, vocabulary
        self.sizes = {"train": train, "validation": validation, "test": test}
        keys = (vocabulary - 1) // 2
        self.values = keys + torch.randperm(keys, generator=generator(MAP_SEED))  # (K,), by key

    @property
    def spec(self) -> TaskSpec:
        return language_spec(self.vocabulary, self.length)

    def load(self, seed: int) -> TaskData:
        values = range(len(self.values), 2 * len(self.values))
        return GeneratedData("mad-memorization", self.draw, self.sizes, seed, answers=values)

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """-> inputs and targets, (count, L) each."""
        keys = torch.randint(len(self.values), (count, self.length // 2), generator=random)
        asked = torch.full_like(keys, self.vocabulary - 1)
        inputs = torch.stack([keys, asked], dim=2).flatten(1)
        targets = torch.stack([torch.full_like(keys, IGNORE), self.values[keys]], dim=2).flatten(1)
        return inputs, targets


def next_tokens(draw_row: Draw) -> Draw:
    """The rule that asks for every next token of whole rows."""

    def draw(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        row, _ = draw_row(count, random)
        return row[:, :-1], row[:, 1:]

    return draw


def came_before(keys: Tensor, left_out: Tensor) -> Tensor:
    """Whether the same key stands further left, places that are left out not counted: (n, P) bool."""
    pairs = keys.shape[1]
    own = torch.where(left_out, keys.max() + 1 + torch.arange(pairs), keys)  # matches no other
    order = (own * pairs + torch.arange(pairs)).argsort(dim=1)
    sorted_keys = own.gather(1, order)
    repeated = torch.zeros_like(left_out)
    repeated[:, 1:] = sorted_keys.diff(dim=1) == 0
    return torch.zeros_like(left_out).scatter_(1, order, repeated)
