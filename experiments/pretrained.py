"""Weights that a model starts from: those that timm has on this disk, or a file. Nothing is downloaded.

Resolved, `Recipe.weights` carries the hash of the file, `timm@1f0c6e2a93b7`, because a trial must say all
that determines its number. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixers.registry import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.skeletons.base import Skeleton

RELEASED = ("femto", "kobe", "tiny", "small", "base")
CLASSIFIER = ("head.fc.weight", "head.fc.bias")
DENSE = ("head.", "stage_norms.")  # what no classifier has


def with_source(weights: str, skeleton: str) -> str:
    """What was asked for, "timm" or a file, with the hash of the file.

    Raises:
        InputError: there is no such file.
    """
    asked, planned = _split(weights)
    found = _hash(_locate(asked, skeleton))
    if planned and planned != found:
        raise InputError(f"the weights {asked} have changed since this trial was planned; plan it again")
    return f"{asked}@{found}"


def read(weights: str, skeleton: str) -> dict[str, Tensor]:
    """The weights under our names: of our own files, timm's, or the official checkpoints'.

    Raises:
        InputError: there is no such file, it cannot be read without running code from it, or it is of
            another kind of model.
    """
    import safetensors
    from timm.models import load_state_dict

    from experiments.skeletons.weights import from_timm

    path = _locate(_split(with_source(weights, skeleton))[0], skeleton)
    try:
        stored: dict[str, Tensor] = load_state_dict(str(path), device="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = "it is neither safetensors nor a file that torch.save wrote of tensors alone"
        # timm's own sentence speaks of an option of its function
        refused = any(isinstance(each, pickle.UnpicklingError) for each in (error, error.__cause__))
        if not refused and str(error).strip():
            reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} cannot be read as weights: {reason}") from None
    if _is_own(path, stored):
        return stored
    try:
        return from_timm(stored)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _is_own(path: Path, stored: Mapping[str, Tensor]) -> bool:
    """Whether our names are in the file: it says so, or a mixer of it has weights."""
    if any(".mixer." in name for name in stored):
        return True
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "trial_id" in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False  # what torch.save wrote


def load(model: Skeleton, weights: str, skeleton: str, *, new_head: bool) -> None:
    """Put the weights into a model: those that `fitted` gives.

    Raises:
        InputError: they are of another model.
    """
    model.load_state_dict(fitted(model, weights, skeleton, new_head=new_head))


def fitted(model: Skeleton, weights: str, skeleton: str, *, new_head: bool) -> dict[str, Tensor]:
    """All that a model starts from: the weights, and its own where they have none for it.

    Args:
        model: of the skeleton of that name; it may be on the meta device, where only names and shapes count.
        weights: "timm" or a file.
        skeleton: its name.
        new_head: whether a classifier for another number of classes stays as it was initialised, and so does
            all that a dense task adds to the backbone.

    Raises:
        InputError: they are of another model.
    """
    found = read(weights, skeleton)
    expected: dict[str, Any] = dict(model.state_dict())
    if new_head and model.stage_norms is not None and CLASSIFIER[0] in found:
        found = {name: value for name, value in found.items() if not name.startswith("head.")}
        found |= {name: value for name, value in expected.items() if name.startswith(DENSE)}
    have, want = (len(each["head.fc.bias"]) if "head.fc.bias" in each else None for each in (found, expected))
    if want is not None and have != want:  # None: this model has another kind of head
        if not new_head:
            raise InputError(f"weights {weights} answer for {have:,} classes, but the task has {want:,}")
        found = {name: value for name, value in found.items() if name not in CLASSIFIER}
        found |= {name: expected[name] for name in CLASSIFIER}
    require_all_of(model, found, weights, skeleton)
    return found


def require_all_of(model: nn.Module, found: Mapping[str, Tensor], weights: str, skeleton: str) -> None:
    """Compare names and shapes, ours, with those of a model.

    Args:
        model: of the skeleton of that name, with our names.
        found: the weights.
        weights: where they are from, for the message.
        skeleton: its name.

    Raises:
        InputError: they are of another model.
    """
    expected = model.state_dict()
    differing = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    for names, what in (
        (sorted(expected.keys() - found.keys()), "not in them"),
        (sorted(found.keys() - expected.keys()), "not in the model"),
        (differing, "of another shape"),
    ):
        if names:
            raise InputError(
                f"weights {weights} are not of this {skeleton}: {names[0]} is {what} ({len(names)} in all); "
                "released ones fit the skeleton of their size with the mixer conv and no matching of sizes, "
                "a trial's the mixer and the skeleton, options too, of the trial.json beside them"
            )


def _split(weights: str) -> tuple[str, str | None]:
    """What was asked for, and the hash if it is resolved."""
    match = re.fullmatch(r"(.+)@([0-9a-f]{12})", weights)
    return (match.group(1), match.group(2)) if match else (weights, None)


def _locate(asked: str, skeleton: str) -> Path:
    """The file.

    Raises:
        InputError: there is none.
    """
    if asked != "timm":
        if not Path(asked).is_file():
            raise InputError(f"there is no file of weights {asked}")
        return Path(asked)
    family, _, size = skeleton.partition("-")
    if family != "mambaout" or size not in RELEASED:
        raise InputError(f"timm has no weights for {skeleton}, only for mambaout-{', -'.join(RELEASED)}")
    import huggingface_hub

    model = f"mambaout_{size}"
    repository = f"timm/{model}.in1k"
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    raise InputError(
        f"timm's weights of {model} are not on this disk, and nothing is downloaded here; where there is a "
        f"network, timm.create_model('{model}', pretrained=True) gets them, or give a file instead of timm"
    )


def _hash(path: Path) -> str:
    status = path.stat()
    return _hash_of(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _hash_of(path: Path, changed: int, size: int) -> str:
    """12 hexadecimal digits over a file's content; `changed` and `size` notice another one in its place."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
