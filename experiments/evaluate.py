"""A model's answers to a split, marked by its task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.cost import token_mixers
from experiments.interface import TaskSpec
from experiments.machine import is_out_of_memory, release_memory
from experiments.ranks import ALONE, Ranks
from experiments.recipe import autocast
from experiments.skeletons.causal_lm import CausalLM
from experiments.tasks.base import Task, TaskData, to_device
from experiments.tasks.reading import FilesRead
from experiments.trial import Precision
from mixers.registry import InputError

ANSWERS_AT_ONCE = 2**18
EXAMPLES_AT_ONCE = 256
IN_PARALLEL = 2**15  # longer sequences are read token by token, if the mixers can

Answers = dict[str, np.ndarray]
"""What was answered to every example of a split, as stored in `predictions.npz`."""
_Answered = tuple[Any, Any, Tensor]


class EvaluationOutOfMemory(Exception):
    """Not even a single example of a split can be answered in the memory that there is."""


class CannotDecode(Exception):
    """A sequence is too long to be read at once, and the model cannot read it token by token."""


@dataclass
class Evaluator:
    """Has a task's splits answered by a model; ranks share the work, and all get what comes of it.

    Where memory runs out, a split is begun again with fewer examples at a time; not among several ranks, of
    which the others would wait.

    Attributes:
        task: that marks the answers.
        data: of one seed of the task.
        device: that the model is on.
        precision: of its matrix products.
        ranks: this process among those that evaluate together.
        say: is told when fewer examples are answered at once.
        watch: is called after every batch, on every rank as often; may raise.
        at_most: examples that are answered at once; learned where memory runs out.
    """

    task: Task
    data: TaskData
    device: torch.device
    precision: Precision = "float32"
    ranks: Ranks = ALONE
    say: Callable[[str], object] = print
    watch: Callable[[], object] = lambda: None
    at_most: int = EXAMPLES_AT_ONCE

    def answer(self, model: nn.Module, split: str) -> tuple[dict[str, float], Answers]:
        """Metrics of a split, and what was answered to every example of it.

        Raises:
            EvaluationOutOfMemory: out of memory with a single example.
            CannotDecode: a sequence is too long to be read at once, and the mixers cannot read it in steps.
        """
        while True:
            at_once = min(_examples_at_once(self.task.spec), self.at_most)
            try:
                return self._answer(model, split, at_once)
            except Exception as error:
                if self.ranks.count > 1 or not is_out_of_memory(error):
                    raise
            release_memory()  # which the frames of the exception held until here
            self._halve(at_once, split)

    def _halve(self, used: int, split: str) -> None:
        """Go on with half of the `used` examples.

        Raises:
            EvaluationOutOfMemory: there is no half.
        """
        if used == 1:
            raise EvaluationOutOfMemory(
                f"not even one example of the {split} split fits: it takes more memory or a smaller model"
            )
        self.at_most = used // 2
        self.say(
            f"out of memory with {used} examples of the {split} split at a time: goes on with {used // 2}"
        )

    @torch.inference_mode()
    def _answer(self, model: nn.Module, split: str, at_once: int) -> tuple[dict[str, float], Answers]:
        model.eval()
        scorer = self.task.scorer()
        answered = self._answered(model, split, at_once)
        for outputs, targets, examples in answered if self.ranks.count == 1 else self._gathered(answered):
            scorer.add(outputs, targets, examples)
            self.watch()
        return scorer.metrics(), scorer.answers()

    def _answered(self, model: nn.Module, split: str, at_once: int) -> Iterator[_Answered]:
        """Outputs, targets and ids of the batches that are this rank's."""
        batches = self.data.batches(split, at_once)
        if self.ranks.count > 1 and not isinstance(self.data, FilesRead):
            batches = islice(batches, self.ranks.rank, None, self.ranks.count)
        for batch in batches:
            inputs, targets = to_device((batch.inputs, batch.targets), self.device)
            with autocast(self.device, self.precision):
                outputs = _answer(model, self.task.spec, inputs)
            yield _in_float32(outputs), targets, batch.examples

    def _gathered(self, answered: Iterator[_Answered]) -> Iterator[_Answered]:
        """What all ranks answered, in the order of the batches."""
        while True:
            own = next(answered, None)
            every = self.ranks.gather(None if own is None else to_device(own, torch.device("cpu")))
            yield from (each for each in every if each is not None)
            if all(each is None for each in every):
                return

    def answer_extra_tests(self, model: nn.Module) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics of the task's further test sets, `accuracy_1024`, and why others have none."""
        metrics: dict[str, float] = {}
        skipped: dict[str, str] = {}
        for name in self.data.extra_tests:
            try:
                found, _ = self.answer(model, f"test_{name}")
            except (CannotDecode, EvaluationOutOfMemory, InputError) as error:
                skipped[name] = str(error)
                continue
            wrong = [metric for metric, value in found.items() if not math.isfinite(value)]
            if wrong:
                skipped[name] = f"{', '.join(wrong)} not finite"
            else:
                metrics |= {f"{metric}_{name}": value for metric, value in found.items()}
        return metrics, skipped


def _in_float32(outputs: Any) -> Any:
    """What autocast left in half precision is measured in full."""
    if isinstance(outputs, tuple):
        return tuple(_in_float32(each) for each in outputs)
    return outputs.float() if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs


def _examples_at_once(spec: TaskSpec) -> int:
    answers = math.prod(spec.grid) if spec.output != "one" else 1
    return max(1, min(EXAMPLES_AT_ONCE, ANSWERS_AT_ONCE // answers))


def _answer(model: nn.Module, spec: TaskSpec, inputs: Any) -> Any:
    """The model's outputs; several views of the same images are answered one after the other.

    One answer for a very long sequence comes from reading it token by token.
    """
    if isinstance(inputs, tuple):
        return tuple(_answer(model, spec, view) for view in inputs)
    if spec.input == "tokens" and spec.output == "one" and inputs.shape[1] > IN_PARALLEL:
        return decode(model, inputs)
    return model(inputs)


def decode(model: nn.Module, inputs: Tensor) -> Tensor:
    """Read sequences token by token, in memory that does not grow: (B, L) -> (B, classes) after the last.

    Raises:
        CannotDecode: the model cannot, or what it carries grows with the length.
    """
    length = f"{inputs.shape[1]:,} tokens"
    if not isinstance(model, CausalLM):
        raise CannotDecode(f"{type(model).__name__} cannot read {length} one by one")
    for name, mixer in token_mixers(model):
        if mixer.state_size(1) is None:
            raise CannotDecode(
                f"{length} do not fit, and {name} has no recurrent form to read them one by one"
            )
        if mixer.state_size(2) != mixer.state_size(1):
            raise CannotDecode(f"{length} do not fit: what {name} carries grows with each")
    state = model.init_state(len(inputs))
    for ids in inputs.unbind(1):
        outputs, state = model.step(ids, state)
    return outputs
