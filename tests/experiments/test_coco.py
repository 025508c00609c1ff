"""Data in COCO's format: what is read from it, what is refused, and COCO's average precision."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.transforms.functional import normalize, to_tensor

from experiments.build import create_task
from experiments.tasks import TASKS
from experiments.tasks.coco import Coco, CocoData, _trainable, by_shape, mirror
from experiments.tasks.coco_format import Annotation, Picture, decode, read
from experiments.tasks.instances import InstanceScorer
from experiments.tasks.reading import Reading
from mixers.registry import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

Json = dict[str, Any]
CATEGORIES = (3, 17, 90)  # with gaps, like COCO's own
RED, GREEN, BLUE = CATEGORIES
SQUARE = [[4.0, 6.0, 24.0, 6.0, 24.0, 26.0, 4.0, 26.0]]


def rle_of(mask: np.ndarray) -> Json:
    """Uncompressed: runs of 0 and 1 in turn, column by column."""
    flat = mask.T.flatten()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def box_mask(height: int, width: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def annotation(key: int, image: int, category: int, box: list[float], mask: Any, crowd: int = 0) -> Json:
    area = box[2] * box[3]
    return {
        "id": key,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
        "segmentation": mask,
    }


def content() -> Json:
    """Five images: polygons beside a crowd; run lengths; nothing at all; two plain ones."""
    crowd = rle_of(box_mask(40, 60, 30, 0, 60, 20))
    runs = rle_of(box_mask(50, 40, 10, 10, 30, 40))
    return {
        "info": {},
        "images": [
            {"id": 7, "file_name": "c.png", "height": 40, "width": 60},
            {"id": 2, "file_name": "a.png", "height": 40, "width": 60},
            {"id": 5, "file_name": "b.png", "height": 50, "width": 40},
            {"id": 8, "file_name": "d.png", "height": 40, "width": 60},
            {"id": 9, "file_name": "e.png", "height": 40, "width": 60},
        ],
        "annotations": [
            annotation(11, 2, RED, [4.0, 6.0, 20.0, 20.0], SQUARE),
            annotation(12, 2, BLUE, [30.0, 0.0, 30.0, 20.0], crowd, crowd=1),
            annotation(13, 5, BLUE, [10.0, 10.0, 20.0, 30.0], runs),
            annotation(14, 8, GREEN, [4.0, 6.0, 20.0, 20.0], SQUARE),
            annotation(15, 9, GREEN, [4.0, 6.0, 20.0, 20.0], SQUARE),
        ],
        "categories": [{"id": key, "name": f"thing {key}"} for key in reversed(CATEGORIES)],
    }


@pytest.fixture
def write_sample(tmp_path: Path) -> Callable[..., Path]:
    """Both splits with the same content, changed by a function before it is written."""

    def write(change: Callable[[Json], None] = lambda _: None) -> Path:
        entries = content()
        change(entries)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split in ("train2017", "val2017"):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(entries))
            for name in "abcde":
                shape = (50, 40, 3) if name == "b" else (40, 60, 3)
                pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / f"{name}.png")
        return tmp_path

    return write


def load(folder: Path, **options: Any) -> CocoData:
    data = Coco(data=str(folder), classes=3, validation=2, **options).load(seed=0)
    assert isinstance(data, CocoData)
    return data


def test_categories_become_labels_and_labels_categories(write_sample: Callable[..., Path]) -> None:
    folder = write_sample()
    file = read(folder / "annotations/instances_val2017.json", folder / "val2017")
    assert list(file.categories) == [3, 17, 90]
    assert [picture.id for picture in file.pictures] == [2, 5, 7, 8, 9]
    assert [each.label for each in file.pictures[0].annotations] == [1, 3]
    scorer = InstanceScorer()
    for batch in load(folder).batches("test", 1):
        scorer.add([perfect(target) for target in batch.targets], batch.targets, batch.examples)
    answers = scorer.answers()
    assert answers["example"].tolist() == [2, 5, 7, 8, 9]
    assert answers["detections"].tolist() == [1, 1, 0, 1, 1]  # the crowd is nobody's to find
    assert answers["category"].tolist() == [RED, BLUE, GREEN, GREEN]
    assert answers["box"][:2].tolist() == [[4, 6, 20, 20], [10, 10, 20, 30]]


def perfect(target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The answer to an image that knows it."""
    kept = ~target["crowd"]
    return {
        "boxes": target["boxes"][kept].float(),
        "labels": target["labels"][kept],
        "scores": torch.ones(int(kept.sum())),
        "masks": target["masks"][kept, None].float(),
    }


def test_masks_are_those_of_pycocotools(write_sample: Callable[..., Path]) -> None:
    from pycocotools import mask as rle

    def add_compressed(entries: Json) -> None:
        packed = rle.encode(np.asfortranarray(box_mask(40, 60, 3, 30, 50, 38)))
        text = {"size": packed["size"], "counts": packed["counts"].decode()}
        entries["annotations"].append(annotation(16, 2, GREEN, [3.0, 30.0, 47.0, 8.0], text))

    folder = write_sample(add_compressed)
    path = folder / "annotations/instances_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(path))
    kinds = []
    for picture in read(path, folder / "val2017").pictures:
        for each in picture.annotations:
            mask = decode(each, picture, path)
            np.testing.assert_array_equal(mask, theirs.annToMask(theirs.anns[each.id]))
            assert mask.any()
            kinds.append(type(each.segmentation))
    assert kinds == [list, dict, dict, dict, list, list]


def test_crowds_and_empty_images_are_tested_on_but_not_trained_on(write_sample: Callable[..., Path]) -> None:
    data = load(write_sample())
    assert data.sizes["test"] == 5
    targets = [target for batch in data.batches("test", 8) for target in batch.targets]
    assert [int(target["crowd"].sum()) for target in targets] == [1, 0, 0, 0, 0]
    assert [len(target["boxes"]) for target in targets] == [2, 1, 0, 1, 1]
    held_out = {int(each) for batch in data.batches("validation", 8) for each in batch.examples}
    trained = {int(each) for batch in data.train_batches(0, 1) for each in batch.examples}
    assert trained == {2, 5, 8, 9} - held_out
    assert len(held_out) == 2

    def crowds_only(entries: Json) -> None:
        entries["annotations"][1]["iscrowd"] = 0
        entries["annotations"].append(annotation(16, 7, RED, [4.0, 6.0, 20.0, 20.0], SQUARE, crowd=1))
        entries["annotations"] += [
            annotation(17 + image, image, RED, [30.0, 6.0, 9.0, 9.0], SQUARE, crowd=1)
            for image in (2, 5, 8, 9)
        ]

    again = load(write_sample(crowds_only))
    assert again.sizes == data.sizes
    objects = {2: 2, 5: 1, 8: 1, 9: 1}
    for batch in again.train_batches(0, 1):
        assert [len(target["boxes"]) for target in batch.targets] == [objects[int(batch.examples[0])]]

    def one_is_a_crowd(entries: Json) -> None:
        for each in entries["annotations"]:
            each["iscrowd"] = int(each["image_id"] == min(trained))

    fewer = load(write_sample(one_is_a_crowd))
    assert fewer.sizes == data.sizes | {"train": data.sizes["train"] - 1}


def test_splits_do_not_overlap_and_are_the_same_for_every_seed(write_sample: Callable[..., Path]) -> None:
    folder = write_sample()
    held_out = [load(folder) for _ in range(2)] + [
        Coco(data=str(folder), classes=3, validation=2).load(seed=5)
    ]
    ids = [next(iter(data.batches("validation", 1))).examples.tolist() for data in held_out]
    assert ids[0] == ids[1] == ids[2]
    trained = [batch.examples.tolist() for data in held_out[:1] for batch in data.train_batches(0, 1)]
    assert ids[0] not in trained
    assert held_out[0].fingerprint == held_out[2].fingerprint


def test_mirrored_images_keep_their_objects(write_sample: Callable[..., Path]) -> None:
    """A box lies around its mask, also after the flip."""
    folder = write_sample(lambda entries: entries["annotations"].pop(1))
    for flip in (0.0, 1.0):
        for batch in load(folder, flip=flip).train_batches(0, 1):
            for image, target in zip(batch.inputs, batch.targets, strict=True):
                assert target["masks"].shape[1:] == image.shape[1:]
                for box, mask in zip(target["boxes"], target["masks"], strict=True):
                    rows, columns = mask.nonzero().unbind(1)
                    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    assert box.tolist() == [int(edge) for edge in around]


def test_pixels_are_normalised_and_mirrored_with_their_objects(write_sample: Callable[..., Path]) -> None:
    folder = write_sample()
    (image,), (target,), _ = next(load(folder).batches("test", 1))
    expected = normalize(
        to_tensor(Image.open(folder / "val2017/a.png")), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(image, expected)
    mirrored, its_target = mirror(image, target)
    assert torch.equal(mirrored[:, :, 5], image[:, :, -6])
    assert torch.equal(its_target["masks"][0][:, -6], target["masks"][0][:, 5])
    assert its_target["boxes"][0].tolist() == [60 - 24, 6, 60 - 4, 26]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ([50.0, 30.0, 20.0, 20.0], [50.0, 30.0, 60.0, 40.0]),  # the image is 60 x 40
        ([-5.0, -5.0, 20.0, 20.0], [0.0, 0.0, 15.0, 15.0]),
        ([10.0, 10.0, 1.0, 20.0], [10.0, 10.0, 11.0, 30.0]),
        ([10.0, 10.0, 0.5, 20.0], None),
        ([10.0, 10.0, 20.0, 0.5], None),
    ],
)
def test_training_boxes_end_at_the_border_and_have_a_pixel(
    box: list[float], kept: list[float] | None, write_sample: Callable[..., Path]
) -> None:
    def with_box(entries: Json) -> None:
        entries["annotations"] += [annotation(20 + image, image, RED, box, SQUARE) for image in (2, 8, 9)]

    data = load(write_sample(with_box), flip=0.0)
    found = [target["boxes"].tolist() for batch in data.train_batches(0, 1) for target in batch.targets]
    lying = [boxes for boxes in found if boxes[0] == [4.0, 6.0, 24.0, 26.0]]
    assert lying
    assert all(boxes[1:] == ([] if kept is None else [kept]) for boxes in lying)


@pytest.mark.parametrize(("width", "trained"), [(32, True), (31, False)])
def test_images_with_a_short_side_are_not_trained_on(width: int, trained: bool) -> None:
    objects = (Annotation(1, 1, (0.0, 0.0, 9.0, 9.0), 81.0, False, SQUARE),)
    for height in (40, 100):
        assert _trainable(Picture(1, Path(), height, width, objects)) == trained
        assert _trainable(Picture(1, Path(), width, height, objects)) == trained


def test_every_rank_knows_the_sizes_in_the_whole_batch(write_sample: Callable[..., Path]) -> None:
    folder = write_sample(lambda entries: entries["annotations"].pop(1))
    data = load(folder)
    for rank in range(2):
        data.read_with(Reading(0, rank=rank, ranks=2))
        for batch in data.train_batches(0, 2):
            (target,) = batch.targets
            assert target["batch_sizes"].shape == (2, 2)
            assert list(batch.inputs[0].shape[1:]) in target["batch_sizes"].tolist()


def test_whoever_reads_reads_the_same(
    write_sample: Callable[..., Path], check_reading: Callable[..., None]
) -> None:
    def six_more_images(entries: Json) -> None:
        """The second again, so that there are batches of four."""
        first = entries["images"][1]["id"]
        for key in range(101, 107):
            entries["images"].append({**entries["images"][1], "id": key})
            entries["annotations"] += [
                {**each, "id": 1000 * key + each["id"], "image_id": key}
                for each in content()["annotations"]
                if each["image_id"] == first
            ]

    folder = write_sample(six_more_images)
    check_reading(lambda: load(folder))


def test_batches_have_one_orientation_and_lose_no_step() -> None:
    def picture(index: int, upright: bool) -> Picture:
        return Picture(index, Path(), 20 if upright else 10, 10 if upright else 20, ())

    pictures = [picture(index, upright=index % 3 == 0) for index in range(23)]
    batches = by_shape(pictures, 4)
    assert len(batches) == 23 // 4
    upright = [[each.height > each.width for each in batch] for batch in batches]
    assert all(len(set(batch)) == 1 for batch in upright[:-1])  # 8 upright, 15 lying: the last one is mixed
    assert len({each.id for batch in batches for each in batch}) == 20


def first_annotation(**fields: Any) -> Callable[[Json], None]:
    return lambda entries: entries["annotations"][0].update(fields)


ILL_FORMED = {
    "annotation 11 is on image 99": first_annotation(image_id=99),
    "annotation 11: its box is 0 wide": first_annotation(bbox=[4.0, 6.0, 0.0, 20.0]),
    "annotation 11: bbox": first_annotation(bbox=[4.0, 6.0, 20.0]),
    "annotation 11 has category 4": first_annotation(category_id=4),
    "annotation 11: the size of its mask is [50, 40], but image 2 is 40 x 60": first_annotation(
        segmentation=rle_of(box_mask(50, 40, 0, 0, 4, 4))
    ),
    "annotation 11: the runs of its mask add up to 10": first_annotation(
        segmentation={"size": [40, 60], "counts": [4, 6]}
    ),
    "annotation 11: a polygon needs": first_annotation(segmentation=[[1.0, 2.0, 3.0]]),
    "annotation 11: a polygon needs at least": first_annotation(segmentation=[[1.0, 2.0, 3.0, 4.0]]),
    "annotation 11: a polygon needs at least three": first_annotation(segmentation=[[1, 1, 9, 1, 9, 9, 4]]),
    "annotation 11: segmentation is neither": first_annotation(segmentation=3),
    "annotation 11: segmentation is neither polygons nor": first_annotation(
        segmentation={"size": [40, 60], "counts": None}
    ),
    "annotation 11: segmentation is neither polygons nor a": first_annotation(
        segmentation={"size": [40, 60], "counts": [-1, 2401]}
    ),
    "annotation 11: segmentation is neither polygons nor a run-length": first_annotation(
        segmentation={"size": [40, 60], "counts": [2400.0]}
    ),
    "annotation 11: the size of its mask is None": first_annotation(
        segmentation={"size": None, "counts": [2400]}
    ),
    "annotation 11: segmentation is not a list of lists": first_annotation(segmentation=[1, 1, 9, 1, 9, 9]),
    "annotation 11: segmentation is not a list of lists of numbers": first_annotation(
        segmentation=[[1, 1, 9, 1, 9, float("nan")]]
    ),
    "annotation 11: area is 'large'": first_annotation(area="large"),
    "annotation 11: image_id is '2', which is not an integer": first_annotation(image_id="2"),
    "annotation 11: category_id is [3], which is not an integer": first_annotation(category_id=[RED]),
    "an image: id is '7', which is not an integer": lambda entries: entries["images"][0].update(id="7"),
    "a category: id is None, which is not": lambda entries: entries["categories"][0].update(id=None),
    "annotation 11 has no 'segmentation'": lambda entries: entries["annotations"][0].pop("segmentation"),
    "image 7 is z.png, which is not in": lambda entries: entries["images"][0].update(file_name="z.png"),
    "image id 2 is given twice": lambda entries: entries["images"][0].update(id=2),
    "image 7: width is 0": lambda entries: entries["images"][0].update(width=0),
    "no list 'categories'": lambda entries: entries.pop("categories"),
    "has 4 categories; --task.classes says 3": lambda entries: entries["categories"].append({"id": 91}),
    "no image with an object": lambda entries: entries["annotations"].clear(),
}


@pytest.mark.parametrize("message", ILL_FORMED)
def test_ill_formed_data_is_refused_in_a_sentence(message: str, write_sample: Callable[..., Path]) -> None:
    folder = write_sample(ILL_FORMED[message])
    with pytest.raises(InputError) as error:
        load(folder)
    assert message in str(error.value)
    assert "instances_train2017.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files_are_named(write_sample: Callable[..., Path]) -> None:
    folder = write_sample()
    with pytest.raises(InputError, match=r"nowhere does not exist; --task.data"):
        load(folder / "nowhere")
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        load(folder, train_annotations="none.json")
    with pytest.raises(InputError, match=r"image folder .*empty does not exist"):
        load(folder, train_images="empty")
    (folder / "broken.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"broken\.json is not valid JSON"):
        load(folder, test_annotations="broken.json")
    (folder / "val2017" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        list(load(folder).batches("test", 1))
    Image.new("RGB", (9, 8)).save(folder / "val2017" / "a.png")
    with pytest.raises(InputError, match=r"a\.png is 8 x 9, but its annotations say 40 x 60"):
        list(load(folder).batches("test", 1))


def test_16_bit_grey_images_keep_their_shades(write_sample: Callable[..., Path]) -> None:
    folder = write_sample()
    shades = np.random.default_rng(1).integers(0, 256, (40, 60))
    images = []
    for values in (shades.astype(np.uint8), (257 * shades).astype(np.uint16)):
        Image.fromarray(values).save(folder / "val2017" / "a.png")
        images.append(next(load(folder).batches("test", 1)).inputs[0])
    assert torch.equal(*images)
    Image.fromarray((257 * shades).astype(np.int32)).save(folder / "val2017" / "a.png", format="TIFF")
    with pytest.raises(InputError, match=r"a\.png cannot be read: mode I with values"):
        next(load(folder).batches("test", 1))


@pytest.mark.parametrize("counts", ["zz9", "abc", ""])
def test_a_mask_that_cannot_be_decoded_is_named(write_sample: Callable[..., Path], counts: str) -> None:
    packed = first_annotation(segmentation={"size": [40, 60], "counts": counts})
    with pytest.raises(InputError, match=r"instances_val2017\.json: annotation 11: its mask"):
        list(load(write_sample(packed)).batches("test", 1))


def test_an_area_of_null_is_that_of_the_box(write_sample: Callable[..., Path]) -> None:
    targets = [
        target
        for batch in load(write_sample(first_annotation(area=None))).batches("test", 1)
        for target in batch.targets
    ]
    assert targets[0]["area"][0] == 20 * 20


def test_degenerate_annotations_can_be_dropped(write_sample: Callable[..., Path]) -> None:
    """COCO's own files have some; everything else about them still stands."""
    folder = write_sample(first_annotation(bbox=[4.0, 6.0, 20.0, 0.0]))
    found = [
        target["labels"].tolist()
        for batch in load(folder, degenerate="drop").batches("test", 1)
        for target in batch.targets
    ]
    assert found == [[3], [3], [], [2], [2]]


def test_the_task_resolves_from_text() -> None:
    task = create_task(TASKS.parse("coco(data=/data/mine, classes=20, short_side=480, long_side=640)"))
    assert (task.spec.output, task.spec.classes, task.spec.grid) == ("instances", 20, (480, 640))
    with pytest.raises(InputError, match="long_side 640 is below short_side 800"):
        create_task(TASKS.parse("coco(long_side=640)"))


def random_case(images: int = 6) -> tuple[Json, list[Json]]:
    """Objects with crowds and gaps, and detections near, far, doubled, mislabelled and missing."""
    from pycocotools import mask as rle

    random = np.random.default_rng(3)
    truth: Json = {
        "info": {},
        "images": [
            {"id": 10 * n + 1, "file_name": f"{n}", "height": 120, "width": 150} for n in range(images)
        ],
        "annotations": [],
        "categories": [{"id": key, "name": str(key)} for key in CATEGORIES],
    }
    detections = []
    for image in truth["images"][1:]:  # nothing is on the first
        for _ in range(random.integers(1, 7)):
            left, top = random.integers(0, [90, 60])
            width, height = random.integers(8, 60, 2)
            category = int(random.choice(CATEGORIES))
            mask = box_mask(120, 150, left, top, left + width, top + height)
            box = [float(left), float(top), float(width), float(height)]
            key, crowd = len(truth["annotations"]) + 1, int(random.random() < 0.15)
            truth["annotations"].append(annotation(key, image["id"], category, box, rle_of(mask), crowd))
            for _ in range(random.integers(0, 3)):
                shift = random.normal(0, 3, 4)
                near = np.maximum(np.array(box) + shift, [0, 0, 4, 4])
                guess = category if random.random() < 0.8 else int(random.choice(CATEGORIES))
                x, y, w, h = near.astype(int)
                packed = rle.encode(np.asfortranarray(box_mask(120, 150, x, y, x + w, y + h)))
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": guess,
                        "bbox": near.tolist(),
                        "score": float(random.random()),
                        "segmentation": packed,
                    }
                )
    return truth, detections


def pycocotools_statistics(truth: Json, detections: list[Json]) -> dict[str, list[float]]:
    """The first six of COCO's numbers, for boxes and masks."""
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO()
        objects.dataset = copy.deepcopy(truth)  # which it changes
        objects.createIndex()
        for kind, name, dropped in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
            results = [{key: each[key] for key in each if key != dropped} for each in detections]
            evaluation = COCOeval(objects, objects.loadRes(results), name)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found[kind] = [100 * value for value in evaluation.stats[:6]]
    return found


def scored(truth: Json, detections: list[Json], batch_size: int) -> dict[str, float]:
    """The same through our scorer, as if a model had found them."""
    from pycocotools import mask as rle

    labels = {category: label for label, category in enumerate(CATEGORIES, start=1)}
    scorer = InstanceScorer()
    outputs, targets, examples = [], [], []
    for image in truth["images"]:
        objects = [each for each in truth["annotations"] if each["image_id"] == image["id"]]
        found = [each for each in detections if each["image_id"] == image["id"]]
        runs = [rle.frPyObjects(each["segmentation"], 120, 150) for each in objects]
        targets.append(
            {
                "boxes": corners(objects),
                "labels": torch.tensor([labels[each["category_id"]] for each in objects]),
                "masks": torch.stack([torch.from_numpy(rle.decode(run)) for run in runs])
                if runs
                else torch.zeros(0, 120, 150),
                "area": torch.tensor([each["area"] for each in objects], dtype=torch.float64),
                "crowd": torch.tensor([bool(each["iscrowd"]) for each in objects]),
                "category_ids": torch.tensor(CATEGORIES),
            }
        )
        masks = [torch.from_numpy(rle.decode(each["segmentation"])).float() for each in found]
        outputs.append(
            {
                "boxes": corners(found),
                "labels": torch.tensor([labels[each["category_id"]] for each in found]),
                "scores": torch.tensor([each["score"] for each in found], dtype=torch.float64),
                "masks": torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, 120, 150),
            }
        )
        examples.append(image["id"])
    for start in range(0, len(examples), batch_size):
        chosen = slice(start, start + batch_size)
        scorer.add(outputs[chosen], targets[chosen], torch.tensor(examples[chosen]))
    return scorer.metrics()


def corners(entries: list[Json]) -> torch.Tensor:
    boxes = torch.tensor([each["bbox"] for each in entries], dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_average_precision_is_that_of_pycocotools(batch_size: int) -> None:
    truth, detections = random_case()
    theirs = pycocotools_statistics(truth, detections)
    ours = scored(truth, detections, batch_size)
    assert 5 < theirs["box"][0] < 95, "the case must not be trivial"
    assert theirs["box"][0] != theirs["mask"][0]
    assert {metric.name for metric in (Coco.metric, *Coco.other_metrics)} <= ours.keys()
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    for kind, values in theirs.items():
        expected = {f"{kind}_{name}": value for name, value in zip(names, values, strict=True) if value >= 0}
        assert {name for name in ours if name.startswith(kind)} == set(expected)
        for name, value in expected.items():
            assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_no_detection_at_all_is_worth_nothing() -> None:
    truth, _ = random_case()
    found = scored(truth, [], batch_size=2)
    assert found["box_AP"] == found["mask_AP"] == 0.0
    assert "box_AP_large" not in found, "no object is that large"
