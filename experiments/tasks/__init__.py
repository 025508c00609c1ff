"""What is asked: data, loss, metric, and the shapes that go in and come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixers.registry import Registry

if TYPE_CHECKING:
    from experiments.tasks.base import Task

TASKS: Registry[Task] = Registry(
    "task",
    {
        "digits": "experiments.tasks.digits:Digits",
        "sequential-digits": "experiments.tasks.sequential_digits:SequentialDigits",
        "textures": "experiments.tasks.textures:Textures",
        "scenes": "experiments.tasks.scenes:SceneSegmentation",
        "scenes-detect": "experiments.tasks.scenes_detect:SceneDetection",
        "coco": "experiments.tasks.coco:Coco",
        "ade20k": "experiments.tasks.ade20k:ADE20K",
        "images": "experiments.tasks.images:Images",
        "bytes": "experiments.tasks.bytes:Bytes",
        "mqar": "experiments.tasks.mqar:MQAR",
        "selective-copy": "experiments.tasks.selective_copy:SelectiveCopy",
        "induction": "experiments.tasks.induction:Induction",
        "parity": "experiments.tasks.parity:Parity",
        "mad-recall": "experiments.tasks.mad:Recall",
        "mad-noisy-recall": "experiments.tasks.mad:NoisyRecall",
        "mad-fuzzy-recall": "experiments.tasks.mad:FuzzyRecall",
        "mad-selective-copy": "experiments.tasks.mad:MadSelectiveCopy",
        "mad-compression": "experiments.tasks.mad:Compression",
        "mad-memorization": "experiments.tasks.mad:Memorization",
    },
    own_base="experiments.tasks.base:Classification",
)

FROM_FILES = ("images", "coco", "ade20k")
"""Whose examples lie in files, and are read by processes of their own."""
