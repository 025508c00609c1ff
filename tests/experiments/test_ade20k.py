"""ADE20K's format, recipe and metric, on a tiny folder that the tests write."""

from __future__ import annotations

import colorsys
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.transforms.v2.functional import adjust_hue

from experiments import build, train
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS
from experiments.store import Store
from experiments.tasks import TASKS, ade20k
from experiments.tasks.ade20k import (
    ADE20K,
    IGNORED,
    Example,
    augmented,
    cut_out,
    distorted,
    list_folder,
    overlap,
    read,
    resized,
    saturated,
    views,
)
from experiments.trial import Purpose, Recipe, stream
from mixers import MIXERS
from mixers.registry import InputError

CLASSES = 3


def write_example(data: Path, folder: str, name: str, labels: np.ndarray, seed: int = 0) -> None:
    """An image whose colours follow the labels, and its annotation."""
    noise = np.random.default_rng(seed).integers(0, 40, (*labels.shape, 3))
    palette = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]])
    for kind, array, suffix in (
        ("images", palette[np.clip(labels, 0, 3)] + noise, "jpg"),
        ("annotations", labels, "png"),
    ):
        path = data / kind / folder
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(path / f"{name}.{suffix}")


def stripes(height: int, width: int, shift: int) -> np.ndarray:
    return np.tile((np.arange(width) // 6 + shift) % (CLASSES + 1), (height, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("ade")
    for number in range(10):
        write_example(data, "training", f"t{number}", stripes(20 + number, 36, number), number)
    for number in range(3):
        write_example(data, "validation", f"v{number}", stripes(24, 30 + 7 * number, number), number)
    return data


@pytest.fixture
def data(written: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def task(data: Path, **options: object) -> ADE20K:
    return ADE20K(**{"data": str(data), "classes": CLASSES, "crop": 16, "validation": 2, **options})


# ---- what is read


def test_labels_are_reduced_once(tmp_path: Path) -> None:
    write_example(tmp_path, "training", "a", np.array([[0, 1], [149, 150]]))
    image, labels = read(list_folder(str(tmp_path), "training")[0], 150)
    assert labels.tolist() == [[255, 0], [148, 149]]
    assert image.shape == (3, 2, 2)
    assert 0 <= image.min() <= image.max() <= 1


def test_labels_from_zero_on_keep_their_first_class(tmp_path: Path) -> None:
    write_example(tmp_path, "training", "a", np.array([[0, 1], [2, 255]]))
    example = list_folder(str(tmp_path), "training")[0]
    assert read(example, 3, reduce_zero_label=False)[1].tolist() == [[0, 1], [2, IGNORED]]
    assert read(example, 3)[1].tolist() == [[IGNORED, 0], [1, IGNORED]]
    with pytest.raises(
        InputError, match=r"has label 2, but the 2 classes .* are 0 to 1 \(--task\.reduce-zero"
    ):
        read(example, 2, reduce_zero_label=False)


def test_the_task_reads_labels_from_zero_on(written: Path) -> None:
    whole = task(written, classes=4, reduce_zero_label=False)
    (labels, *_), (reduced, *_) = (
        [batch.targets for batch in each.load(0).batches("test", 1)] for each in (whole, task(written))
    )
    assert (labels != IGNORED).all()
    assert torch.equal((labels - 1).where(labels > 0, IGNORED), reduced)


def test_16_bit_grey_images_keep_their_shades(data: Path) -> None:
    example = list_folder(str(data), "validation")[0]
    shades = np.random.default_rng(1).integers(0, 256, (24, 30))
    Image.fromarray((257 * shades).astype(np.uint16)).save(example.image, format="PNG")
    image, _ = read(example, CLASSES)
    assert torch.equal(image, torch.from_numpy(shades).float().expand(3, -1, -1) / 255)
    Image.fromarray((257 * shades).astype(np.int32)).save(example.image, format="TIFF")
    with pytest.raises(InputError, match=r"v0\.jpg: mode I with values"):
        read(example, CLASSES)


def test_splits(written: Path) -> None:
    loaded = task(written).load(0)
    assert loaded.sizes == {"train": 8, "validation": 2, "test": 3}
    assert loaded.fingerprint == task(written).load(1).fingerprint, "the same images for every seed"
    held_out = [example.image.stem for example in loaded._examples["validation"]]
    assert held_out == ["t2", "t3"], "by a hash of the name: neighbours in the list are often of one scene"
    ids = [int(batch.examples) for split in loaded.sizes for batch in loaded.batches(split, 4)]
    assert ids == list(range(13))


def test_training_batches(written: Path) -> None:
    one, other = task(written).load(0), task(written).load(0)
    torch.manual_seed(5)
    whole, rest = list(one.train_batches(1, 4)), list(other.train_batches(1, 4, start=1))
    assert (len(whole), len(rest)) == (2, 1)
    assert torch.equal(whole[1].inputs, rest[0].inputs)
    assert torch.equal(whole[1].targets, rest[0].targets)
    assert whole[0].inputs.shape == (4, 3, 16, 16)
    assert whole[0].targets.shape == (4, 16, 16)
    assert set(whole[0].targets.unique().tolist()) <= {0, 1, 2, IGNORED}
    assert not torch.equal(whole[0].inputs, next(one.train_batches(2, 4)).inputs)


def test_augmentation_depends_on_seed_epoch_and_example_alone(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the order on seed and epoch."""

    def seen(seed: int, epoch: int) -> tuple[list[int], dict[int, bytes]]:
        batches = list(task(written).load(seed).train_batches(epoch, 4))
        numbers = torch.cat([batch.examples for batch in batches]).tolist()
        images = torch.cat([batch.inputs for batch in batches])
        return numbers, {
            number: image.numpy().tobytes() for number, image in zip(numbers, images, strict=True)
        }

    order, images = seen(0, 1)
    assert (order, images) == seen(0, 1)
    for other_order, other_images in (seen(0, 2), seen(1, 1)):
        assert order != other_order
        assert sum(images[number] == other_images[number] for number in images) <= 1

    def other(seed: int, purpose: Purpose, *index: int | str) -> int:
        return stream(seed + (purpose == "order"), purpose, *index)

    monkeypatch.setattr("experiments.tasks.base.stream", other)
    monkeypatch.setattr("experiments.tasks.ade20k.stream", other)
    other_order, other_images = seen(0, 1)
    assert order != other_order
    assert images == other_images, "another order leaves the pixels of an example as they are"


def test_whoever_reads_reads_the_same(written: Path, check_reading: Callable[..., None]) -> None:
    check_reading(lambda: task(written).load(0))


# ---- augmentation


@pytest.mark.parametrize(
    ("sides", "scale", "expected"),
    [((480, 640), 1.0, (512, 683)), ((640, 480), 0.5, (341, 256)), ((100, 1000), 1.0, (205, 2048))],
)
def test_sizes_are_those_of_mmsegmentation(sides: tuple, scale: float, expected: tuple) -> None:
    """`RandomResize(scale=(2048, 512), keep_ratio=True)`: short side 512, long side at most 2,048."""
    assert tuple(resized(torch.zeros(3, *sides), 512, scale).shape[1:]) == expected


def test_a_crop_is_not_of_one_class_if_it_can_be_helped() -> None:
    labels = torch.zeros(16, 160, dtype=torch.long)
    labels[:, 72:88] = 1
    image = labels.float().expand(3, -1, -1)
    random = torch.Generator().manual_seed(0)
    mixed = 0
    for _ in range(200):
        cut_image, cut = cut_out(image, labels, 16, random)
        assert torch.equal(cut_image[0].long(), cut)
        mixed += int(0.25 < cut.double().mean() < 0.75)
    one_try = (72 + 12 - (72 - 12)) / 145  # of starts that cut both classes evenly enough, about 1 in 9
    assert mixed / 200 > 1.5 * one_try


def test_images_and_labels_stay_together() -> None:
    """Labels follow the image through scaling, cropping and mirroring; what is padded is not asked."""
    labels = torch.from_numpy(stripes(30, 40, 1).astype(np.int64))
    image = torch.stack([(labels == each).float() for each in (1, 2, 3)])
    for seed in range(20):
        picture, asked = augmented(image, labels, 24, torch.Generator().manual_seed(seed))
        inside = asked != IGNORED
        assert inside.any()
        brightest = picture.argmax(0)
        for each in (1, 2, 3):
            of_class = asked == each
            if of_class.sum() > 30:  # hue may turn the colours, but a class keeps one of them
                assert brightest[of_class].bincount().max() > 0.6 * of_class.sum()
        padded = ~inside.any(1)
        assert (picture[:, padded] == 0).all()


@pytest.mark.parametrize(
    ("wide", "tries"), [((7, 3, 0), 1), ((2, 2, 6), 1), ((8, 2, 0), 10), ((3, 1, 16), 10), ((10, 0, 10), 10)]
)
def test_a_crop_is_tried_again_where_one_class_has_too_much_of_what_is_labelled(
    wide: tuple[int, int, int], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stripes of two classes and of no label, so wide that all crops are alike."""
    period = sum(wide)
    stripe = torch.tensor([0] * wide[0] + [1] * wide[1] + [IGNORED] * wide[2])
    labels = stripe.repeat(8).expand(2 * period, -1)
    drawn = []
    monkeypatch.setattr(ade20k, "_uniform", lambda random: drawn.append(0) or 0.3)
    cut_out(labels.float().expand(3, -1, -1), labels, period, torch.Generator())
    assert len(drawn) == 2 * tries


def test_a_crop_may_start_anywhere() -> None:
    labels = torch.arange(18).view(3, 6) % 2
    random = torch.Generator().manual_seed(0)
    image = torch.arange(18.0).view(1, 3, 6)
    corners = {int(cut_out(image, labels, 2, random)[0][0, 0, 0]) for _ in range(300)}
    assert corners == {0, 1, 2, 3, 4, 6, 7, 8, 9, 10}


def test_training_images_are_mirrored_or_not_and_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the crop's own size, and with what stands in for other colours, two pictures can come out."""
    monkeypatch.setattr(ade20k, "SCALES", (1.0, 1.0))
    monkeypatch.setattr(ade20k, "distorted", lambda image, random: 1 - image)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(256).view(16, 16) % 7
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    mirrored = 0
    for seed in range(100):
        picture, asked = augmented(image, labels, 16, torch.Generator().manual_seed(seed))
        flipped = not torch.equal(asked, labels)
        torch.testing.assert_close(1 - (picture * std + mean), image.flip(2) if flipped else image)
        assert torch.equal(asked, labels.flip(1) if flipped else labels)
        mirrored += flipped
    assert 30 < mirrored < 70


def test_training_images_are_scaled_by_a_half_to_two_and_padded_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is mirrored is mirrored before it is padded; labels have no value between two classes."""
    monkeypatch.setattr(ade20k, "distorted", lambda image, random: image)
    image, labels = torch.rand(3, 16, 16), 2 * (torch.arange(256).view(16, 16) // 4 % 2)
    sides = []
    for seed in range(200):
        picture, asked = augmented(image, labels, 16, torch.Generator().manual_seed(seed))
        inside = asked != IGNORED
        side = int(inside[0].sum())
        assert inside[:side, :side].all()
        assert not inside[side:].any()
        assert not inside[:, side:].any()
        assert not picture[:, ~inside].any()
        assert set(asked[inside].tolist()) == {0, 2}
        sides.append(side)
    assert min(sides) == 8
    assert 60 < sum(side == 16 for side in sides) < 170, "two thirds are cut out, not padded"


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("contrast_first", [True, False])
def test_distortions_reach_as_far_as_mmsegmentations(
    end: float, contrast_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PhotoMetricDistortion`: 32 of 255, a half to 1.5 twice, and 18 of the 180 degrees that a turn has."""
    order = [0.0 if contrast_first else 0.9]
    numbers = iter([0.0, end, *order, *([0.0, end] * 3)])
    monkeypatch.setattr(ade20k, "_uniform", lambda random: next(numbers))
    image = 0.3 + 0.2 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    side, factor = 2 * end - 1, 0.5 + end
    expected = image + side * 32 / 255
    if contrast_first:
        expected = factor * expected
    expected = adjust_hue(saturated(expected, factor), side * 18 / 180)
    if not contrast_first:
        expected = factor * expected
    torch.testing.assert_close(distorted(image, torch.Generator()), expected.clamp(0, 1))
    assert next(numbers, None) is None


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.5])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    image[:, 0, :4] = torch.tensor([[0, 1, 0.3, 1], [0, 1, 0.3, 0], [0, 1, 0.3, 0]])  # greys, and pure red
    changed = saturated(image, factor).flatten(1).T.tolist()
    for before, after in zip(image.flatten(1).T.tolist(), changed, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(hue, min(1, factor * saturation), value), abs=1e-6)


def test_saturation_and_hue_leave_the_value_of_hsv() -> None:
    """In 3 of 16 distortions they are all there is; luma, with which others blend, would leave it in 1."""
    image = 0.2 + 0.6 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = 0
    for seed in range(320):
        changed = distorted(image, torch.Generator().manual_seed(seed))
        same = torch.allclose(changed.amax(0), image.amax(0), atol=1e-5)
        kept += same and not torch.allclose(changed, image, atol=1e-5)
    assert kept > 45


def test_hue_is_that_of_hsv() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = adjust_hue(image, -0.07).flatten(1).T.tolist()
    for before, after in zip(image.flatten(1).T.tolist(), changed, strict=True):
        hue, *rest = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue - 0.07) % 1, *rest), abs=1e-5)


# ---- evaluation


class Colours(torch.nn.Module):
    """Answers each 2 x 2 pixels with their colour, of the three that the classes have."""

    def forward(self, images: Tensor) -> Tensor:
        return 8 * torch.nn.functional.avg_pool2d(images, 2, ceil_mode=True).permute(0, 2, 3, 1)


def test_a_model_that_sees_colours_is_nearly_right_at_every_scale(written: Path) -> None:
    from experiments.evaluate import Evaluator

    asked = task(written, multi_scale=True)
    loaded = asked.load(0)
    assert list(loaded.extra_tests) == ["multiscale"]
    for split in ("test", "test_multiscale"):
        measured, answers = Evaluator(asked, loaded, torch.device("cpu")).answer(Colours(), split)
        assert measured["miou"] > 75
        assert answers["confusion"].sum() == sum(
            int((batch.targets != IGNORED).sum()) for batch in loaded.batches("test", 1)
        )


def test_every_image_is_whole_and_alone_whatever_the_batch_size(written: Path) -> None:
    loaded = task(written).load(0)
    sizes = [tuple(batch.targets.shape) for batch in loaded.batches("test", 256)]
    assert sizes == [(1, 24, 30), (1, 24, 37), (1, 24, 44)]
    for one, other in zip(loaded.batches("test", 1), loaded.batches("test", 256), strict=True):
        assert torch.equal(one.inputs, other.inputs)


def test_the_test_sees_the_crops_short_side_and_six_scales_of_it_each_also_mirrored(written: Path) -> None:
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    example = list_folder(str(written), "validation")[0]
    image, _ = read(example, CLASSES)
    loaded = task(written, multi_scale=True).load(0)
    whole, several = (next(loaded.batches(split, 1)).inputs for split in ("test", "test_multiscale"))
    assert torch.equal(several[4], whole)
    for place, scale in enumerate((0.5, 0.75, 1.0, 1.25, 1.5, 1.75)):
        expected = resized(image, 16, scale)
        torch.testing.assert_close(several[2 * place][0] * std + mean, expected)
        assert torch.equal(several[2 * place + 1], several[2 * place].flip(3))
    assert whole.shape == (1, 3, 16, 20)


def test_of_several_views_the_probabilities_are_averaged_and_there_is_no_loss() -> None:
    """One view is much surer of class 0 than the two others are of class 1."""
    asked = ADE20K(classes=2)
    sure, others = (torch.tensor(each).expand(1, 4, 4, 2) for each in ([20.0, 0.0], [0.0, 5.0]))
    scorer = asked.scorer()
    scorer.add((sure, others, others), torch.ones(1, 4, 4, dtype=torch.long), torch.arange(1))
    measured = scorer.metrics()
    assert measured["pixel_accuracy"] == 100
    assert "loss" not in measured
    assert scorer.answers()["confusion"].tolist() == [[0, 0], [0, 16]]


def test_the_confusion_has_classes_in_rows_and_answers_in_columns() -> None:
    scorer = ADE20K(classes=2).scorer()
    scorer.add(
        torch.tensor([1.0, 0.0]).expand(1, 2, 2, 2), torch.ones(1, 2, 2, dtype=torch.long), torch.arange(1)
    )
    assert scorer.answers()["confusion"].tolist() == [[0, 0], [4, 0]]


def test_views_are_mirrored_back(written: Path) -> None:
    asked = task(written)
    batch = next(asked.load(0).batches("test", 1))
    image, labels = torch.rand(3, 24, 30), batch.targets
    assert len(views(image, 16)) == 12
    logits = torch.nn.functional.one_hot(labels.clamp(max=CLASSES - 1), CLASSES).float()
    scorer = asked.scorer()
    scorer.add((logits, logits.flip(2)), labels, batch.examples)
    assert scorer.metrics()["miou"] == 100


def test_overlap_is_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (4, 9, 11), generator=random)  # of 7: one is never labelled nor answered
    predictions = torch.where(torch.rand(4, 9, 11, generator=random) < 0.6, targets, (targets + 1) % 6)
    targets[torch.rand(4, 9, 11, generator=random) < 0.2] = IGNORED
    theirs = MulticlassJaccardIndex(num_classes=7, ignore_index=IGNORED)
    scorer = ADE20K(classes=7).scorer()
    for image in range(4):
        theirs.update(predictions[image : image + 1], targets[image : image + 1])
        logits = torch.nn.functional.one_hot(predictions[image : image + 1], 7).float()
        scorer.add(logits, targets[image : image + 1], torch.tensor([image]))
    assert scorer.metrics()["miou"] == pytest.approx(100 * theirs.compute().item(), abs=1e-4)


def test_overlap_by_hand() -> None:
    found = overlap(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert found["miou"] == pytest.approx(100 * (3 / 6 + 4 / 7) / 2)
    assert found["pixel_accuracy"] == pytest.approx(70)
    assert found["class_accuracy"] == pytest.approx(100 * (3 / 4 + 4 / 6) / 2)


def test_the_loss_is_that_of_labelled_pixels_over_the_number_of_all() -> None:
    """mmsegmentation's with `avg_non_ignore` false; what is reported is the mean over the labelled ones."""
    asked = ADE20K(classes=4)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 6, 4, generator=random)
    targets = torch.randint(4, (2, 6, 6), generator=random)
    targets[torch.rand(2, 6, 6, generator=random) < 0.4] = IGNORED
    each = torch.nn.functional.cross_entropy(
        logits.permute(0, 3, 1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    torch.testing.assert_close(asked.loss(logits, targets), each.mean())
    by_class = -logits.log_softmax(-1).mean(-1)[targets != IGNORED].sum() / targets.numel()
    torch.testing.assert_close(asked.loss(logits, targets, 0.3), 0.7 * each.mean() + 0.3 * by_class)
    parts = [asked.loss(logits[[n]], targets[[n]]) * asked.loss_weight(targets[[n]]) for n in (0, 1)]
    torch.testing.assert_close(sum(parts) / asked.loss_weight(targets), each.mean())
    scorer = asked.scorer()
    scorer.add(logits, targets, torch.arange(2))
    assert scorer.metrics()["loss"] == pytest.approx(each[targets != IGNORED].mean().item(), rel=1e-5)


def test_a_crop_without_a_label_has_no_loss() -> None:
    asked = ADE20K(classes=4)
    targets = torch.full((2, 6, 6), IGNORED)
    logits = torch.randn(2, 3, 3, 4, requires_grad=True)
    assert asked.loss(logits, targets) == 0
    targets[0, 0, 0] = 2
    assert asked.loss(logits, targets) > 0


# ---- the whole way


def test_a_trial_on_a_folder(written: Path, store: Store) -> None:
    options = f"data={written}, classes=3, crop=16, validation=2, multi_scale=true"
    trial = build.resolve(
        MIXERS.parse_pattern("identity"),
        SKELETONS.parse("mambaout-nano(head=linear)"),
        TASKS.parse(f"ade20k({options})"),
        Recipe(epochs=25, batch_size=4, lr=1e-2, warmup_epochs=1, label_smoothing=0.0, sched="poly"),
        seed=0,
    )
    folder = store.folder(trial.id)
    train.run_trial(trial, folder, Runtime("cpu", 1, "auto"))
    result = folder.result()
    assert result is not None
    assert result["metrics"]["test"]["miou"] > 60
    assert result["metrics"]["test"]["miou_multiscale"] > 60
    assert set(np.load(folder.predictions)) == {"example", "confusion"}


# ---- what is wrong with the data


def spoil_size(data: Path) -> str:
    Image.new("L", (5, 4)).save(data / "annotations" / "validation" / "v1.png")
    return r"v1\.png and its image differ in size: 5 x 4 and 37 x 24 pixels"


def spoil_label(data: Path) -> str:
    write_example(data, "validation", "v1", np.full((24, 37), 4))
    return r"v1\.png has label 4, but the 3 classes \(--task\.classes\) are 1 to 3"


def spoil_mode(data: Path) -> str:
    Image.new("RGB", (37, 24)).save(data / "annotations" / "validation" / "v1.png")
    return r"v1\.png has 3 numbers per pixel; a label is one"


def spoil_annotation(data: Path) -> str:
    (data / "annotations" / "validation" / "v1.png").unlink()
    return r"v1\.jpg has no annotation; .*v1\.png should be it"


def spoil_folder(data: Path) -> str:
    shutil.rmtree(data / "annotations" / "training")
    return r"annotations/training is not there"


def spoil_all_images(data: Path) -> str:
    shutil.rmtree(data / "images" / "training")
    (data / "images" / "training").mkdir()
    return r"images/training holds no images"


def spoil_image(data: Path) -> str:
    (data / "images" / "validation" / "v1.jpg").write_bytes(b"no image")
    return r"v1\.jpg cannot be read as an image"


@pytest.mark.parametrize(
    "spoil",
    [spoil_size, spoil_label, spoil_mode, spoil_annotation, spoil_folder, spoil_all_images, spoil_image],
)
def test_ill_formed_data_is_a_sentence_that_names_the_file(data: Path, spoil: Callable[[Path], str]) -> None:
    message = spoil(data)
    with pytest.raises(InputError, match=message):
        list(task(data).load(0).batches("test", 1))


@pytest.mark.parametrize(("folder", "split"), [("training", "train"), ("validation", "test")])
def test_a_split_without_a_label_is_refused_before_training(data: Path, folder: str, split: str) -> None:
    for path in (data / "annotations" / folder).iterdir():
        Image.fromarray(np.tile(np.array([0, 255], np.uint8), (4, 2))).save(path)
    with pytest.raises(
        InputError, match=rf"no pixel of the \d {split} images has a label; .*only 0 .* and 255"
    ):
        task(data).load(0)
    if folder == "validation":  # where 0 is a class it is one
        assert task(data, reduce_zero_label=False, classes=4).load(0).sizes["test"] == 3


def test_without_data_it_says_what_is_missing(written: Path) -> None:
    with pytest.raises(InputError, match=r"task ade20k needs --task\.data PATH"):
        ADE20K().load(0)
    with pytest.raises(InputError, match="10 training images are too few to hold out 10"):
        task(written, validation=10).load(0)


def test_an_example_is_what_it_says(written: Path) -> None:
    first = list_folder(str(written), "validation")[0]
    assert first == Example(written / "images/validation/v0.jpg", written / "annotations/validation/v0.png")
