"""What decoding costs as the context grows: flat for what has a state, growing for what has a cache.

    python benchmarks/decoding.py                        about two minutes on one core
    python benchmarks/decoding.py --csv decoding.csv     and keep the numbers

Every causal mixer with a recurrent form decodes one sequence token by token, float32, one thread, by itself
(no block, no embedding). At each context length:

    us/token    median time of a step over the last 64 tokens before it
    state       bytes carried to the next token, counted on the tensors themselves
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.machine import processor_name
from mixers import MIXERS
from mixers.base import TokenMixer

DIM = 64
CONTEXTS = [2**power for power in range(6, 15)]
WINDOW = 64  # tokens timed before each context length


class Point(NamedTuple):
    """One mixer at one context length."""

    mixer: str
    context: int
    microseconds_per_token: float
    state_bytes: int
    machine: str


def recurrent_mixers() -> list[tuple[str, TokenMixer]]:
    """Every registered mixer that decodes, in its causal form on a sequence."""
    found = []
    for name in MIXERS:
        mixer_class = MIXERS.load(name)
        torch.manual_seed(0)
        mixer = mixer_class(DIM, 1, **mixer_class.place_defaults(1, True))
        if mixer.causal and mixer.state_size(1) is not None:
            found.append((name, mixer.eval()))
    return found


@torch.inference_mode()
def decode(name: str, mixer: TokenMixer, machine: str) -> list[Point]:
    """Time the steps of one long sequence."""
    generator = torch.Generator().manual_seed(0)
    state = mixer.init_state(1)
    times: list[float] = []
    points = []
    for position in range(1, CONTEXTS[-1] + 1):
        x = torch.randn(1, DIM, generator=generator)
        start = time.perf_counter()
        _, state = mixer.step(x, state)
        times.append(time.perf_counter() - start)
        if position in CONTEXTS:
            carried = sum(tensor.nbytes for tensor in state)
            points.append(Point(name, position, 1e6 * statistics.median(times[-WINDOW:]), carried, machine))
    return points


def table(points: list[Point]) -> str:
    """Microseconds per token and bytes, context by context."""
    lines = [f"{'us per token':<26}" + "".join(f"{context:>10,}" for context in CONTEXTS)]
    names = list(dict.fromkeys(point.mixer for point in points))
    for what, form in (("microseconds_per_token", "{:>10.0f}"), ("state_bytes", "{:>10,}")):
        if what == "state_bytes":
            lines += ["", f"{'bytes of state':<26}"]
        for name in names:
            values = [getattr(point, what) for point in points if point.mixer == name]
            lines.append(f"{name:<26}" + "".join(form.format(value) for value in values))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{processor_name()}, one thread, torch {torch.__version__}, {DIM} channels, float32"
    print(machine)
    points = [point for name, mixer in recurrent_mixers() for point in decode(name, mixer, machine)]
    print(table(points))
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Point._fields)
            writer.writerows(points)


if __name__ == "__main__":
    main()
