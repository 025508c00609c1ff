"""The processes that train one model together, as torchrun starts them. Free of torch until they meet.

Each has the whole model and a share of every batch. The first, rank 0, plans, writes and reports; the others
follow it from trial to trial.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")

STEP_TIMEOUT = timedelta(minutes=10)
"""How long one process waits for the others within a trial before it gives up."""
MESSAGE_TIMEOUT = timedelta(days=7)
"""How long the others wait for what rank 0 plans next."""


def count_launched() -> int:
    """How many processes torchrun started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return count_launched() > 1


def is_first() -> bool:
    """Whether this process is the one that plans and writes; true where there is only one."""
    return not launched() or os.environ["RANK"] == "0"


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone by default.

    Attributes:
        rank: its number.
        count: of processes.
        messages: the process group in which they wait for one another as long as it takes.
    """

    rank: int = 0
    count: int = 1
    messages: Any = None

    def sum(self, value: float) -> float:
        """The sum of every process's value, on every process."""
        if self.count == 1:
            return value
        import torch

        total = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return total.item()

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in the order of their ranks, on every process."""
        if self.count == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def tell(self, value: Value) -> Value:
        """Rank 0's value, on every process; the others wait for it as long as it takes."""
        if self.count == 1:
            return value
        import torch

        message = [value]
        torch.distributed.broadcast_object_list(message, src=0, group=self.messages)
        return message[0]


ALONE = Ranks()


class RanksLost(Exception):
    """A process cannot reach the others any more: nothing can be run together until all start anew."""


def join(device: str) -> Ranks:
    """Meet the others; on GPUs each takes the one of its local rank.

    Args:
        device: "auto", "cpu" or "cuda".
    """
    import torch
    from torch import distributed

    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=STEP_TIMEOUT)
    messages = distributed.new_group(backend="gloo", timeout=MESSAGE_TIMEOUT)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), messages)


def leave() -> None:
    """Part from the others."""
    from torch import distributed

    distributed.destroy_process_group()
