"""What a model costs: parameters, multiply-accumulates, recurrent state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

from experiments.interface import TaskSpec
from experiments.skeletons.base import Skeleton
from experiments.skeletons.mask_rcnn import DETECTIONS, PROPOSALS
from mixers.base import TokenMixer

MACS_CONVENTION = (
    "forward pass of one example, 1 MAC = 2 FLOPs; matrix products and convolutions; scan 3 MACs per "
    "(token, channel, state); attention in full, causal too, windows exactly; a mixture of experts as the "
    "experts that a token visits; norms, activations and biases not counted"
)
DETECTOR_CONVENTION = (
    f"; at the task's largest image, with {PROPOSALS:,} proposals through the box head and {DETECTIONS} "
    "through the mask head, as in mmdetection"
)
STATE_BYTES_PER_NUMBER = 4  # states are kept in float32


@dataclass(frozen=True)
class Costs:
    """Sizes of one model.

    Attributes:
        params: all parameters.
        params_mixer: those of the token mixers.
        macs: multiply-accumulates of one forward pass of one example.
        macs_mixer: those of the token mixers.
        state_bytes: carried per sequence at the task's length; None if a mixer has no recurrent form on this
            grid.
        macs_convention: how they were counted.
    """

    params: int
    params_mixer: int
    macs: int
    macs_mixer: int
    state_bytes: int | None
    macs_convention: str = MACS_CONVENTION

    def to_dict(self) -> dict[str, int | str | None]:
        """As stored in a result."""
        return {
            "params": self.params,
            "params_mixer": self.params_mixer,
            "params_rest": self.params - self.params_mixer,
            "macs": self.macs,
            "macs_mixer": self.macs_mixer,
            "macs_convention": self.macs_convention,
            "state_bytes": self.state_bytes,
            "state_note": "float32, per sequence" if self.state_bytes is not None else "no recurrent form",
        }


def token_mixers(model: nn.Module) -> Iterator[tuple[str, TokenMixer]]:
    """The mixers in the slots of a model, by name; parts of a mixer are not listed by themselves."""
    found = ""
    for name, module in model.named_modules():
        inside = found and name.startswith(f"{found}.")
        if isinstance(module, TokenMixer) and not inside:
            found = name
            yield name, module


def costs_of(model: Skeleton, spec: TaskSpec) -> Costs:
    """Count a model that was built on the meta device.

    The mixers are counted by their own closed forms, the rest by torch's counter with the mixers
    passed by: the counter knows neither scans nor attention on every device.
    """
    from torch.utils.flop_counter import FlopCounterMode  # its import takes as long as NumPy's

    mixers = [mixer for _, mixer in token_mixers(model)]
    with FlopCounterMode(display=False) as counter:
        macs_mixer, states = run_on_nothing(model, spec)
    known = [size for size in states if size is not None]
    return Costs(
        params=count_params(model),
        params_mixer=sum(parameter.numel() for mixer in mixers for parameter in mixer.parameters()),
        macs=counter.get_total_flops() // 2 + macs_mixer,
        macs_mixer=macs_mixer,
        state_bytes=STATE_BYTES_PER_NUMBER * sum(known) if len(known) == len(states) else None,
        macs_convention=MACS_CONVENTION + (DETECTOR_CONVENTION if spec.output == "instances" else ""),
    )


def count_params(model: nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def run_on_nothing(model: Skeleton, spec: TaskSpec) -> tuple[int, list[int | None]]:
    """Run a model on one example of zeros, its mixers passed by; what does not fit fails here.

    On the meta device nothing is computed.

    Returns:
        Multiply-accumulates of the mixers, and the numbers in each one's state; None if it has none.
    """
    grids: list[tuple[TokenMixer, tuple[int, ...]]] = []

    def pass_by(mixer: TokenMixer, x: Tensor) -> Tensor:
        grids.append((mixer, tuple(x.shape[1:-1])))
        return x

    with _forward_replaced([mixer for _, mixer in token_mixers(model)], pass_by), torch.no_grad():
        model.eval().forward_nominal(example_input(spec, 1, next(model.parameters()).device))
    states = [mixer.state_size(grid[0]) if len(grid) == 1 else None for mixer, grid in grids]
    return sum(mixer.macs(grid) for mixer, grid in grids), states


@contextmanager
def _forward_replaced(
    mixers: list[TokenMixer], forward: Callable[[TokenMixer, Tensor], Tensor]
) -> Iterator[None]:
    for mixer in mixers:
        object.__setattr__(mixer, "forward", MethodType(forward, mixer))
    try:
        yield
    finally:
        for mixer in mixers:
            object.__delattr__(mixer, "forward")


def example_input(spec: TaskSpec, batch_size: int, device: torch.device | str) -> Tensor:
    """An input of the right shape and type, all zeros."""
    if spec.input == "image":
        return torch.zeros(batch_size, spec.channels, *spec.grid, device=device)
    return torch.zeros(batch_size, *spec.grid, dtype=torch.long, device=device)


def training_memory(model: nn.Module, loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Bytes held at the end of a forward pass in training: parameters, gradients, optimizer, activations.

    Counted, not sampled: process memory on a CPU moves with the allocator and with what ran before.

    Args:
        model: that is trained.
        loss_of: runs the model on a batch and gives its loss.
        optimizer: after at least one step.
    """
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that kept its own output, graph included, would never be freed

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of()  # keeps the graph, and with it the storages, alive
    activations = sum(storages.values()) + loss.nbytes
    states = [value for state in optimizer.state.values() for value in state.values()]
    moments = sum(value.nbytes for value in states if isinstance(value, Tensor))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return activations + moments + 2 * weights
