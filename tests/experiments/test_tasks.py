"""Every task: its data depends on what it should and on nothing else, and its score means what it says."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from experiments.tasks import TASKS
from experiments.tasks.base import IGNORE, Task, TaskData
from experiments.tasks.bytes import Bytes, BytesData, bigram_bits_per_byte, read_documents
from experiments.tasks.digits import Digits, read_digits
from experiments.tasks.generated import GeneratedData, right_with_most_frequent
from experiments.tasks.induction import Induction, read_lengths
from experiments.tasks.mad import Recall
from experiments.tasks.mqar import MQAR, distinct
from experiments.tasks.selective_copy import SelectiveCopy
from experiments.tasks.sequential_digits import grey_levels
from experiments.tasks.textures import turned
from experiments.trial import Purpose, stream
from mixers.registry import InputError

SMALL = {
    "digits": "digits(canvas=10)",
    "sequential-digits": "sequential-digits(canvas=8)",
    "textures": "textures(side=16, train=64, validation=20, test=60)",
    "bytes": "bytes(length=64, train=64, validation=20, test=50)",
    "mqar": "mqar(length=32, vocabulary=24, pairs=4, train=64, validation=20, test=300)",
    "selective-copy": "selective-copy(length=12, tokens=4, vocabulary=9, train=64, validation=20, test=300)",
    "induction": "induction(length=16, train=64, validation=20, test=300, test_lengths=8..32)",
    "parity": "parity(length=16, train=64, validation=20, test=300, test_lengths=32..64)",
    "mad-recall": "mad-recall(length=24, vocabulary=8, train=64, validation=20, test=300)",
    "mad-noisy-recall": "mad-noisy-recall(length=24, vocabulary=12, noise_vocabulary=4, noise=0.3, train=64, "
    "validation=20, test=300)",
    "mad-fuzzy-recall": "mad-fuzzy-recall(length=40, vocabulary=11, train=64, validation=20, test=100)",
    "mad-selective-copy": "mad-selective-copy(length=24, tokens=4, train=64, validation=20, test=300)",
    "mad-compression": "mad-compression(length=8, train=64, validation=20, test=300)",
    "mad-memorization": "mad-memorization(length=8, vocabulary=21, train=64, validation=20, test=300)",
}
CHANGED = {
    "digits": "canvas=11",
    "sequential-digits": "canvas=9",
    "textures": "side=17",
    "bytes": "length=65",
    "mqar": "pairs=3",
    "selective-copy": "tokens=5",
    "induction": "vocabulary=15",
    "parity": "length=17",
    "mad-recall": "vocabulary=10",
    "mad-noisy-recall": "noise=0.4",
    "mad-fuzzy-recall": "length=41",
    "mad-selective-copy": "tokens=5",
    "mad-compression": "vocabulary=15",
    "mad-memorization": "vocabulary=23",
}
GENERATED = tuple(name for name in SMALL if name not in ("digits", "sequential-digits", "textures", "bytes"))
ELSEWHERE = ("ade20k", "coco", "images", "scenes", "scenes-detect")
"""Their answers are of another shape, or they need files; each has a file of tests of its own."""
names = pytest.mark.parametrize("name", list(SMALL))


def test_every_task_is_tested() -> None:
    assert {*SMALL, *ELSEWHERE} == {*CHANGED, *ELSEWHERE} == set(TASKS)


def create(text: str) -> Task:
    task: Task = TASKS.create(TASKS.parse(text))
    return task


def load(name: str, seed: int = 0) -> TaskData:
    return create(SMALL[name]).load(seed)


def rows(data: TaskData, split: str) -> list[bytes]:
    return [row.numpy().tobytes() for batch in data.batches(split, 64) for row in batch.inputs]


def all_of(data: TaskData, split: str) -> tuple[Tensor, Tensor]:
    batches = list(data.batches(split, 64))
    return torch.cat([batch.inputs for batch in batches]), torch.cat([batch.targets for batch in batches])


# ---- every task


@names
def test_shapes_are_those_of_the_spec(name: str) -> None:
    task, data = create(SMALL[name]), load(name)
    batch = next(data.train_batches(0, 16))
    spec = task.spec
    lead = (16,) if spec.input == "tokens" else (16, spec.channels)
    assert batch.inputs.shape == (*lead, *spec.grid)
    assert batch.targets.shape == ((16,) if spec.output == "one" else (16, *spec.grid))
    assert len(batch.examples) == 16
    scored = batch.targets[batch.targets != IGNORE]
    assert 0 <= scored.min() <= scored.max() < spec.classes
    if spec.input == "tokens":
        assert 0 <= batch.inputs.min() <= batch.inputs.max() < spec.channels
    options = TASKS.parse(SMALL[name]).options
    assert all(size == int(options.get(split, size)) for split, size in data.sizes.items())
    for split in ("validation", "test"):
        assert sum(len(each.inputs) for each in data.batches(split, 7)) == data.sizes[split]


@names
def test_the_fingerprint_follows_the_seed_and_every_knob(name: str) -> None:
    one = load(name).fingerprint
    assert one == load(name).fingerprint
    assert one != load(name, seed=1).fingerprint
    option = CHANGED[name].split("=")[0]
    kept = [part.strip() for part in SMALL[name][:-1].split("(", 1)[1].split(",")]
    kept = [part for part in kept if not part.startswith(f"{option}=")]
    changed = f"{name}({', '.join([CHANGED[name], *kept])})"
    assert one != create(changed).load(0).fingerprint


@names
def test_global_generators_neither_matter_nor_move(name: str) -> None:
    def state() -> tuple[bytes, Any, Any]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()

    one = load(name)
    first = next(one.train_batches(0, 16)).inputs
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    before = state()
    other = load(name)
    second = next(other.train_batches(0, 16)).inputs
    assert state() == before
    assert one.fingerprint == other.fingerprint
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "purpose", "governed"),
    [
        ("digits", "init", set()),
        ("digits", "data", {"test", "order", "training"}),
        ("digits", "order", {"order", "training"}),
        ("digits", "augmentation", {"training"}),
        ("textures", "data", {"test", "training"}),
        ("textures", "order", set()),
        ("textures", "augmentation", {"training"}),
        ("parity", "data", {"test", "training"}),
    ],
)
def test_streams_govern_what_they_name(
    name: str, purpose: str, governed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order leaves what is held out as it is; other augmentations leave the order, too."""

    def drawn() -> dict[str, Tensor]:
        data = load(name)
        train = list(data.train_batches(1, 16))
        return {
            "test": all_of(data, "test")[0],
            "order": torch.cat([batch.examples for batch in train]) % 2**20,
            "training": torch.cat([batch.inputs for batch in train]),
        }

    def other(seed: int, asked: Purpose, *index: int | str) -> int:
        return stream(seed + (asked == purpose), asked, *index)

    before = drawn()
    for module in ("base", "digits", "generated", "textures"):
        monkeypatch.setattr(f"experiments.tasks.{module}.stream", other)
    after = drawn()
    assert {part for part in before if not torch.equal(before[part], after[part])} == governed


@pytest.mark.parametrize("name", ["induction", "parity", "selective-copy", "textures", "bytes"])
def test_what_training_draws_is_new_in_every_epoch_and_step(name: str) -> None:
    data = load(name)
    drawn = [
        row.numpy().tobytes() for epoch in range(3) for b in data.train_batches(epoch, 16) for row in b.inputs
    ]
    assert len(drawn) == 3 * 64
    assert len(set(drawn)) > 180


@pytest.mark.parametrize("name", ["digits", "mqar"])
def test_every_epoch_has_an_order_of_its_own(name: str) -> None:
    data = load(name)
    one, again, other = (
        [int(n) for batch in data.train_batches(epoch, 16) for n in batch.examples] for epoch in (1, 1, 2)
    )
    assert one == again != other


@names
def test_splits_have_nothing_in_common(name: str) -> None:
    data = load(name)
    train = {
        row.numpy().tobytes() for epoch in range(3) for b in data.train_batches(epoch, 16) for row in b.inputs
    }
    test, validation = set(rows(data, "test")), set(rows(data, "validation"))
    assert not test & validation
    assert not test & train
    assert not validation & train


@names
def test_a_resumed_epoch_goes_on_where_it_was(name: str) -> None:
    data = load(name)
    whole = list(data.train_batches(1, 16))
    rest = list(data.train_batches(1, 16, start=2))
    assert len(whole) == data.sizes["train"] // 16
    assert len(rest) == len(whole) - 2
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


@names
def test_a_right_answer_scores_100_and_what_is_not_asked_does_not_count(name: str) -> None:
    task = create(SMALL[name])
    _, targets = all_of(load(name), "test")
    assert task.measure(targets, targets, 0.0)["accuracy"] == 100.0
    answers = targets.where(targets != IGNORE, torch.randint(task.spec.classes, targets.shape))
    assert task.measure(answers, targets, 0.0)["accuracy"] == 100.0
    assert task.measure((targets + 1) % task.spec.classes, targets, 0.0)["accuracy"] == 0.0


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("bytes", "mad-fuzzy-recall")])
def test_a_constant_answer_scores_chance(name: str) -> None:
    """Where tokens are uniform, as those of text are not, nor those of words of several lengths."""
    task = create(SMALL[name])
    _, targets = all_of(load(name), "test")
    scored = targets[targets != IGNORE]
    shares = torch.bincount(scored, minlength=task.spec.classes) / len(scored)
    possible = int((shares > 0).sum())
    constant = int(scored[0])
    accuracy = task.measure(torch.full_like(targets, constant), targets, 0.0)["accuracy"] / 100
    error = (1 / possible * (1 - 1 / possible) / len(targets)) ** 0.5  # tokens of a row are not independent
    assert abs(accuracy - 1 / possible) < 5 * error


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("parity(test_lengths=none, test=3)", 2),
        ("selective-copy(length=12, tokens=4, vocabulary=9, test=1)", 7),
        ("mad-recall(length=24, vocabulary=8, test=1)", 4),
        ("mad-fuzzy-recall(length=40, vocabulary=11, test=1)", 5),
        ("mad-selective-copy(length=24, tokens=4, test=1)", 14),
        ("mad-compression(length=8, test=1)", 15),
        ("mad-memorization(length=8, vocabulary=21, test=1)", 10),
        ("mqar(length=32, vocabulary=24, pairs=4, test=1)", 12),
        ("induction(test_lengths=none, test=20)", 16),
    ],
)
def test_a_random_answer_is_one_of_those_that_may_be_asked_for(text: str, answers: int) -> None:
    """However few of them the test split asks for."""
    assert create(text).load(0).baselines()["a random answer"] == 100 / answers


def test_an_own_task_need_not_say_what_may_be_asked_for() -> None:
    def most(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (count, 17), generator=random)
        return bits, (2 * bits.sum(1) > 17).long()  # classes: no guess is made of the row's tokens

    sizes = {"train": 64, "validation": 20, "test": 300}
    assert GeneratedData("majority", most, sizes, 0).baselines() == {"a random answer": 50.0}


@pytest.mark.parametrize(("name", "classes"), [("digits", 10), ("sequential-digits", 10), ("textures", 3)])
def test_a_random_class(name: str, classes: int) -> None:
    assert load(name).baselines() == {"a random class": 100 / classes}
    assert create(SMALL[name]).spec.classes == classes


def test_the_best_guess_comes_first() -> None:
    """Any value of the row is right one time in as many as there are pairs."""
    data = create("mqar(length=32, vocabulary=64, pairs=4, test=50)").load(0)
    assert list(data.baselines().items()) == [("any answer of the row", 25.0), ("a random answer", 100 / 32)]
    assert list(load("parity").baselines()) == ["a random answer"], "both answers stand in every row"


MOST_FREQUENT = "the row's most frequent answer so far"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("selective-copy(length=64, tokens=8, fresh=false, train=64, validation=8)", 27),
        ("mqar(length=32, vocabulary=64, pairs=4, random_non_queries=true, train=64, validation=8)", 24),
        ("mad-recall(train=64, validation=8)", 32),
        ("mad-noisy-recall(train=64, validation=8)", 32),
        ("mad-selective-copy(train=64, validation=8)", 20.5),
        ("mad-compression(train=64, validation=8)", 15.8),
    ],
)
def test_what_a_row_has_most_often_is_a_better_guess(text: str, level: float) -> None:
    name, value = next(iter(create(text).load(0).baselines().items()))
    assert name == MOST_FREQUENT
    assert value == pytest.approx(level, abs=1.0)


def test_the_most_frequent_answer_so_far() -> None:
    rows_ = torch.tensor([[5, 1, 2, 2, 0, 1, 1], [7, 7, 0, 3, 1, 3, 1]])
    guesses = torch.tensor([[IGNORE, 1, 1, 2, 2, 2, 1], [IGNORE, IGNORE, IGNORE, 3, 3, 3, 3]])
    assert right_with_most_frequent(rows_, guesses, range(1, 4)).tolist() == [1.0, 1.0]
    wrong = guesses.where(guesses == IGNORE, guesses % 3 + 1)
    assert right_with_most_frequent(rows_, wrong, range(1, 4)).tolist() == [0.0, 0.0]
    last = torch.tensor([[1], [2]])  # one answer per row is that of its last token
    assert right_with_most_frequent(rows_, last, range(1, 4)).tolist() == [1.0, 0.0]


def test_a_guess_at_another_length_is_of_that_test_set() -> None:
    data = create("induction(length=64, train=64, validation=8, test=2000, test_lengths=32..4096)").load(0)
    levels = [next(iter(data.baselines(f"test_{length}").values())) for length in (32, 128, 4096)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 13
    assert levels[-1] == pytest.approx(100 / 16, abs=1.5)


@pytest.mark.parametrize(
    "text",
    [
        *(f"{name}(train=64, validation=8, test=1500)" for name in ("mqar", "selective-copy")),
        "mqar(length=32, vocabulary=64, pairs=4, random_non_queries=true, train=64, validation=8, test=1500)",
        "induction(length=64, train=64, validation=8, test=1500, test_lengths=32..256)",
        "parity(train=64, validation=8, test=6000, test_lengths=80..80)",
        "parity(length=12, target=every, train=64, validation=8, test=1500, test_lengths=none)",
        *(
            f"mad-{name}(train=64, validation=8, test=1500)"
            for name in (
                "recall",
                "noisy-recall",
                "fuzzy-recall",
                "selective-copy",
                "compression",
                "memorization",
            )
        ),
    ],
)
def test_no_guess_beats_the_best_one_that_is_listed(text: str) -> None:
    """Neither one answer for all, nor one for each place, nor what the row has had most often."""
    task: Any = create(text)
    data: Any = task.load(0)
    for split in ("test", *(f"test_{name}" for name in data.extra_tests)):
        inputs, targets = all_of(data, split)
        columns = targets.view(len(targets), -1)
        half = len(targets) // 2
        asked = columns != IGNORE

        def score(guess: Tensor, at: slice, targets: Tensor = targets) -> float:
            right: float = task.measure(guess.view(targets.shape)[at], targets[at], 0.0)["accuracy"]
            return right

        counts = torch.zeros(columns.shape[1], task.spec.classes)
        places = torch.arange(columns.shape[1]).expand_as(columns)
        known = asked[:half]
        where = (places[:half][known], columns[:half][known])
        counts.index_put_(where, torch.ones(int(known.sum())), accumulate=True)
        learned = slice(half, None)  # tested on what was not counted
        constant = score(counts.sum(0).argmax().expand_as(columns), learned)
        by_place = score(counts.argmax(1).expand_as(columns), learned)
        in_the_row = 100 * right_with_most_frequent(inputs, columns, data._answers).mean().item()
        best = next(iter(data.baselines(split).values()))
        assert max(constant, by_place, in_the_row) < best + 1.5, split


def test_what_leaves_nothing_to_train_on_is_refused_before_training() -> None:
    task = create("parity(length=9, test_lengths=none)")
    with pytest.raises(InputError, match="too few different examples"):
        task.load(0)
    data = create("parity(length=11, test_lengths=none)").load(0)
    for _ in zip(range(20), data.train_batches(0, 64), strict=False):
        pass  # where half of all rows are held out


def test_the_bytes_leave_out_tables_that_are_nearly_the_same() -> None:
    folders = {name.split("/")[0] for part in load("bytes").documents.values() for name in part}
    assert folders
    assert not folders & {"encodings", "pydoc_data", "test"}


@pytest.mark.parametrize("name", ["digits", "mqar", "selective-copy", "bytes"])
def test_the_loss_ignores_what_is_not_asked(name: str) -> None:
    task = create(SMALL[name])
    _, targets = all_of(load(name), "test")
    outputs = torch.randn(*targets.shape, task.spec.classes, generator=torch.Generator().manual_seed(0))
    noisy = outputs.clone()
    noisy[targets == IGNORE] += 7 * torch.randn_like(noisy[targets == IGNORE])
    assert task.loss(outputs, targets) == task.loss(noisy, targets)
    scored = -outputs.log_softmax(-1)[targets != IGNORE]
    by_hand = scored.gather(1, targets[targets != IGNORE][:, None]).mean()
    torch.testing.assert_close(task.loss(outputs, targets), by_hand)
    torch.testing.assert_close(task.loss(outputs, targets, 0.3), 0.7 * by_hand + 0.3 * scored.mean())


# ---- solved by hand


def solve_mqar(row: list[int], pairs: int) -> list[int]:
    values = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
    return [IGNORE] * 2 * pairs + [values.get(token, IGNORE) for token in row[2 * pairs :]]


def solve_selective_copy(row: list[int], marker: int) -> list[int]:
    data = [token for token in row if token not in (0, marker)]
    return [IGNORE] * (len(row) - len(data)) + data


def solve_induction(row: list[int], special: int) -> int:
    return row[row.index(special) + 1]


def solve_recall(row: list[int], keys: int) -> list[int]:
    known: dict[int, int] = {}
    answers = [IGNORE] * len(row)
    for place in range(0, len(row), 2):
        key = row[place]
        if key < keys and key in known:
            answers[place] = known[key]
        elif key < keys and place + 1 < len(row):
            known[key] = row[place + 1]
    return answers


def words_of(row: list[int], letters: int, filling: int) -> list[list[int]]:
    """Words alternate between key letters and value letters."""
    words: list[list[int]] = []
    for token in row:
        if token == filling:
            continue
        kind = token >= letters
        if words and (words[-1][0] >= letters) == kind:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def solve_fuzzy_recall(row: list[int], letters: int, filling: int) -> list[int]:
    """Every key is of three letters in the test."""
    words = words_of(row, letters, filling)
    known: dict[tuple[int, ...], list[int]] = {}
    answers = [IGNORE] * len(row)
    place = row.count(filling)
    for number, word in enumerate(words):
        if word[0] < letters:
            key = tuple(word)
            start = place + len(word) - 1  # where the first letter of the value is predicted
            if key in known:
                for offset, letter in enumerate(known[key]):
                    if start + offset < len(row):
                        answers[start + offset] = letter
            elif number + 1 < len(words):
                known[key] = words[number + 1]
        place += len(word)
    return answers


def solve_mad_copy(row: list[int], tokens: int, blank: int) -> list[int]:
    data = [token for token in row[: -tokens - 1] if token != blank]
    return [IGNORE] * (len(row) - tokens) + data


def solve_compression(row: list[int], length: int) -> list[int]:
    return [IGNORE] * length + row[: length - 1]


def solve_memorization(row: list[int]) -> list[int]:
    values = (10 + torch.randperm(10, generator=torch.Generator().manual_seed(12_345))).tolist()
    return [values[row[place - 1]] if place % 2 else IGNORE for place in range(len(row))]


SOLVERS: dict[str, Callable[[list[int]], Any]] = {
    "mqar": lambda row: solve_mqar(row, 4),
    "selective-copy": lambda row: solve_selective_copy(row, 8),
    "induction": lambda row: solve_induction(row, 16),
    "parity": lambda row: sum(row) % 2,
    "mad-recall": lambda row: solve_recall(row, 4),
    "mad-noisy-recall": lambda row: solve_recall(row, 4),
    "mad-fuzzy-recall": lambda row: solve_fuzzy_recall(row, 5, 10),
    "mad-selective-copy": lambda row: solve_mad_copy(row, 4, 14),
    "mad-compression": lambda row: solve_compression(row, 8),
    "mad-memorization": solve_memorization,
}
ON_NEXT_TOKENS = ("mad-recall", "mad-noisy-recall", "mad-fuzzy-recall")  # when training


@pytest.mark.parametrize("name", GENERATED)
def test_a_solver_by_hand_is_always_right(name: str) -> None:
    data = load(name)
    splits = ["train"] if name not in ON_NEXT_TOKENS else []
    for split in (*splits, "validation", "test", *(f"test_{extra}" for extra in data.extra_tests)):
        inputs, targets = all_of(data, split)
        assert [SOLVERS[name](row) for row in inputs.tolist()] == targets.tolist()


def test_the_examples_of_the_docstrings() -> None:
    skip = IGNORE
    row = [7, 8, 4, 12, 2, 9, 5, 10, 7, 0, 2, 0, 0, 0, 5, 0, 4, 0, 0, 0, 0, 0, 0, 0]
    answers = {8: 8, 10: 9, 14: 10, 16: 12}
    assert solve_mqar(row, 4) == [answers.get(place, skip) for place in range(24)]
    assert solve_selective_copy([0, 4, 0, 0, 1, 2, 0, 0, 5, 5, 5], 5) == [skip] * 8 + [4, 1, 2]
    assert solve_induction([2, 0, 4, 3, 1, 1, 0, 4], 4) == 3
    assert solve_recall([1, 2, 0, 2, 1, 2, 0], 2) == [skip] * 4 + [2, skip, 2]
    assert solve_mad_copy([4, 1, 4, 0, 5, 4, 4], 2, 4) == [skip] * 5 + [1, 0]
    texts = {
        MQAR: " ".join(map(str, row)),
        SelectiveCopy: "0 4 0 0 1 2 0 0 5 5 5",
        Induction: "2 0 4 3 1 1 0 4",
        Recall: "1 2 0 2 1 2 0 ",
    }
    assert all(text in (task.__doc__ or "") for task, text in texts.items())


@pytest.mark.parametrize("name", ON_NEXT_TOKENS)
def test_training_asks_for_every_next_token(name: str) -> None:
    for batch in load(name).train_batches(0, 16):
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


@pytest.mark.parametrize("name", GENERATED)
def test_whatever_may_be_asked_for_is(name: str) -> None:
    data: Any = load(name)
    _, targets = all_of(data, "test")
    assert set(targets[targets != IGNORE].tolist()) == set(data._answers)


def test_blanks_of_mads_copy_are_put_before_data() -> None:
    inputs, _ = all_of(load("mad-selective-copy"), "test")
    assert (inputs[:, 24 - 4 - 2] < 14).all(), "the copy token follows the last of the data"
    first = (inputs < 14).int().argmax(1).double().mean().item()
    assert first == pytest.approx(15 / 4, abs=0.4), "of 15 blanks"


@pytest.mark.parametrize("name", ON_NEXT_TOKENS)
def test_every_row_of_a_recall_ends_with_a_key_that_comes_back(name: str) -> None:
    """From anywhere in the row."""
    inputs, targets = all_of(load(name), "test")
    assert (targets[:, -1] != IGNORE).all()
    if name != "mad-fuzzy-recall":
        firsts = [row.index(row[-1]) for row in inputs.tolist()]
    else:
        firsts = [words.index(words[-2 if words[-1][0] >= 5 else -1]) for words in fuzzy_words(inputs)]
    assert len(set(firsts)) > 3


def fuzzy_words(inputs: Tensor) -> list[list[list[int]]]:
    return [words_of(row, 5, 10) for row in inputs.tolist()]


def test_words_of_fuzzy_recall_have_one_to_three_different_letters_and_keys_of_the_test_three() -> None:
    data = load("mad-fuzzy-recall")
    sizes: dict[str, set[tuple[bool, int]]] = {}
    for split, inputs in (
        ("train", torch.cat([batch.inputs for batch in data.train_batches(0, 16)])),
        ("test", all_of(data, "test")[0]),
    ):
        for words in fuzzy_words(inputs):
            whole = words[:-1]  # the row ends inside the last one
            assert all(len(set(word)) == len(word) for word in whole)
            sizes.setdefault(split, set()).update((word[0] >= 5, len(word)) for word in whole)
    values = {(True, 1), (True, 2), (True, 3)}
    assert sizes["train"] == values | {(False, 1), (False, 2), (False, 3)}
    assert sizes["test"] == values | {(False, 3)}


def test_a_share_of_the_pairs_is_noise() -> None:
    inputs, _ = all_of(load("mad-noisy-recall"), "test")
    noise = (inputs >= 8).double().mean().item()  # of 8 keys and values and 4 noise tokens
    assert noise == pytest.approx(0.3 * 20 / 23, abs=0.02), "neither the last pair nor one that is kept"


def test_accuracy_is_the_mean_over_rows_and_loss_that_over_tokens() -> None:
    task = create(SMALL["mad-recall"])
    targets = torch.tensor([[3, IGNORE, IGNORE], [1, 2, 3]])
    right_once = torch.tensor([[3, 0, 0], [0, 0, 0]])
    assert task.measure(right_once, targets, 0.0)["accuracy"] == 50.0
    assert [task.loss_weight(row[None]) for row in targets] == [1.0, 3.0]
    outputs = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    together, apart = task.scorer(), task.scorer()
    together.add(outputs, targets, torch.arange(2))
    for row in range(2):
        apart.add(outputs[[row]], targets[[row]], torch.tensor([row]))
    assert apart.metrics() == pytest.approx(together.metrics())
    assert together.metrics()["loss"] == pytest.approx(task.loss(outputs, targets).item())


def test_mads_baseline_scores_about_56_of_127_tokens() -> None:
    _, targets = TASKS.create(TASKS.parse("mad-recall")).draw(500, torch.Generator().manual_seed(0))
    assert targets.shape == (500, 127)
    assert (targets != IGNORE).sum(1).double().mean().item() == pytest.approx(56, abs=1)


def test_running_parity() -> None:
    task = TASKS.create(TASKS.parse("parity(target=every)"))
    inputs, targets = task.draw(50, torch.Generator().manual_seed(0))
    assert targets.tolist() == [[sum(row[: i + 1]) % 2 for i in range(len(row))] for row in inputs.tolist()]


def test_mqar_is_zoologys() -> None:
    task = MQAR(length=64, vocabulary=8192, pairs=4)
    inputs, targets = task.draw(4_000, torch.Generator().manual_seed(0))
    assert ((targets != IGNORE).sum(1) == 4).all()
    keys, values = inputs[:, 0:8:2], inputs[:, 1:8:2]
    assert 1 <= keys.min() <= keys.max() < 4096 <= values.min()
    for tokens in (keys, values):
        assert (tokens.sort(1).values.diff(dim=1) > 0).all(), "each once"
    questions = (targets != IGNORE).nonzero()[:, 1]
    assert (questions % 2 == 0).all()
    early = (questions < 8 + 2 * 8).float().mean().item()
    assert early == pytest.approx(0.64, abs=0.02), "64 % of the questions in the first 8 places"
    filled, _ = MQAR(random_non_queries=True).draw(100, torch.Generator().manual_seed(0))
    assert (filled == 0).float().mean() < 0.01


def test_distinct_is_uniform_without_repetition() -> None:
    in_parts = distinct(3, 2**23, 2, torch.Generator().manual_seed(0))
    assert in_parts.shape == (3, 2)
    drawn = distinct(20_000, 6, 3, torch.Generator().manual_seed(0))
    assert (drawn.sort(1).values.diff(dim=1) > 0).all()
    shares = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(shares, torch.full((6,), 1 / 6), atol=0.01, rtol=0)


def test_induction_at_other_lengths() -> None:
    data = load("induction")
    assert data.extra_tests == {"8": (8,), "16": (16,), "32": (32,)}
    for extra in data.extra_tests:
        inputs, _ = all_of(data, f"test_{extra}")
        assert inputs.shape == (300, int(extra))
        assert (inputs[:, -1] == 16).all()
        assert ((inputs == 16).sum(1) == 2).all()


def test_repeated_rows_are_drawn_again_until_it_is_hopeless() -> None:
    def coin(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        flips = torch.randint(2, (count, 8), generator=generator)
        return flips, flips.sum(1)

    sizes = {"train": 100, "validation": 30, "test": 30}
    data = GeneratedData("coin", coin, sizes, 0)
    assert not set(rows(data, "train")) & set(rows(data, "test"))
    with pytest.raises(InputError, match="too few different examples"):
        GeneratedData("coin", coin, sizes | {"test": 5_000}, 0)


# ---- data that is real


def test_bytes_documents_are_in_one_split_each() -> None:
    data: Any = load("bytes")
    parts = [set(data.documents[split]) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) > 300
    inputs, targets = all_of(data, "test")
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    baselines = data.baselines()
    assert 1.5 < baselines["zlib -9"] < 2.5 < baselines["bigram"] < 4.5


def test_windows_reach_the_end_of_a_text_and_no_further() -> None:
    documents = [(str(number), bytes(range(10 * number, 10 * number + 10))) for number in range(20)]
    data = BytesData(Bytes(length=8, train=4096, validation=1, test=1), documents, 0)
    begins = torch.cat([batch.examples for batch in data.train_batches(0, 64)])
    size = 10 * len(data.documents["train"])
    assert (begins.min(), begins.max()) == (0, size - 9), "8 bytes and the next"


def test_bits_per_byte() -> None:
    task = create(SMALL["bytes"])
    _, targets = all_of(load("bytes"), "test")
    assert task.measure(targets, targets, np.log(2.0))["bits_per_byte"] == pytest.approx(1.0)
    assert not task.metric.higher_is_better


def test_bigrams_by_hand() -> None:
    train = np.frombuffer(b"abab" * 100, dtype=np.uint8)
    sure = bigram_bits_per_byte(train, np.frombuffer(b"abababab", dtype=np.uint8))
    assert sure == pytest.approx(np.mean([*[np.log2(456 / 201)] * 4, *[np.log2(455 / 200)] * 3]), rel=1e-6)
    assert bigram_bits_per_byte(train, np.frombuffer(b"cccc", dtype=np.uint8)) == pytest.approx(8.0)


def test_a_corpus_without_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 Python sources in .*--task.corpus"):
        read_documents(tmp_path)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, labels = read_digits()
    found = load_digits()
    assert np.array_equal(images.numpy(), (found.images / 16).astype(np.float32))
    assert np.array_equal(labels.numpy(), found.target)


def test_digits_bend_both_ways_by_at_most_the_distortion(monkeypatch: pytest.MonkeyPatch) -> None:
    maps: list[Tensor] = []
    affine_grid = functional.affine_grid

    def note(theta: Tensor, *arguments: Any, **options: Any) -> Tensor:
        maps.append(theta)
        return affine_grid(theta, *arguments, **options)

    monkeypatch.setattr(functional, "affine_grid", note)
    data = Digits(distort=0.3).load(0)
    for batch in data.train_batches(0, 64):
        assert batch.inputs.isfinite().all()
    bent = torch.cat(maps)
    assert not bent[:, :, 2].any(), "to be moved is what the canvas is for"
    bend = bent[:, :, :2] - torch.eye(2)
    for end in (bend.amax(0), -bend.amin(0)):
        assert (end > 0.29).all()
        assert (end <= 0.3 + 1e-6).all()
    assert bend.mean(0).abs().max() < 0.03


def test_sequential_digits_are_the_digits_read_in_raster_order() -> None:
    images, _ = all_of(Digits(canvas=8, distort=0.0).load(0), "test")
    tokens, labels = all_of(TASKS.create(TASKS.parse("sequential-digits(canvas=8)")).load(0), "test")
    assert torch.equal(grey_levels(images), tokens)
    from sklearn.datasets import load_digits

    known = {
        row.astype(int).tobytes(): label for row, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    assert all(known[row.numpy().tobytes()] == label for row, label in zip(tokens, labels, strict=True))


def test_textures_share_no_pixel_and_are_normalised() -> None:
    data: Any = load("textures")
    for photograph in range(3):
        parts = [set(data.blocks[split][photograph].tolist()) for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 16
    inputs, _ = all_of(data, "test")
    torch.testing.assert_close(inputs.mean((1, 2, 3)), torch.zeros(60), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((1, 2, 3)), torch.ones(60), atol=1e-3, rtol=0)


def test_turning_gives_all_eight_orientations() -> None:
    piece = torch.arange(4.0).view(1, 1, 2, 2).repeat(200, 1, 1, 1)
    seen = {tuple(each.flatten().tolist()) for each in turned(piece, torch.Generator().manual_seed(0))}
    assert len(seen) == 8


# ---- what does not fit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mqar(vocabulary=8, pairs=4)", "vocabulary 8 has 3 keys, too few for 4 pairs; it takes 10"),
        ("mqar(length=14, pairs=4)", "4 pairs and their questions need a length of 16, got 14"),
        ("mqar(length=33)", "must be even"),
        ("selective-copy(length=8, tokens=9)", "9 data tokens do not fit into length 8"),
        ("selective-copy(vocabulary=3)", "leaves fewer than two data tokens"),
        ("induction(test_lengths=64)", "test_lengths must be like 64..1024"),
        ("induction(length=3)", "length: Input should be greater than or equal to 4"),
        ("digits(validation=900, test=900)", "leave too few"),
        ("mad-recall(length=5)", "length must be even and at least 4, got 5"),
        ("mad-noisy-recall(vocabulary=17)", "vocabulary 17 leaves no key and value beside 16 noise tokens"),
        ("mad-fuzzy-recall(vocabulary=6)", "has 2 key letters, words need 3"),
        ("mad-selective-copy(length=9, tokens=4)", "4 data tokens need a length of 10, got 9"),
        ("mad-memorization(length=7)", "length must be even"),
        ("parity(test_lengths=9..4)", "test_lengths must be like 64..1024"),
        ("textures(side=200)", "side: Input should be less than or equal to 128"),
    ],
)
def test_what_does_not_fit_is_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("..", r"\.\.")) as caught:
        create(text)
    assert "\n" not in str(caught.value)


def test_too_few_bytes_for_the_windows() -> None:
    with pytest.raises(InputError, match=r"the test documents hold .* fewer than the 500000 asked for"):
        create("bytes(test=500000)").load(0)


def test_ranges_of_lengths() -> None:
    assert read_lengths("t", "64..256") == (64, 128, 256)
    assert read_lengths("t", "64..200") == (64, 128)
    assert read_lengths("t", "none") == ()
