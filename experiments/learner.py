"""What is trained, and one update of it: a model with its optimizer, schedule, mixup and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiments.build import build_model, choose_backend
from experiments.cost import training_memory
from experiments.divided_batches import WholeBatchNoise, noise_of, with_whole_batches
from experiments.ranks import Ranks
from experiments.recipe import (
    autocast,
    make_average,
    make_mixup,
    make_optimizer,
    make_scaler,
    make_scheduler,
)
from experiments.runtime import Runtime
from experiments.tasks.base import Batch, Task, part_of, to_device
from experiments.trial import Trial


class Learner:
    """A trial's model in training.

    Args:
        trial: whose.
        task: of the trial.
        runtime: how it runs; changes speed, memory and rounding only.
        ranks: this process among those that train the model together.
        device: where it is trained.
        steps_per_epoch: updates; what the schedule counts in.

    Attributes:
        model: the skeleton with its mixers.
        backend: of every operation of the model that has a choice on this device.
        grad_norm: of the last update, before clipping; None where nothing is clipped.

    Raises:
        InputError: the model cannot be built, or not be trained in this way here.
    """

    def __init__(
        self,
        trial: Trial,
        task: Task,
        runtime: Runtime,
        ranks: Ranks,
        device: torch.device,
        steps_per_epoch: int,
    ) -> None:
        self.recipe, self.task, self.runtime, self.ranks = trial.train, task, runtime, ranks
        self.device = device
        self.model = with_whole_batches(build_model(trial), self.recipe, runtime, ranks, device)
        self.model.to(device)
        self._noises = [module for module in self.model.modules() if isinstance(module, WholeBatchNoise)]
        self.backend = choose_backend(self.model, runtime.backend, device)
        if runtime.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: nn.Module = self.model  # what is run in training
        if runtime.compile:
            self._network = torch.compile(self.model)  # type: ignore[assignment]
        if ranks.count > 1:
            self._network = DistributedDataParallel(self._network)
        self._average = make_average(self.model, self.recipe)
        self._optimizer = make_optimizer(self.model, self.recipe)
        self._scheduler = make_scheduler(self._optimizer, self.recipe, steps_per_epoch)
        self._scaler = make_scaler(self.recipe, device)
        self._mixup = make_mixup(self.recipe, task.spec.classes)
        self.grad_norm: Tensor | None = None

    @property
    def tested(self) -> nn.Module:
        """The model with the weights that are tested: their average, if there is one."""
        return self.model if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        """That of the last update."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def on_device(self, batch: Batch) -> tuple[Any, Any]:
        """A batch's inputs and targets where the model is, in the memory format that it computes in."""
        inputs, targets = to_device((batch.inputs, batch.targets), self.device)
        if self.runtime.channels_last and self.task.spec.input == "image" and isinstance(inputs, Tensor):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets

    def update(self, step: int, inputs: Any, targets: Any, count: int) -> float:
        """One update of the weights by a batch, unless its loss is not finite; that loss.

        Args:
            step: updates before this one.
            inputs: of the batch's examples that are here.
            targets: theirs.
            count: how many those are.
        """
        self._scheduler.step_update(step)
        smoothing = self.recipe.label_smoothing
        if self._mixup is not None:
            inputs, targets = self._mixup(inputs, targets)
            smoothing = 0.0  # the mixed targets are smoothed already
        self._optimizer.zero_grad(set_to_none=True)
        value = 0.0
        whole = self.ranks.sum(self.task.loss_weight(targets))
        size = self.runtime.micro_batch or count
        for start in range(0, count, size):
            part = slice(start, start + size)
            weight = self.task.loss_weight(part_of(targets, part)) / whole
            with self._exchange(last=start + size >= count), noise_of(part, self._noises):
                value += self._backward(part_of(inputs, part), part_of(targets, part), smoothing, weight)
            if not math.isfinite(value):
                return value  # before it reaches the weights, so that its origin can still be found
        if self.recipe.clip_grad is not None:
            self._scaler.unscale_(self._optimizer)
            self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.model, step=step + 1)
        return value

    def _exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange their gradients after the last part of a batch only."""
        if last or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        return self._network.no_sync()

    def _backward(self, inputs: Any, targets: Any, smoothing: float, weight: float) -> float:
        """Add to the gradients what a part of the batch contributes; what it adds to the batch's loss."""
        loss = self._loss(self._network, inputs, targets, smoothing) * weight
        value = self.ranks.sum(loss.item())
        if math.isfinite(value):
            self._scaler.scale(loss * self.ranks.count).backward()  # of which the ranks' mean is taken
        return value

    def _loss(self, network: nn.Module, inputs: Any, targets: Any, smoothing: float = 0.0) -> Tensor:
        with autocast(self.device, self.recipe.precision):
            loss = self.task.training_loss(network, inputs, targets, smoothing)
            return loss + self.model.auxiliary_loss()

    def first_non_finite(self, inputs: Any, targets: Any) -> str:
        """Where in the model the loss of this batch stops being finite, in words."""
        return first_non_finite(self.model, partial(self._loss, self.model, inputs, targets))

    def training_memory(self, batch: Batch) -> int:
        """Bytes that one update by this batch, or by its first micro-batch, must hold on a CPU."""
        part = slice(self.runtime.micro_batch)
        inputs, targets = part_of(batch.inputs, part), part_of(batch.targets, part)
        held = training_memory(self.model, lambda: self._loss(self.model, inputs, targets), self._optimizer)
        average = [] if self._average is None else self._average.module.parameters()
        return held + sum(each.nbytes for each in average)

    def state_dict(self) -> dict[str, Any]:
        """All that changes in training."""
        return {
            "model": self.model.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state.

        Raises:
            Exception: it is not the state of such a learner; part of it may be loaded.
        """
        self.model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self._optimizer.state.items():  # of which it counts the parameters only
            shapes = {value.shape for value in moments.values() if isinstance(value, Tensor) and value.ndim}
            if not shapes <= {parameter.shape}:
                raise ValueError(f"optimizer state of shapes {shapes} for a parameter of {parameter.shape}")
        self._scaler.load_state_dict(state["scaler"])


@torch.no_grad()
def first_non_finite(model: nn.Module, run: Callable[[], Any]) -> str:
    """The first module whose output is not finite while the model runs, in the order in which they finish."""
    found: list[str] = []

    def look(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(f"first in the output of {name} ({type(module).__name__})")

    hooks = [
        module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found[0] if found else "though every layer's output is"
