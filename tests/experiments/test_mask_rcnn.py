"""Mask R-CNN on every hierarchical skeleton: its size, its work, and that it learns."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from analysis import detections as detections_figure
from experiments import build
from experiments.detections import sights
from experiments.evaluate import Evaluator
from experiments.interface import TaskSpec
from experiments.runtime import Runtime
from experiments.skeletons import SKELETONS
from experiments.store import Store
from experiments.tasks import TASKS
from experiments.tasks.base import Batch
from experiments.train import run_trial
from experiments.trial import Recipe, Trial
from mixers import MIXERS, InputError

SIDE = 96
COLOURS = {3: (220, 60, 60), 17: (60, 200, 60), 90: (60, 60, 220)}  # by category
SLIM = "mambaout-pico(head=mask-rcnn-slim)"


def trial_on(task: str, skeleton: str, mixer: str = "conv", **recipe: Any) -> Trial:
    return build.resolve(
        MIXERS.parse_pattern(mixer),
        SKELETONS.parse(skeleton),
        TASKS.parse(task),
        Recipe(**{"label_smoothing": 0.0, **recipe}),
        seed=0,
    )


def outline(category: int, left: int, top: int, size: int) -> list[float]:
    """Square, triangle or diamond in a box, as a polygon x, y, x, y, ..."""
    right, bottom, middle = left + size, top + size, size / 2
    if category == 3:
        return [left, top, right, top, right, bottom, left, bottom]
    if category == 17:
        return [left + middle, top, right, bottom, left, bottom]
    return [left + middle, top, right, top + middle, left + middle, bottom, left, top + middle]


def write_shapes(folder: Path, count: int) -> None:
    """Images with up to three coloured shapes each, in COCO's format; both files with the same images."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(parents=True)
    for key in range(1, count + 1):
        image = Image.fromarray(random.integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for quarter in random.permutation(4)[: random.integers(1, 4)].tolist():
            category, size = int(random.choice(list(COLOURS))), int(random.integers(19, 42))
            corner = random.integers(0, SIDE // 2 - size, 2).tolist()
            left, top = corner[0] + quarter % 2 * SIDE // 2, corner[1] + quarter // 2 * SIDE // 2
            polygon = outline(category, left, top, size)
            draw.polygon(list(zip(polygon[::2], polygon[1::2], strict=True)), fill=COLOURS[category])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": key,
                    "category_id": category,
                    "bbox": [left, top, size, size],
                    "area": size * size,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        images.append({"id": key, "file_name": f"{key}.png", "height": SIDE, "width": SIDE})
        for split in ("train2017", "val2017"):
            image.save(folder / split / f"{key}.png")
    content = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": key, "name": str(key)} for key in COLOURS],
    }
    (folder / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("size", "params", "macs"),
    [("tiny", 43, 262), ("small", 65, 354), ("base", 100, 495)],
)
def test_the_size_is_that_of_the_paper(size: str, params: int, macs: int) -> None:
    """MambaOut's Table 2, parameters in millions and FLOPs in G at 1280 x 800: multiply-accumulates."""
    costs = build.count_costs(trial_on("coco(short_side=800, long_side=1280)", f"mambaout-{size}"))
    assert costs.params / 1e6 == pytest.approx(params, abs=0.5)
    assert costs.macs / 1e9 == pytest.approx(macs, abs=1.0)
    assert "1,000 proposals" in costs.macs_convention


def test_fresh_weights_have_mmdetections_scales() -> None:
    head = build.build_model(trial_on("coco", "mambaout-femto(head=mask-rcnn-slim)")).head
    for name, std in {
        "rpn.head.conv.0.0": 0.01,
        "rpn.head.bbox_pred": 0.01,
        "roi_heads.box_predictor.cls_score": 0.01,
        "roi_heads.box_predictor.bbox_pred": 0.001,
        "fpn.inner_blocks.3.0": (1 / 288) ** 0.5,
        "fpn.layer_blocks.0.0": (1 / (9 * 32)) ** 0.5,
        "roi_heads.box_head.fc6": (2 / (49 * 32)) ** 0.5,
        "roi_heads.mask_head.1.0": (2 / (9 * 32)) ** 0.5,
        "roi_heads.mask_predictor.conv5_mask": (2 / 32) ** 0.5,
    }.items():
        assert head.get_submodule(name).weight.std().item() == pytest.approx(std, rel=0.1), name
        bias = head.get_submodule(name).bias
        assert not bias.any(), name


@pytest.mark.parametrize(("head", "smallest", "ratios"), [("mask-rcnn", 32, 3), ("mask-rcnn-slim", 8, 1)])
def test_anchors_and_what_is_cut_out(head: str, smallest: int, ratios: int) -> None:
    """One size per level, doubling as the strides do, one level more than there are maps."""
    with torch.device("meta"):
        model = SKELETONS.create(
            SKELETONS.parse(f"mambaout-femto(head={head})"),
            lambda dim, **place: torch.nn.Identity(),
            TaskSpec("image", 3, (320, 200), 80, output="instances"),
        )
    detector = model.head
    anchors = detector.rpn.anchor_generator
    assert anchors.sizes == tuple((smallest << level,) for level in range(5))
    assert anchors.num_anchors_per_location() == [ratios] * 5
    pools = (detector.roi_heads.box_roi_pool, detector.roi_heads.mask_roi_pool)
    assert [(pool.output_size, pool.sampling_ratio) for pool in pools] == [((7, 7), 2), ((14, 14), 2)]
    answers = (detector.roi_heads.box_predictor.cls_score, detector.roi_heads.mask_predictor.mask_fcn_logits)
    assert [answer.weight.shape[0] for answer in answers] == [81, 81], "the background and 80 classes"
    assert (detector.transform.min_size, detector.transform.max_size) == ((200,), 320)
    assert (detector.transform.image_mean, detector.transform.image_std) == ([0.0] * 3, [1.0] * 3)


def test_the_ssm_fits_the_same_detector() -> None:
    conv, ssm = (build.count_costs(trial_on("coco", "mambaout-femto", mixer)) for mixer in ("conv", "ssm"))
    assert conv.params - conv.params_mixer == ssm.params - ssm.params_mixer
    assert ssm.macs_mixer > conv.macs_mixer


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"know no label smoothing; set --train\.label-smoothing 0"):
        trial_on("coco", SLIM, label_smoothing=0.1)
    with pytest.raises(InputError, match="mix labels of whole images, but task coco asks for instances"):
        trial_on("coco", SLIM, mixup=0.5)
    with pytest.raises(InputError, match="but the task asks for 'instances'"):
        build.build_model(trial_on("coco", "isotropic-nano"))
    with pytest.raises(InputError, match="choose mask-rcnn or mask-rcnn-slim"):
        build.build_model(trial_on("coco", "mambaout-pico(head=linear)"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Store]:
    """Eight images learned by heart; a ninth is held out and tested on with them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "data", count=9)
    task = (
        f"coco(data={folder / 'data'}, classes=3, validation=1, flip=0, short_side={SIDE}, long_side={SIDE})"
    )
    recipe = {"epochs": 32, "batch_size": 8, "lr": 3e-3, "warmup_epochs": 3, "clip_grad": 1.0}
    trial = trial_on(task, SLIM, **recipe)
    store = Store(folder / "runs")
    run_trial(trial, store.folder(trial.id), Runtime())
    return trial, store


def test_eight_images_are_learned_by_heart(learned: tuple[Trial, Store]) -> None:
    trial, store = learned
    result = store.folder(trial.id).result()
    assert result is not None
    assert result["status"] == "ok"
    assert result["data"]["train"] == 8
    test = result["metrics"]["test"]
    assert test["box_AP50"] > 80
    assert test["mask_AP50"] > 80
    assert test["box_AP"] > 50
    assert "box_AP_large" not in test


def test_detections_are_stored_image_by_image(learned: tuple[Trial, Store]) -> None:
    trial, store = learned
    stored = np.load(store.folder(trial.id).predictions)
    assert stored["example"].tolist() == list(range(1, 10))
    found = int(stored["detections"].sum())
    assert found > 9
    assert stored["box"].shape == (found, 4)
    assert set(stored["category"]) <= set(COLOURS)
    assert np.all((stored["score"] > 0) & (stored["score"] <= 1))


def test_evaluation_does_not_depend_on_the_batch_size(
    learned: tuple[Trial, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    trial, store = learned
    task = build.create_task(trial.task)
    model = build.build_model(trial)
    model.load_state_dict(load_file(store.folder(trial.id).weights))
    found = []
    for at_once in (1, 4):
        monkeypatch.setattr("experiments.evaluate._examples_at_once", lambda _, count=at_once: count)
        found.append(Evaluator(task, task.load(0), torch.device("cpu")).answer(model, "test"))
    (one, boxes), (four, more_boxes) = found
    assert one == pytest.approx(four)
    assert boxes["detections"].tolist() == more_boxes["detections"].tolist()


def test_an_image_is_seen_the_same_in_any_company(learned: tuple[Trial, Store]) -> None:
    """Images of other sizes are never in the same batch: padding would reach the SSM and attention."""
    trial, _ = learned
    data = build.create_task(trial.task).load(0)
    batches: list[Batch] = list(data.batches("test", 4))
    assert [len(batch.inputs) for batch in batches] == [4, 4, 1]
    assert all(len({image.shape for image in batch.inputs}) == 1 for batch in batches)


def one_object(height: int, width: int) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, 10:40, 20:50] = 1
    boxes = torch.tensor([[20.0, 10.0, 50.0, 40.0]])
    return {"boxes": boxes, "labels": torch.tensor([2]), "masks": mask}


def test_images_of_any_size_and_without_objects_train() -> None:
    """Odd sizes, an image without an object beside one with, losses and gradients finite."""
    trial = trial_on("coco(classes=3, short_side=64, long_side=128)", SLIM)
    model = build.build_model(trial).train()
    images = [torch.randn(3, 61, 83), torch.randn(3, 70, 45)]
    targets = [
        one_object(61, 83),
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.long),
            "masks": torch.zeros(0, 70, 45, dtype=torch.uint8),
        },
    ]
    torch.manual_seed(0)
    loss = build.create_task(trial.task).training_loss(model, images, targets)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    found = model.eval()(images)
    assert [each["masks"].shape[2:] for each in found] == [(61, 83), (70, 45)]


def test_boxes_are_float32_in_half_precision() -> None:
    """bfloat16 has 8 bits: there a coordinate above 512 would be a multiple of 4."""
    model = build.build_model(trial_on("coco(classes=3, short_side=64, long_side=1344)", SLIM)).eval()
    proposals: list[torch.Tensor] = []
    model.head.rpn.register_forward_hook(lambda module, arguments, output: proposals.extend(output[0]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = model([torch.randn(3, 64, 1344, generator=torch.Generator().manual_seed(0))])
    assert found["boxes"].dtype == found["scores"].dtype == found["masks"].dtype == torch.float32
    for boxes in (proposals[0], found["boxes"]):
        assert boxes.dtype == torch.float32
        far = boxes[(boxes > 512) & (boxes < 1344)]
        assert len(far) > 10
        assert (far % 4 != 0).float().mean() > 0.9


def test_a_part_of_a_batch_is_padded_like_all_of_it() -> None:
    model = build.build_model(trial_on("coco(classes=3, short_side=64, long_side=160)", SLIM)).train()
    shapes: list[torch.Size] = []
    model.stem.register_forward_pre_hook(lambda module, arguments: shapes.append(arguments[0].shape[1:3]))
    sizes = [(61, 83), (70, 45), (60, 150)]
    images = [torch.randn(3, *size) for size in sizes]
    targets = [{**one_object(*size), "batch_sizes": torch.tensor(sizes)} for size in sizes]
    model(images, [one_object(*size) for size in sizes])
    for part in (slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 2)):
        model(images[part], targets[part])
    assert set(shapes) == {shapes[0]} == {(128, 160)}


def test_training_keeps_as_many_proposals_as_mmdetection() -> None:
    with torch.device("meta"):
        model = build.build_model(trial_on("coco", "mambaout-femto"))
    assert model.train().head.rpn.post_nms_top_n() == 1000
    assert model.eval().head.rpn.post_nms_top_n() == 1000


def test_what_was_found_is_drawn_beside_what_is_there(learned: tuple[Trial, Store]) -> None:
    trial, store = learned
    runs = store.folder(trial.id).path.parent.parent
    plan = runs / "studies" / "shapes" / "plan.json"
    plan.parent.mkdir(parents=True)
    arm = {"name": "conv", "trials": [{"seed": 0, "trial_id": trial.id}]}
    plan.write_text(json.dumps({"arms": [arm]}))
    seen = list(sights(runs, None))
    assert [(each.panel, each.number) for each in seen] == [
        (panel, number) for number in (1, 2, 3) for panel in ("truth", "conv (shapes)")
    ]
    stored = np.load(store.folder(trial.id).predictions)
    for number, (truth, found) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        assert truth.image == found.image
        assert len(found.boxes) == stored["detections"][number]
        surest = found.categories[int(np.argmax(found.scores))]
        assert surest in truth.categories
    drawn, caption = detections_figure.write(runs / "look", [asdict(each) for each in seen])
    assert "boxes with their scores" in caption.read_text()
    assert drawn.stat().st_size > 1000
    with open(runs / "look" / "detections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(each.boxes) for each in seen)
    assert all(int(row["mask_pixels"]) > 0 for row in rows if row["panel"] == "truth")


def test_without_detectors_there_is_no_figure(tmp_path: Path) -> None:
    assert list(sights(tmp_path, None)) == []
    assert detections_figure.write(tmp_path, []) == []
