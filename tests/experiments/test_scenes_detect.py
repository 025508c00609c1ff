"""Scenes to detect: objects lie where the ink is, and are what they are asked for."""

from __future__ import annotations

import pytest
import torch

from experiments.tasks import TASKS
from experiments.tasks.instances import InstanceScorer
from experiments.tasks.scenes import INK, MEAN, STD
from experiments.tasks.scenes_detect import SAME, DetectionData, SceneDetection, boxes_around
from mixers import InputError


def load(ask: str = "relation", seed: int = 0) -> DetectionData:
    task = SceneDetection(ask=ask, noise=0.0, train=32, validation=10, test=20)  # type: ignore[arg-type]
    data = task.load(seed)
    assert isinstance(data, DetectionData)
    return data


def test_boxes_and_masks_are_the_ink_of_the_plain_digits() -> None:
    for batch in load().batches("test", 7):
        for image, target in zip(batch.inputs, batch.targets, strict=True):
            assert image.shape == (1, 64, 64)
            ink = image[0] * STD + MEAN > INK
            masks = target["masks"].bool()
            assert len(masks) == 5
            assert (masks.sum(0) <= 1).all(), "digits do not overlap"
            assert ink[masks.any(0)].all()
            rest = ink & ~masks.any(0)
            assert rest.sum() > 60, "the framed digit is none of the objects"
            for box, mask in zip(target["boxes"], masks, strict=True):
                left, top, right, bottom = box.int().tolist()
                assert mask.sum() == mask[top:bottom, left:right].sum()
                assert mask[top].any()
                assert mask[bottom - 1].any()
                assert mask[:, left].any()
                assert mask[:, right - 1].any()


def test_a_box_ends_behind_the_last_pixel() -> None:
    masks = torch.zeros(1, 8, 9, dtype=torch.uint8)
    masks[0, 2:5, 3:7] = 1
    assert boxes_around(masks).tolist() == [[3, 2, 7, 5]]


def test_the_relation_is_that_to_the_framed_digit_and_balanced() -> None:
    relation = TASKS.create(TASKS.parse("scenes-detect(test=200)")).load(0)
    labels = torch.cat([each["labels"] for batch in relation.batches("test", 64) for each in batch.targets])
    assert set(labels.tolist()) == {1, 2}
    assert 0.42 < (labels == SAME).double().mean() < 0.58
    scenes = relation._scenes.scenes("test")
    expected = torch.where(scenes.classes[:, 1:] == scenes.classes[:, :1], 1, 2)
    assert torch.equal(labels.view(200, 5), expected)


def test_own_is_the_class() -> None:
    data = load("own")
    (batch,) = data.batches("test", 20)
    labels = torch.stack([target["labels"] for target in batch.targets])
    assert torch.equal(labels - 1, data._scenes.scenes("test").classes[:, 1:])
    assert TASKS.create(TASKS.parse("scenes-detect(ask=own)")).spec.classes == 10


def test_training_targets_are_those_of_the_scenes() -> None:
    data = load()
    steps = list(data.train_batches(epoch=1, batch_size=16))
    assert len(steps) == 2
    (resumed,) = data.train_batches(epoch=1, batch_size=16, start=1)
    assert torch.equal(torch.stack(resumed.inputs), torch.stack(steps[1].inputs))
    assert set(steps[0].targets[0]) == {"boxes", "labels", "masks"}
    assert not torch.equal(torch.stack(steps[0].inputs), torch.stack(steps[1].inputs))


def test_knowing_all_but_the_category_reaches_the_baseline() -> None:
    baseline = load().baselines()["all digits found, none recognised"]
    assert 35 < baseline < 65
    assert load("own").baselines()["all digits found, none recognised"] < 20
    scorer = InstanceScorer()
    for batch in load().batches("test", 8):
        answers = [
            {
                **{name: target[name] for name in ("boxes", "labels")},
                "masks": target["masks"][:, None].float(),
                "scores": torch.ones(5),
            }
            for target in batch.targets
        ]
        scorer.add(answers, batch.targets, batch.examples)
    assert scorer.metrics()["box_AP"] == scorer.metrics()["mask_AP"] == pytest.approx(100)


def test_too_many_digits_are_refused() -> None:
    with pytest.raises(InputError, match="16 digits and the key do not fit into 4 x 4 cells"):
        SceneDetection(digits=16)
    with pytest.raises(InputError, match="digits: Input should be less than or equal to 100"):
        TASKS.create(TASKS.parse("scenes-detect(side=11, digits=101)"))
