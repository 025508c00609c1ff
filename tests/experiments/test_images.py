"""Real images: every layout gives the same, whoever reads it; what is wrong with the files is a sentence."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from torch import Tensor

from experiments import build
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS
from experiments.store import Store, TrialFolder
from experiments.tasks import TASKS, images
from experiments.tasks.base import share
from experiments.tasks.image_source import Rows, Source
from experiments.tasks.images import Images, ImagesData
from experiments.tasks.pixels import in_rgb
from experiments.tasks.reading import Reading
from experiments.train import Interrupted, run_trial
from experiments.trial import Recipe, Trial
from mixers import MIXERS, InputError

SIZE = 24
Write = Callable[..., Path]
CLASSES = ("digit_0", "digit_1", "digit_2")


def load(data: Path | str, seed: int = 0, **options: object) -> ImagesData:
    loaded = Images(data=str(data), **{"size": SIZE, "held_out": 0.2, **options}).load(seed)
    assert isinstance(loaded, ImagesData)
    return loaded


def everything(data: ImagesData, split: str) -> tuple[Tensor, Tensor]:
    batches = list(data.batches(split, 16))
    return torch.cat([batch.inputs for batch in batches]), torch.cat([batch.targets for batch in batches])


# ------------------------------------------------------------------- layouts


def tarred(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
            archive.add(path, path.relative_to(folder))
    return target


def sharded(folder: Path, target: Path, split: str, inside: str = "") -> None:
    """Two shards as webdataset writes them, with the examples in a folder or in none."""
    paths = sorted(folder.rglob("*.JPEG"))
    for shard in range(2):
        with tarfile.open(target / f"digits-{split}-{shard:04}.tar", "w") as archive:
            for path in paths[shard::2]:
                label = str(CLASSES.index(path.parent.name)).encode()
                for ending, content in (("jpg", path.read_bytes()), ("cls", label)):
                    member = tarfile.TarInfo(f"{inside}{path.parent.name}_{path.stem}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def sorted_rows(images: Tensor, labels: Tensor) -> list[tuple[int, bytes]]:
    return sorted((int(label), image.numpy().tobytes()) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("layout", ["tar", "wds", "hfds", "torch/image_folder"])
def test_every_layout_gives_the_same_images(digit_folder: Path, tmp_path: Path, layout: str) -> None:
    options: dict[str, object] = {}
    if layout == "tar":
        for split in ("train", "val"):
            tarred(digit_folder / split, tmp_path / f"{split}.tar")
    elif layout == "wds":
        options["dataset"] = "wds/"
        for split in ("train", "val"):
            sharded(digit_folder / split, tmp_path, split)
    elif layout == "hfds":
        pytest.importorskip("datasets")
        options["dataset"] = f"hfds/{digit_folder}"
    else:
        options["dataset"] = layout
    data = digit_folder if layout == "torch/image_folder" else tmp_path
    reference, other = load(digit_folder), load(data, **options)
    assert sorted_rows(*everything(reference, "test")) == sorted_rows(*everything(other, "test"))
    assert sum(other.sizes.values()) == sum(reference.sizes.values()) == 108


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pickles of CIFAR-10 at a small size, with checksums of their own."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    written = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
        pixels = np.random.default_rng(len(written)).integers(0, 256, (30, 3072), dtype=np.uint8)
        content: dict[str, object] = {"data": pixels, "labels": [number % 10 for number in range(30)]}
        if name == "batches.meta":
            content = {"label_names": [f"class {number}" for number in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        written[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, written[n]] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", written["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": written["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path


def test_cifar_as_it_is_unpacked(cifar: Path) -> None:
    data = load(cifar, dataset="torch/cifar10", size=32)
    assert data.sizes["test"] == 30
    assert data.sizes["train"] + data.sizes["validation"] == 60
    images, labels = everything(data, "test")
    assert labels.tolist() == [number % 10 for number in range(30)]
    assert images.shape == (30, 3, 32, 32)
    assert next(data.train_batches(0, 8)).inputs.shape == (8, 3, 32, 32)


def test_evaluation_is_timms(digit_folder: Path) -> None:
    theirs = create_dataset("", str(digit_folder), split="validation")
    transform = create_transform((3, SIZE, SIZE), crop_pct=1.0, interpolation="bicubic")
    expected = []
    for path in theirs.filenames(absolute=True):  # their own way to read leaves the files open
        with Image.open(path) as image:
            expected.append(transform(image.convert("RGB")))
    images, labels = everything(load(digit_folder), "test")
    assert torch.equal(images, torch.stack(expected))
    assert labels.tolist() == [label for _, label in theirs.reader.samples]


# -------------------------------------------------------------------- splits


def test_validation_is_held_out_by_name(digit_folder: Path) -> None:
    one, two = load(digit_folder, seed=0), load(digit_folder, seed=1)
    assert one.sizes == two.sizes
    held, kept = (
        {int(example) for batch in batches for example in batch.examples}
        for batches in (one.batches("validation", 8), one.batches("train", 8))
    )
    assert held.isdisjoint(kept)
    assert len(held | kept) == 72
    other = {int(example) for batch in two.batches("validation", 8) for example in batch.examples}
    assert held == other
    test = {int(example) for batch in one.batches("test", 8) for example in batch.examples}
    assert test.isdisjoint(held | kept)


@pytest.mark.parametrize("validation_split", [None, "val"])
def test_a_trained_model_is_not_tested_on_what_it_was_trained_on(
    digit_folder: Path, validation_split: str | None
) -> None:
    options = {"size": SIZE, "held_out": 0.2, "classes": 3, "validation_split": validation_split}
    task = Images(data=str(digit_folder), test_split="train", **options)  # type: ignore[arg-type]
    alone, whole = task.load_test(), task.load(0)
    ids = [[int(e) for batch in data.batches("test", 8) for e in batch.examples] for data in (alone, whole)]
    assert ids[0] == ids[1]
    assert 0 < len(ids[0]) < 36
    other = Images(data=str(digit_folder), train_split="none", **options)  # type: ignore[arg-type]
    assert other.load_test().sizes == {"test": 36}, "only what is tested on need be there"


def test_a_folder_without_splits_is_divided(digit_folder: Path) -> None:
    data = load(digit_folder / "train", train_split=".", test_split=".")
    ids = [{int(e) for batch in data.batches(split, 8) for e in batch.examples} for split in data.sizes]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 72
    assert all(ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation_split": "val"}, "validation-split 'val' and --task.test-split 'validation' share"),
        ({"validation_split": "validation"}, "validation-split 'validation' and --task.test-split 'valid"),
        (
            {"validation_split": "training"},
            "train-split 'train' and --task.validation-split 'training' share",
        ),
        ({"test_split": "training"}, "test-split 'training' share .* named 'train' too is held out"),
    ],
)
@pytest.mark.parametrize("layout", ["", "tar", "wds/", "torch/image_folder"])
def test_no_image_is_in_two_splits(
    digit_folder: Path, tmp_path: Path, layout: str, options: dict[str, object], words: str
) -> None:
    data = tmp_path if layout in ("tar", "wds/") else digit_folder
    for split in ("train", "val"):
        if layout == "tar":
            tarred(digit_folder / split, tmp_path / f"{split}.tar")
        elif layout == "wds/":
            sharded(digit_folder / split, tmp_path, split)
    with pytest.raises(InputError, match=words):
        load(data, dataset="" if layout == "tar" else layout, **options)


def test_the_whole_of_a_folder_has_its_splits_in_it(digit_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        sharded(digit_folder / split, tmp_path, split)
    with pytest.raises(InputError, match=r"train-split '\.' and --task\.test-split 'validation' share"):
        load(tmp_path, dataset="wds/", train_split=".")
    with pytest.raises(InputError, match=r"val/.* and train/.* do not lie in class folders side by side"):
        load(digit_folder, train_split=".")


def test_cifar_has_no_third_split(cifar: Path) -> None:
    with pytest.raises(InputError, match=r"'val' and --task\.test-split 'test' share images"):
        load(cifar, dataset="torch/cifar10", size=32, validation_split="val", test_split="test")
    with pytest.raises(InputError, match=r"'train' and --task\.validation-split 'training' share images"):
        load(cifar, dataset="torch/cifar10", size=32, validation_split="training")


def test_three_folders_are_three_splits(tmp_path: Path, write_digits: Write) -> None:
    root = write_digits(tmp_path, {"train": 8, "val": 4, "test": 4})
    data = load(root, validation_split="val", test_split="test")
    assert data.sizes == {"train": 24, "validation": 12, "test": 12}
    ids = {
        split: [int(n) for batch in data.batches(split, 5) for n in batch.examples] for split in data.sizes
    }
    assert [number for split in ids for number in ids[split]] == list(range(48)), "no id is of two images"
    swapped = load(root, validation_split="test", test_split="val")
    assert torch.equal(everything(data, "validation")[0], everything(swapped, "test")[0]), "not augmented"


@pytest.mark.parametrize(("classes", "share"), [(7, 50.0), (3, 100.0)])
def test_among_the_five_likeliest(classes: int, share: float) -> None:
    """Of two examples one is the fifth likeliest, the other the sixth, where there are so many."""
    scorer = Images(data="there", classes=classes).scorer()
    logits = -torch.arange(classes).float().expand(2, classes)
    scorer.add(logits, torch.tensor([4, 5]).clamp(max=classes - 1), torch.arange(2))
    assert scorer.metrics()["top_5"] == share


def test_a_guess_is_the_most_frequent_class(digit_folder: Path) -> None:
    data = load(digit_folder)
    _, labels = everything(data, "test")
    often = 100 * labels.bincount().max().item() / len(labels)
    classes = len(data._sources["test"].classes)
    guesses = data.baselines()
    assert max(guesses.values()) == next(iter(guesses.values())) == max(often, 100 / classes)
    assert guesses["a random class"] == 100 / classes
    assert list(guesses) == ["a random class"], "all are as frequent"
    uneven = data.baselines("validation")
    assert list(uneven) == ["the most frequent class", "a random class"]
    _, labels = everything(data, "validation")
    assert uneven["the most frequent class"] == 100 * labels.bincount().max().item() / len(labels)


def test_the_number_of_classes_is_part_of_the_trial(digit_folder: Path) -> None:
    assert trial_on(digit_folder).task.options["classes"] == 3


def test_the_fingerprint_follows_the_listing(tmp_path: Path, write_digits: Write) -> None:
    root = write_digits(tmp_path, {"train": 8, "val": 4})
    before = load(root)
    assert before.fingerprint == load(root, seed=1).fingerprint
    elsewhere = shutil.copytree(root, tmp_path / "elsewhere")
    assert load(elsewhere).fingerprint == before.fingerprint, "the place does not matter"
    next((elsewhere / "train" / "digit_1").iterdir()).unlink()
    shutil.move(elsewhere, tmp_path / "again")  # listings are remembered by their place
    assert load(tmp_path / "again").fingerprint != before.fingerprint


# -------------------------------------------------------------- randomness


def test_whoever_reads_reads_the_same(digit_folder: Path, check_reading: Callable[..., None]) -> None:
    check_reading(lambda: load(digit_folder))


def test_every_option_of_augmentation_reaches_timms_transform() -> None:
    def parts(training: bool, **options: Any) -> dict[str, Any]:
        made = Images(data="there", classes=2, size=32, **options).transform(training)
        return {type(part).__name__: part for part in made.transforms}

    def bicubic(part: Any) -> bool:
        return "bicubic" in str(part.interpolation).lower()

    plain = {"hflip": 0.0, "re_prob": 0.0, "auto_augment": None, "color_jitter": 0.0}
    found = parts(True, scale=0.3, train_interpolation="bicubic", **plain)
    crop = found.pop("RandomResizedCropAndInterpolation")
    assert (crop.scale, bicubic(crop)) == ((0.3, 1.0), True)
    assert not {"RandomHorizontalFlip", "RandomErasing", "RandAugment", "ColorJitter"} & set(found)
    found = parts(True, **(plain | {"hflip": 0.1, "re_prob": 0.7, "color_jitter": 0.2}))
    assert found["RandomHorizontalFlip"].p == 0.1
    assert (found["RandomErasing"].probability, found["RandomErasing"].mode) == (0.7, "pixel")
    assert tuple(found["ColorJitter"].brightness) == (0.8, 1.2)
    assert "RandAugment" in parts(True, **(plain | {"auto_augment": "rand-m5"}))
    for interpolation in ("bilinear", "bicubic"):
        found = parts(False, crop_pct=0.5, interpolation=interpolation)
        assert found["Resize"].size == 64
        assert bicubic(found["Resize"]) == (interpolation == "bicubic")


def test_every_global_generator_has_the_seed_inside_and_goes_on_outside() -> None:
    """A policy draws its operations from NumPy's, their strength from Python's, and erasing from torch's."""

    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()

    def inside(seed: int | None) -> tuple[float, float, float]:
        with images._seeded(seed):
            return drawn()

    one, other = inside(2**40 + 1), inside(2**40 + 2)
    assert one == inside(2**40 + 1)
    assert all(first != second for first, second in zip(one, other, strict=True))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    inside(3)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    drawn_without = inside(None)
    assert before[0] != random.getstate(), "without a seed they are left alone"
    assert drawn_without != inside(None)


def test_augmentation_depends_on_seed_epoch_and_example_alone(digit_folder: Path) -> None:
    """Not on global generators, the batch, or who reads."""
    one = load(digit_folder)
    state = torch.get_rng_state(), random.getstate()
    batches = list(one.train_batches(1, 8))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    random.seed(5)
    torch.manual_seed(5)
    by_two = list(load(digit_folder).train_batches(1, 16))
    whole = torch.cat([batch.inputs for batch in by_two])
    assert torch.equal(whole, torch.cat([batch.inputs for batch in batches])[: len(whole)])
    later = list(load(digit_folder).train_batches(1, 8, start=2))
    assert torch.equal(later[0].inputs, batches[2].inputs)
    other = load(digit_folder)
    other.read_with(Reading(workers=2))
    for mine, theirs in zip(batches, other.train_batches(1, 8), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(everything(other, "test")[0], everything(one, "test")[0])
    by_epoch = next(one.train_batches(2, 8))
    by_seed = next(load(digit_folder, seed=1).train_batches(1, 8))
    assert not torch.equal(by_epoch.inputs, batches[0].inputs)
    assert not torch.equal(by_seed.inputs, batches[0].inputs)


@pytest.mark.parametrize(("size", "ranks"), [(8, 2), (12, 3), (6, 2), (9, 3)])
def test_shares_of_a_batch(size: int, ranks: int) -> None:
    parts = [share(size, rank, ranks) for rank in range(ranks)]
    assert torch.cat(parts).sort().values.tolist() == list(range(size))
    assert {len(part) for part in parts} == {size // ranks}
    if size // ranks % 2 == 0:
        assert all(torch.equal(part.flip(0), size - 1 - part) for part in parts), "mixup's pairs"


# ----------------------------------------------------------- ill-formed data


def put(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def own_folder(tmp_path: Path, write_digits: Write) -> Path:
    return write_digits(tmp_path / "data", {"train": 8, "val": 4})


def test_any_mode_becomes_rgb(own_folder: Path, digit: Callable[..., Image.Image]) -> None:
    folder = own_folder / "val" / "digit_2"
    shutil.rmtree(folder)
    colour = Image.merge("RGB", [digit(number) for number in (2, 12, 22)])
    palette = colour.convert("P")
    put(folder / "grey.png", digit(2))
    put(folder / "grey_alpha.png", digit(2).convert("LA"))
    put(folder / "rgba.png", colour.convert("RGBA"))
    put(folder / "palette.png", palette)
    put(folder / "palette_transparent.png", palette, transparency=bytes([0, 128, 255] * 80))
    put(folder / "bits.png", digit(2).convert("1"))
    put(folder / "cmyk.jpg", colour.convert("CMYK"))
    images, labels = everything(load(own_folder), "test")
    modes = images[labels == 2]
    assert modes.shape == (7, 3, SIZE, SIZE)
    assert torch.isfinite(modes).all()


@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff"])
def test_16_bit_grey_keeps_its_shades(tmp_path: Path, kind: str) -> None:
    """257 times as large as 8 bits, which Pillow would clip to white."""
    shades = np.arange(256, dtype=np.uint16).reshape(16, 16)
    values = 257 * shades - (shades % 2) * 100  # not half a shade more
    if kind == "big-endian tiff":
        values = values.astype(">u2")
    path = tmp_path / f"shades.{kind[-4:].strip()}"
    Image.fromarray(values).save(path)
    with Image.open(path) as image:
        assert image.mode.startswith("I;16")
        assert np.array_equal(np.asarray(in_rgb(image)), np.stack([shades] * 3, axis=-1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 4), 40_000, dtype=np.int32), "mode I with values from 40000 to 40000 is not read"),
        (np.full((4, 4), -1, dtype=np.int32), "mode I with values from -1 to -1 is not read"),
        (np.full((4, 4), 256.0, dtype=np.float32), "mode F with values from 256 to 256 is not read"),
        (np.full((4, 4), np.nan, dtype=np.float32), "mode F with values from nan to nan is not read"),
        (np.full((4, 4), 0.5, dtype=np.float32), "mode F with values from 0.5 to 0.5 is not read"),
    ],
)
def test_no_image_is_clipped_in_silence(own_folder: Path, values: np.ndarray, words: str) -> None:
    put(own_folder / "val" / "digit_2" / "deep.png", Image.fromarray(values), format="TIFF")
    with pytest.raises(InputError, match=rf"deep\.png cannot be read \({words}"):
        everything(load(own_folder), "test")
    in_range = Image.fromarray(np.clip(np.nan_to_num(values), 2, 255))
    assert np.asarray(in_rgb(in_range)).max() in (2, 255)


def test_a_truncated_image_is_named_or_counted(own_folder: Path) -> None:
    for split in ("train", "val"):
        path = sorted((own_folder / split / "digit_1").iterdir())[0]
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"JPEG cannot be read \(.*replace it, or let --task.unreadable"):
        everything(load(own_folder), "test")
    skipping = load(own_folder, unreadable="skip")
    images, labels = everything(skipping, "test")
    assert len(images) == len(labels) == 11
    for split in ("train", "validation"):
        everything(skipping, split)
    assert len(skipping.unreadable) == 2
    assert all("digit_1" in name for name in skipping.unreadable)


def test_an_unreadable_example_has_its_neighbour_in_its_place(own_folder: Path) -> None:
    whole = list(load(own_folder).train_batches(0, 4))
    number = int(whole[1].examples[3])
    (own_folder / "train" / Images(data=str(own_folder)).open("train").names[number]).write_bytes(b"")
    passing = list(load(own_folder, unreadable="skip").train_batches(0, 4))
    changed = [
        (before, after)
        for before, after in zip(whole, passing, strict=True)
        if not torch.equal(before.inputs, after.inputs)
    ]
    assert len(changed) == 1
    before, after = changed[0]
    assert after.examples.tolist() == [*before.examples[:3].tolist(), int(before.examples[0])]
    assert torch.equal(after.inputs, before.inputs[[0, 1, 2, 0]])


def spoil(data: Images, split: str, numbers: Tensor) -> None:
    source = data.open(split)
    for number in numbers.tolist():
        (Path(source.where) / source.names[number]).write_bytes(b"")


def test_a_batch_without_a_readable_image_is_passed_over(own_folder: Path) -> None:
    """The short last one may hold a single image."""
    spoil(Images(data=str(own_folder)), "test", torch.tensor([10, 11]))
    with pytest.raises(InputError, match="cannot be read"):
        list(load(own_folder).batches("test", 5))
    data = load(own_folder, unreadable="skip")
    assert [len(batch.inputs) for batch in data.batches("test", 5)] == [5, 5]
    assert len(data.unreadable) == 2
    spoil(Images(data=str(own_folder)), "test", torch.arange(10))
    with pytest.raises(InputError, match="val: none of 12 images can be read"):
        list(data.batches("test", 5))
    data.read_with(Reading(rank=1, ranks=2))
    assert list(data.batches("test", 5)) == [], "the other rank may have some"
    with pytest.raises(InputError, match="no image of the split can be read"):
        Images(data=str(own_folder)).scorer().metrics()


def test_a_training_batch_without_a_readable_image_has_the_next(own_folder: Path) -> None:
    """Its step is counted: by the schedule, and by other ranks."""
    whole = list(load(own_folder).train_batches(0, 4))
    spoil(Images(data=str(own_folder)), "train", torch.cat([whole[1].examples, whole[2].examples[:1]]))
    passing = list(load(own_folder, unreadable="skip").train_batches(0, 4))
    assert len(passing) == len(whole)
    assert set(passing[1].examples.tolist()) == {int(whole[2].examples[1])}
    assert torch.equal(passing[1].inputs, whole[2].inputs[[1, 1, 1, 1]])
    assert torch.equal(passing[1].targets, whole[2].targets[[1, 1, 1, 1]])
    resumed = next(load(own_folder, unreadable="skip").train_batches(0, 4, start=1))
    assert torch.equal(resumed.inputs, passing[1].inputs)
    spoil(Images(data=str(own_folder)), "train", torch.arange(24))
    with pytest.raises(InputError, match=r"train: none of \d+ images can be read"):
        list(load(own_folder, unreadable="skip").train_batches(0, 4))


def broken(root: Path, what: str) -> dict[str, object]:
    """Break a folder; the options to load it with."""
    if what == "empty class":
        (root / "train" / "digit_9").mkdir()
        (root / "train" / "digit_9" / "notes.txt").write_text("to do")
    elif what == "other class":
        shutil.copytree(root / "val" / "digit_0", root / "val" / "digit_7")
    elif what == "no images":
        for path in root.rglob("*.JPEG"):
            path.unlink()
    elif what == "no test":
        shutil.rmtree(root / "val")
    elif what == "too few classes":
        return {"classes": 2}
    elif what == "no folder":
        shutil.rmtree(root)
    elif what == "unknown":
        return {"dataset": "torsh/cifar10"}
    elif what == "not downloaded":
        return {"dataset": "torch/cifar10"}
    elif what == "held out":
        return {"held_out": 0.0001}
    elif what == "no policy":
        return {"auto_augment": "none"}
    elif what == "no magnitude":
        return {"auto_augment": "rand-m9x"}
    return {}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("empty class", "class folder .*digit_9 holds no images; fill it or remove it"),
        ("other class", "val has images of digit_7, which is not a class of the training split"),
        ("no images", "holds no images"),
        ("no test", "has no split 'validation': no folder and no tar named validation or val .*, but train;"),
        ("too few classes", r"has labels up to 2, but task images was told of 2 classes \(--task.classes\)"),
        ("no folder", r"there is no .*data \(--task.data\)"),
        ("unknown", "unknown dataset 'torsh/cifar10'; did you mean 'torch'"),
        ("not downloaded", "cifar10 in .* cannot be opened, and nothing is downloaded here: .* corrupted.$"),
        ("held out", "held_out 0.0001 of 24 images leaves the validation split empty"),
        ("no policy", r"timm reads no policy in --task\.auto-augment none \(.*, and None leaves it out"),
        ("no magnitude", r"timm reads no policy in --task\.auto-augment rand-m9x"),
    ],
)
def test_ill_formed_data_is_a_sentence(own_folder: Path, what: str, words: str) -> None:
    options = broken(own_folder, what)
    with pytest.raises(InputError, match=words):
        load(own_folder, **options)


def first_image(folder: Path) -> Path:
    return min(folder.iterdir())


def tangled(root: Path, what: str) -> None:
    """A folder that can be read in more than one way, or not at all."""
    train, image = root / "train", first_image(root / "train" / "digit_0")
    if what == "stray image":
        shutil.copy(image, train)
    elif what == "hidden folder":
        shutil.copytree(train / "digit_1", train / "digit_0" / ".ipynb_checkpoints")
    elif what == "folders in classes":
        for folder in sorted(train.iterdir()):
            for path in sorted(folder.iterdir()):
                put(folder / ("even" if int(path.stem) % 2 == 0 else "odd") / path.name, Image.open(path))
                path.unlink()
    elif what == "link to above":
        for name in ("digit_0", "digit_1"):  # two, and whoever follows them never ends
            (train / name / "above").symlink_to("..")
    elif what == "image twice":
        (train / "digit_1" / "again.JPEG").symlink_to(image)
    elif what == "link to nothing":
        (train / "digit_0" / "gone.JPEG").symlink_to("nowhere.JPEG")
    elif what == "test class is a link":
        shutil.rmtree(root / "val" / "digit_0")
        (root / "val" / "digit_0").symlink_to("../train/digit_0")
    elif what == "test image is a link":
        (root / "val" / "digit_0" / "linked.JPEG").symlink_to(image)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("stray image", r"train: \d+\.JPEG lies in no class folder"),
        ("hidden folder", r"train: digit_0/\.ipynb_checkpoints/\d+\.JPEG lies in a hidden folder"),
        (
            "folders in classes",
            r"train: digit_\d/(even|odd)/.* and digit_.* side by side, .* torch/image_folder takes",
        ),
        ("link to above", r"digit_\d/above is .*train again, by a link"),
        ("image twice", r"digit_1/again\.JPEG is .*digit_0/\d+\.JPEG again, by a link"),
        ("link to nothing", r"digit_0/gone\.JPEG cannot be read: No such file"),
        ("test class is a link", "train-split 'train' and --task.test-split 'validation' share images"),
        ("test image is a link", "train-split 'train' and --task.test-split 'validation' share images"),
    ],
)
def test_what_a_folder_holds_is_not_guessed(own_folder: Path, what: str, words: str) -> None:
    tangled(own_folder, what)
    with pytest.raises(InputError, match=words):
        load(own_folder)


def test_links_to_images_elsewhere_are_images(own_folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    for path in own_folder.rglob("*.JPEG"):
        link = linked / path.relative_to(own_folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert load(linked).fingerprint == load(own_folder).fingerprint


@pytest.mark.parametrize("layout", ["", "tar"])
def test_images_of_every_ending_are_read(own_folder: Path, tmp_path: Path, layout: str) -> None:
    endings = (".webp", ".bmp", ".TIF", ".gif")
    paths = sorted((own_folder / "val" / "digit_1").iterdir())
    for path, ending in zip(paths, endings, strict=True):
        put(path.with_suffix(ending), Image.open(path))
        path.unlink()
    if layout == "tar":
        for split in ("train", "val"):
            tarred(own_folder / split, tmp_path / f"{split}.tar")
    data = load(tmp_path if layout == "tar" else own_folder)
    assert data.sizes["test"] == 12
    assert torch.isfinite(everything(data, "test")[0]).all()


def test_a_tar_may_hold_a_tar_per_class(digit_folder: Path, tmp_path: Path) -> None:
    """As ImageNet's training images are packed."""
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for folder in sorted((digit_folder / split).iterdir()):
                archive.add(tarred(folder, tmp_path / f"{folder.name}.tar"), f"{folder.name}.tar")
    data, reference = load(tmp_path), load(digit_folder)
    assert sorted_rows(*everything(data, "test")) == sorted_rows(*everything(reference, "test"))


@pytest.mark.parametrize("what", ["empty", "compressed", "other class", "no common class", "link"])
def test_ill_formed_tars_are_a_sentence(own_folder: Path, tmp_path: Path, what: str) -> None:
    words = {
        "empty": r"val\.tar holds no images",
        "compressed": r"val\.tar holds no images that can be listed",
        "other class": r"val\.tar has images of digit_7, which is not a class of the training split",
        "no common class": r"val\.tar has images of digit_7, which is not a class of the training split",
        "link": r"digit_0/linked\.JPEG is a link or no file",
    }
    val = own_folder / "val"
    if what in ("other class", "no common class"):
        shutil.copytree(val / "digit_0", val / "digit_7")
    if what == "no common class":
        for label in range(3):
            shutil.rmtree(val / f"digit_{label}")
    if what == "link":
        (val / "digit_0" / "linked.JPEG").symlink_to(first_image(val / "digit_0").name)
    tarred(own_folder / "train", tmp_path / "train.tar")
    tarred(val, tmp_path / "val.tar")
    if what == "empty":
        tarfile.open(tmp_path / "val.tar", "w").close()
    elif what == "compressed":
        (tmp_path / "val.tar").write_bytes(gzip.compress((tmp_path / "val.tar").read_bytes()))
    with pytest.raises(InputError, match=words[what]):
        load(tmp_path)


def test_a_file_name_need_not_be_text(own_folder: Path) -> None:
    """Linux has bytes for names: their hash says what is held out, and what is said of them is text."""
    folder = own_folder / "train" / "digit_0"
    odd = folder / os.fsdecode(b"\xff.JPEG")
    first_image(folder).rename(odd)
    odd.write_bytes(b"")
    data = load(own_folder, unreadable="skip")
    for split in ("train", "validation"):
        everything(data, split)
    ((name, problem),) = data.unreadable.items()
    assert name.endswith(r"digit_0/\udcff.JPEG")
    assert (name + problem).encode()


def test_torchvision_numbers_classes_by_name(own_folder: Path) -> None:
    """Its own numbers are those of the folders of one split: without the first class, all move down."""
    shutil.rmtree(own_folder / "val" / "digit_0")
    images = {"dataset": "torch/image_folder"}
    assert set(everything(load(own_folder, **images), "test")[1].tolist()) == {1, 2}
    (own_folder / "val" / "digit_2").rename(own_folder / "val" / "digit_7")
    shutil.move(own_folder, own_folder.with_name("other"))  # listings are remembered by their place
    with pytest.raises(
        InputError, match=r"has images of digit_7, which is not a class of the training split"
    ):
        load(own_folder.with_name("other"), **images)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("stray image", r"torchvision passes over \d+\.JPEG, which lies in no class folder"),
        ("hidden folder", r"digit_0/\.ipynb_checkpoints/\d+\.JPEG lies in a hidden folder"),
        ("link to above", r"digit_\d/above is .*train again, by a link"),
        ("test image is a link", "train-split 'train' and --task.test-split 'validation' share images"),
    ],
)
def test_torchvisions_folders_are_held_to_the_same(own_folder: Path, what: str, words: str) -> None:
    tangled(own_folder, what)
    with pytest.raises(InputError, match=words):
        load(own_folder, dataset="torch/image_folder")


@pytest.mark.parametrize("dataset", [None, "torch/image_folder"])
def test_the_held_out_split_is_the_same_wherever_the_data_are(own_folder: Path, dataset: str | None) -> None:
    elsewhere = shutil.copytree(own_folder, own_folder.parent / "deeper" / "copy")
    options = {} if dataset is None else {"dataset": dataset}
    one, other = (load(folder, **options) for folder in (own_folder, elsewhere))
    torch.testing.assert_close(everything(one, "validation"), everything(other, "validation"))
    assert one.fingerprint == other.fingerprint


def test_torchvision_takes_the_outermost_folder_for_the_class(own_folder: Path) -> None:
    tangled(own_folder, "folders in classes")
    data = load(own_folder, dataset="torch/image_folder")
    assert set(everything(data, "validation")[1].tolist()) <= {0, 1, 2}
    with pytest.raises(InputError, match="has no split 'other': no folder named other"):
        load(own_folder, dataset="torch/image_folder", train_split="other")


def test_torchvisions_folders_keep_16_bits(own_folder: Path) -> None:
    """Its loader would clip all above 255 to white."""
    values = 257 * np.arange(SIZE**2, dtype=np.uint16).reshape(SIZE, SIZE) // 3
    put(own_folder / "val" / "digit_2" / "deep.png", Image.fromarray(values))
    found = sorted_rows(*everything(load(own_folder, dataset="torch/image_folder"), "test"))
    assert found == sorted_rows(*everything(load(own_folder), "test"))


def test_torchvision_must_have_labels(tmp_path: Path) -> None:
    image = Image.new("RGB", (SIZE, SIZE))
    put(tmp_path / "2021_train" / "00000_Animalia_A_B_C_D_E_F" / "0.jpg", image)
    with pytest.raises(
        InputError, match=r"has no list of one label per image, .* class folders can, without"
    ):
        load(tmp_path, dataset="torch/inaturalist", train_split="2021_train")


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (b'{"label": -1}', "has images with the label -1, which is no class"),
        (b'{"label": null}', r"a-train-0\.tar cannot be read"),
        (b"[1]", r"a-train-0\.tar cannot be read: 0 has an image, but neither"),
    ],
)
def test_labels_of_shards_are_numbers(
    tmp_path: Path, digit: Callable[..., Image.Image], label: bytes, words: str
) -> None:
    png = io.BytesIO()
    digit(0).save(png, "PNG")
    for split in ("train", "val"):
        members = {f"{number}.png": png.getvalue() for number in range(20)}
        write_shard(
            tmp_path / f"a-{split}-0.tar", members | {f"{number}.json": label for number in range(20)}
        )
    with pytest.raises(InputError, match=words):
        load(tmp_path, dataset="wds/", classes=2)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ([1], r"_info\.json is not an object"),
        ({"splits": ["train"]}, r"_info\.json is not an object, with an object `splits`"),
        ({"class_names": "ab"}, r"_info\.json: class_names is not a list of names"),
        ({"splits": {"train": {}}}, "split train has no list of distinct `filenames`"),
        ({"splits": {"train": {"filenames": "a.tar"}}}, "split train has no list of distinct `filenames`"),
        ({"splits": {"train": {"filenames": ["a.tar"] * 2}}}, "split train has no list of distinct `file"),
    ],
)
def test_the_info_beside_shards_may_be_wrong(tmp_path: Path, info: object, words: str) -> None:
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=words):
        load(tmp_path, dataset="wds/")


@pytest.fixture
def hugging_face(tmp_path: Path, digit: Callable[..., Image.Image]) -> str:
    """40 training images, and 10 without labels to test on."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    )
    for split, labels in (("train", [0, 1] * 20), ("test", [-1] * 10)):
        columns = {"image": [digit(number) for number in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{split}.parquet")
    return f"hfds/{tmp_path}"


@pytest.mark.parametrize(
    "splits",
    [
        {"test_split": "train[:50%]"},
        {"train_split": "train[:60%]", "test_split": "train[50%:]"},
        {"train_split": "all", "test_split": "test"},
        {"validation_split": "train[:10]", "test_split": "test"},
    ],
)
def test_parts_of_a_split_are_told_apart(hugging_face: str, splits: dict[str, object]) -> None:
    with pytest.raises(InputError, match="share images"):
        load("", dataset=hugging_face, **splits)
    apart = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    assert load("", dataset=hugging_face, **apart).sizes["test"] == 8
    with pytest.raises(InputError, match="has images that count twice"):
        load("", dataset=hugging_face, train_split="train+train[:1]")
    with pytest.raises(InputError, match="has images with the label -1, which is no class"):
        load("", dataset=hugging_face, test_split="test")


def test_rows_overlap_where_a_row_is_in_both() -> None:
    first, second = Rows("train", 0, 10), Rows("train", 10, 20)
    assert not first.overlaps(second)
    assert first.overlaps(Rows("train", 9, 12))
    assert not first.overlaps(Rows("test", 0, 10))
    assert not first.overlaps(Rows("train", 5, 5))
    known = Source("", len, [], [], [], [], frozenset(), (second,))
    assert known.overlaps(replace(known, rows=(first, Rows("train", 19, 30))))
    assert not known.overlaps(replace(known, rows=(first,)))


@pytest.mark.parametrize("inside", ["./", "v1.2/"])
def test_folders_in_shards_may_have_dots(digit_folder: Path, tmp_path: Path, inside: str) -> None:
    for split in ("train", "val"):
        sharded(digit_folder / split, tmp_path, split, inside)
    data = load(tmp_path, dataset="wds/")
    assert sum(data.sizes.values()) == 108
    assert sorted_rows(*everything(data, "test")) == sorted_rows(*everything(load(digit_folder), "test"))


def test_shards_without_labels_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-train-0.tar", "w") as archive:
        member = tarfile.TarInfo("one.jpg")
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(InputError, match=r"a-train-0\.tar cannot be read: one has an image, but neither"):
        load(tmp_path, dataset="wds/")
    with pytest.raises(InputError, match="has no shards of split 'other'"):
        load(tmp_path, dataset="wds/", train_split="other")


def test_no_data_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"task images needs --task\.data PATH"):
        build.resolve(
            MIXERS.parse_pattern("conv"), SKELETONS.parse("mambaout-nano"), TASKS.parse("images"), Recipe(), 0
        )


# --------------------------------------------------------------------- trials


def trial_on(data: Path, mixer: str = "conv", task: str = "", **recipe: object) -> Trial:
    text = f"images(data={data}, size={SIZE}, held_out=0.2{task})"
    values = {"epochs": 2, "batch_size": 8, "warmup_epochs": 1, **recipe}
    return build.resolve(
        MIXERS.parse_pattern(mixer),
        SKELETONS.parse("mambaout-nano(drop_path=0.1)"),
        TASKS.parse(text),
        Recipe(**values),
        seed=0,
    )


def outcome(folder: TrialFolder) -> tuple[dict, bytes, bytes]:
    result = folder.result()
    assert result is not None
    return result, folder.curve.read_bytes(), folder.weights.read_bytes()


def test_resuming_equals_no_interruption(digit_folder: Path, tmp_path: Path) -> None:
    """At a random step, with average, accumulation and mixup."""
    trial = trial_on(digit_folder, mixup=0.8, cutmix=1.0, ema_decay=0.9)
    whole = Store(tmp_path / "whole").folder(trial.id)
    run_trial(trial, whole, Runtime(micro_batch=4))
    parts = Store(tmp_path / "parts").folder(trial.id)
    steps = iter(range(1, 1_000))
    stop_at = random.SystemRandom().randrange(1, 12)
    with pytest.raises(Interrupted):
        run_trial(trial, parts, Runtime(micro_batch=4), lambda: next(steps) == stop_at)
    run_trial(trial, parts, Runtime(micro_batch=4))
    assert outcome(whole) == outcome(parts), f"stopped at step {stop_at}"


@pytest.mark.parametrize("stop", [False, True])
def test_readers_end_with_their_trial(digit_folder: Path, store: Store, stop: bool) -> None:
    """They ignore signals, so that a process which waits for them at its end would wait for ever."""
    readers = set(multiprocessing.active_children())
    trial = trial_on(digit_folder, epochs=1)
    found = []

    def stop_requested() -> bool:
        found.extend(set(multiprocessing.active_children()) - readers)
        return stop

    with pytest.raises(Interrupted) if stop else nullcontext():
        run_trial(trial, store.folder(trial.id), Runtime(loaders=2), stop_requested)
    assert len(set(found)) == 2
    assert not any(reader.is_alive() for reader in found)


def test_what_is_recorded(own_folder: Path, store: Store) -> None:
    path = sorted((own_folder / "val" / "digit_1").iterdir())[0]
    path.write_bytes(path.read_bytes()[:200])
    trial = trial_on(own_folder, task=", unreadable=skip", epochs=1, batch_size=4)
    folder = store.folder(trial.id)
    run_trial(trial, folder, Runtime())
    result, timing = folder.result(), folder.timing()
    assert result is not None
    assert set(result["metrics"]["test"]) == {"accuracy", "top_5", "loss"}
    assert result["metrics"]["test"]["top_5"] == 100.0, "of 3 classes"
    assert 0 < timing["waiting_for_data"] < 1
    assert [name.rpartition("/")[2] for name in timing["unreadable"]] == [path.name]
    log = folder.log.read_text()
    assert "waiting for data" in log
    assert f"passed over {own_folder / 'val'}: digit_1/{path.name}" in log


def test_a_fatal_image_fails_the_trial_by_name(own_folder: Path, store: Store) -> None:
    from experiments import launch

    path = sorted((own_folder / "train" / "digit_1").iterdir())[0]
    path.write_bytes(path.read_bytes()[:200])
    trial = trial_on(own_folder, batch_size=4)
    launch.work([trial], store, Runtime(), "session")
    stored = json.loads((store.folder(trial.id).path / "result.json").read_text())
    assert stored["status"] == "failed"
    assert path.name in stored["error"]
