"""The checkpoint of a trial: written whole, and read only if this code wrote it for this trial."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.learner import Learner
from experiments.machine import is_out_of_memory
from experiments.store import TrialFolder, write_bytes

MADE_OF = ("sources", "fingerprint")
"""The code and the data of a trial, which have to be the same from its first step to its last."""


@dataclass
class Progress:
    """Where a run is; all of it is in the checkpoint."""

    epoch: int = 0
    step: int = 0  # within the epoch
    loss_sum: float = 0.0  # of the epoch's steps so far
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0  # of all sessions, up to the last save
    training: float = 0.0  # seconds in steps of training, of all sessions
    waiting: float = 0.0  # seconds of these, up to the last save, in which the next batch was not there yet
    best_epoch: int = 0
    peak_memory: int = 0  # bytes that training took on a GPU


class TrainState:
    """What changes while a trial is trained: the loop changes it, the checkpoint holds it.

    Args:
        untrained: makes the learner as it is before the first step.
        steps_per_epoch: updates.

    Attributes:
        learner: the model with its optimizer.
        progress: where in the epochs it is.
        best_weights: those of `progress.best_epoch`; None where it is the last epoch's that are tested.
    """

    def __init__(self, untrained: Callable[[], Learner], steps_per_epoch: int) -> None:
        self._untrained = untrained
        self.steps_per_epoch = steps_per_epoch
        self.learner = untrained()
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def steps_done(self) -> int:
        """Updates of the weights so far."""
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def restore(self, saved: Mapping[str, Any]) -> str:
        """Go on from a checkpoint; if it does not fit, as after a change of this code, start anew.

        Returns:
            Why it does not fit; nothing if it does.

        Raises:
            Exception: there is not the memory for it.
        """
        misfit = self._load_learner(saved)
        if misfit:
            del self.learner  # part of it may be restored already
            self.learner = self._untrained()
            return misfit
        self.progress = Progress(**saved["progress"])
        self.best_weights = saved["best_weights"]
        return ""

    def _load_learner(self, saved: Mapping[str, Any]) -> str:
        """Restore the learner, perhaps in part; why it does not fit, if so."""
        try:
            self.learner.load_state_dict(saved)
        except Exception as error:  # torch raises many kinds for a state that does not fit
            if is_out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""


def write(folder: TrialFolder, state: Mapping[str, Any]) -> None:
    """Store the state of a run, in place of the one before."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(folder.checkpoint, buffer.getvalue())


def read(folder: TrialFolder, trial_id: str, like: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored state of a run, or None, with a note of the reason, if there is none that can be used.

    Args:
        folder: of the trial.
        trial_id: whose the checkpoint must be.
        like: the state of a run that has just begun, whose fields it must have.

    Raises:
        OSError: it is there, but cannot be read now; so that it is not lost, nothing may be trained over it.
    """
    try:
        content = folder.checkpoint.read_bytes()
    except FileNotFoundError:
        return None
    try:
        _check_sums(content)
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        folder.note(f"checkpoint not readable, starting anew: {said}")
        return None
    if isinstance(saved, dict) and saved.get("trial_id", trial_id) != trial_id:
        folder.note(f"checkpoint of trial {saved['trial_id']}, starting anew")
        return None
    if isinstance(saved, dict):
        made_of = {what: like[what] for what in MADE_OF}
        saved = made_of | {"made_with": like["made_with"]} | saved  # older checkpoints do not say
        changed = [what for what in made_of if saved[what] != made_of[what]]
        if changed:
            said = f"checkpoint of other {' and '.join(changed)}, starting anew"
            folder.note(said)
            print(f"note: trial {trial_id}: {said}", file=sys.stderr)
            return None
    if not _has_fields_of(saved, like):
        folder.note("checkpoint of another version of this code, starting anew")
        return None
    return saved


def _check_sums(content: bytes) -> None:
    """Compare the checksums that the archive has of its parts: `torch.load` does not, and would take a byte
    that the disk has changed for a weight.

    Raises:
        BadZipFile: it is no archive, or a part of it is damaged.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):  # whose table of contents is at the end
        raise zipfile.BadZipFile(f"its {len(content):,} bytes do not end like an archive: is it cut off?")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def _has_fields_of(saved: Any, like: Mapping[str, Any]) -> bool:
    """Whether it has the fields of a checkpoint of this code; the learner checks its own part."""
    if not isinstance(saved, dict) or saved.keys() != like.keys():
        return False
    best, made_with = saved["best_weights"], saved["made_with"]
    if not isinstance(made_with, list) or not made_with or _types(made_with[-1]) is None:
        return False
    return all(_types(saved[part]) == _types(like[part]) for part in ("progress", "window")) and (
        best is None or _shapes(best) == _shapes(saved["model"])
    )


def _types(fields: Any) -> dict[str, type] | None:
    """Of each field; None if they are no fields."""
    return {name: type(value) for name, value in fields.items()} if isinstance(fields, dict) else None


def _shapes(weights: Any) -> dict[str, torch.Size | None] | None:
    """Of each tensor; None if they are no weights."""
    if not isinstance(weights, dict):
        return None
    return {name: getattr(value, "shape", None) for name, value in weights.items()}
