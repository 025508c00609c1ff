"""Trained models to play with: what several mixers answer to one picture, and what they look at.

Nothing is loaded from elsewhere: the models are the finished trials of a runs folder, MambaOut weights that
lie on the disk, and the pictures are drawn, uploaded, or come with the tasks and with scikit-image.
`experiments.demo_page` shows all this; here is what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from experiments.build import create_task
from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS
from experiments.skeletons.base import Skeleton
from experiments.skeletons.blocks import mixer_slots
from experiments.skeletons.weights import from_timm
from experiments.tasks.textures import PHOTOGRAPHS as TEXTURES
from experiments.trained import Trained, trained
from mixers import MIXERS
from mixers.base import TokenMixer
from mixers.registry import Component, InputError

Picture = NDArray[np.float64]
"""(side, side, 3), from 0 to 1."""
Depth = Literal["first", "middle", "last"]
DEPTHS: tuple[Depth, ...] = get_args(Depth)

TOP = 5
EXAMPLES = 8  # of each task
PROJECTIONS = 4  # of an output, that its dependence is averaged over
INK = 2 / 3  # of the side is taken by a drawing, as a digit of 8 pixels takes of a canvas of 12
IMAGENET_SIDE = 224
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")  # inside of scikit-image
TIMM_SIZES = ("femto", "kobe", "tiny", "small", "base")
CLASSES = {"textures": TEXTURES}
"""Names of the answers, by task; other tasks answer with numbers."""


@dataclass(frozen=True)
class View:
    """How a picture becomes the input of a model, and what its answers mean.

    Attributes:
        shape: (channels, H, W).
        low: what black becomes, by channel.
        high: what white becomes, by channel.
        standardised: every picture is shifted and scaled to mean 0 and variance 1 instead.
        dark: trained on bright ink on a dark ground; a picture that is mostly bright is inverted.
        classes: name of each answer.
    """

    shape: tuple[int, int, int]
    low: tuple[float, ...]
    high: tuple[float, ...]
    standardised: bool
    dark: bool
    classes: tuple[str, ...]

    def prepare(self, picture: Picture) -> Tensor:
        """(side, side, 3) -> (1, channels, H, W)."""
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]  # (1, 3, side, side)
        if self.dark and pixels.mean() > 0.5:
            pixels = 1 - pixels
        channels, height, width = self.shape
        if channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        pixels = F.interpolate(pixels, (height, width), mode="area")  # exact where pixels were repeated
        if self.standardised:
            pixels = (pixels - pixels.mean()) / pixels.std(correction=0).clamp_min(1e-6)
        else:
            low, high = (torch.tensor(x, dtype=pixels.dtype).view(1, -1, 1, 1) for x in (self.low, self.high))
            pixels = low + pixels * (high - low)
        return pixels.float()

    def picture(self, x: Tensor) -> Picture:
        """(channels, H, W), as a model takes it -> a picture of the same pixels."""
        if self.standardised:
            scaled = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
        else:
            low, high = (torch.tensor(value).view(-1, 1, 1) for value in (self.low, self.high))
            scaled = (x - low) / (high - low)
        return np.asarray(scaled.clamp(0, 1).double().expand(3, -1, -1).permute(1, 2, 0))


@dataclass(frozen=True)
class Choice:
    """A trained model that can be chosen; it is built when it is first asked.

    Attributes:
        name: what it is chosen by.
        about: what is known of it, e.g. its test accuracy.
        view: how it takes pictures.
        make: builds it.
    """

    name: str
    about: str
    view: View
    make: Callable[[], Skeleton]

    @cached_property
    def model(self) -> Skeleton:
        return self.make().eval()

    @torch.no_grad()
    def answers(self, picture: Picture) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities, the first first."""
        probabilities = self.model(self.view.prepare(picture))[0].softmax(-1)
        best = probabilities.topk(min(TOP, len(probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.view.classes[index], value) for index, value in pairs]

    def dependence(self, picture: Picture, row: float, column: float, depth: Depth = "last") -> Picture:
        """What the output of a token mixer at a place depends on.

        Args:
            picture: (side, side, 3).
            row: of the place, from 0 at the top to 1.
            column: of the place, from 0 at the left to 1.
            depth: in which of the model's blocks the mixer sits.

        Returns:
            (H, W): mean absolute gradient of random projections of that output with respect to each pixel
            that the model takes, the largest being 1; all 0 if there is nothing that it depends on.
        """
        mixers = [self.model.get_submodule(name) for name, _ in mixer_slots(self.model)]
        mixer = mixers[{"first": 0, "middle": len(mixers) // 2, "last": -1}[depth]]
        outputs: list[Tensor] = []
        hook = mixer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        pixels = self.view.prepare(picture).requires_grad_()
        try:
            self.model.forward_features(pixels)
        finally:
            hook.remove()
        height, width = outputs[0].shape[1:3]  # (1, h, w, C)
        y = outputs[0][0, min(int(row * height), height - 1), min(int(column * width), width - 1)]  # (C,)
        signs = torch.randint(2, (PROJECTIONS, len(y)), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        influence = torch.zeros(pixels.shape[2:])
        for sign in signs:
            (gradient,) = torch.autograd.grad(y @ sign, pixels, retain_graph=True)
            influence += gradient.abs().sum((0, 1))
        return np.asarray((influence / influence.max().clamp_min(1e-30)).double())


@dataclass(frozen=True)
class Demo:
    """Models to choose from, and pictures to begin with.

    Attributes:
        choices: by name.
        first: names of those that are chosen at the beginning.
        examples: bundled pictures.
    """

    choices: Mapping[str, Choice]
    first: tuple[str, ...]
    examples: Sequence[Picture]


def as_picture(raw: NDArray[Any]) -> Picture:
    """Any picture -> the square in its middle.

    Args:
        raw: (H, W) or (H, W, channels), bytes or numbers from 0 to 1; a fourth channel is left out.

    Raises:
        InputError: it is not a picture, or empty.
    """
    pixels = np.asarray(raw, dtype=np.float64)
    if raw.dtype == np.uint8:
        pixels = pixels / 255
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.ndim != 3 or not pixels.size or pixels.shape[2] < 3 or not np.isfinite(pixels).all():
        raise InputError(f"a picture has height, width and perhaps colours, got {raw.shape}")
    side = min(pixels.shape[:2])
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    return np.clip(pixels[top : top + side, left : left + side, :3], 0, 1)


def read_picture(path: Path) -> Picture:
    """The square in the middle of a file's picture, upright; what is transparent is white, as paper is.

    Raises:
        InputError: it is no picture that can be read.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # of which `convert` cuts all but the darkest off
                image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
            image = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InputError(f"{path.name} cannot be read as a picture") from None
    paper = Image.new("RGBA", image.size, "white")
    return as_picture(np.asarray(Image.alpha_composite(paper, image)))


def drawing(ink: NDArray[Any]) -> Picture | None:
    """Strokes (H, W), 0 where nothing was drawn -> white on black, centred, as large as the digits are."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not rows.size:
        return None
    drawn = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 0
    height, width = drawn.shape
    side = round(max(height, width) / INK)
    canvas = np.zeros((side, side))
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = drawn
    return as_picture(canvas)


def load(
    runs: Path, study: str | None = None, weights: Sequence[Path] = (), cache: Path | None = None
) -> Demo:
    """What there is to choose from.

    Args:
        runs: a runs folder, of which all trained models are taken that give an image one class.
        study: only those of this study.
        weights: files of MambaOut weights, with the names of timm or of the official release.
        cache: where timm keeps its downloads; None for its usual place. Nothing is downloaded.

    Raises:
        InputError: there is nothing; with the command that makes something. Or a file cannot be used.
    """
    choices: dict[str, Choice] = {}
    examples: dict[View, list[Picture]] = {}
    for each in trained(runs, study):
        spec = create_task(each.trial.task).spec
        if (spec.input, spec.output) == ("image", "one"):
            view, pictures = _task_view(each, examples)
            examples[view] = pictures
            choices[each.name] = Choice(each.name, _about(each), view, each.load)
    first = tuple(list(choices)[:4])
    for path in [*weights, *_timm_weights(cache)]:
        choice = _mambaout(path)
        choices[choice.name] = choice
        examples[choice.view] = list(_photographs())
    if not choices:
        where = f"study {study} in {runs}" if study else str(runs)
        raise InputError(
            f"no trained classifier of images with weights in {where}, and no MambaOut weights of timm on "
            "this disk; `uv run run_ablation.py --mixer ssm` trains some in minutes"
        )
    pictures = [picture for of_view in examples.values() for picture in of_view]
    return Demo(choices, first or tuple(list(choices)[:4]), pictures)


def _about(each: Trained) -> str:
    """`digits: test accuracy 99.2 %, seed 0`"""
    task = create_task(each.trial.task)
    result = each.folder.result() or {}
    value = result.get("metrics", {}).get("test", {}).get(task.metric.name)
    measured = "" if value is None else f"test {task.metric.name} {value:.1f} {task.metric.unit}, "
    return f"{each.trial.task.name}: {measured}seed {each.trial.seed}"


def _task_view(each: Trained, known: Mapping[View, list[Picture]]) -> tuple[View, list[Picture]]:
    """How pictures of a trial's task come, looked up in its test split, and some of them."""
    component = each.trial.task
    task = create_task(component)
    inputs = next(iter(task.load(each.trial.seed).batches("test", 256))).inputs  # (B, channels, H, W)
    low, high = inputs.min().item(), inputs.max().item()
    channels = task.spec.channels
    numbers = tuple(str(index) for index in range(task.spec.classes))
    view = View(
        shape=(channels, *inputs.shape[2:]),
        low=(low,) * channels,
        high=(high,) * channels,
        standardised=bool(inputs.mean((1, 2, 3)).abs().max() < 1e-3),
        dark=bool((inputs - low).mean() < 0.25 * (high - low)),
        classes=CLASSES.get(component.name, numbers),
    )
    return view, known.get(view) or [view.picture(x) for x in inputs[:EXAMPLES]]


def _timm_weights(cache: Path | None) -> Iterator[Path]:
    """MambaOut weights that timm has downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    for size in TIMM_SIZES:
        settings = get_pretrained_cfg(f"mambaout_{size}")
        if settings is not None and settings.hf_hub_id:
            found = try_to_load_from_cache(settings.hf_hub_id, "model.safetensors", cache_dir=cache)
            if isinstance(found, str):
                yield Path(found)


def _mambaout(path: Path) -> Choice:
    """MambaOut with `conv` and the weights of a file.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    state = _read(path)
    depths, dims = _size(state)
    for skeleton in SKELETONS:
        entry = SKELETONS.load(skeleton)
        if getattr(entry, "depths", None) == depths and getattr(entry, "dims", None) == dims:
            break
    else:
        raise InputError(f"{path}: no MambaOut has stages of {depths} blocks with {dims} channels")
    classes, channels = len(state["head.fc.bias"]), state["stem.conv1.weight"].shape[1]
    task = TaskSpec(input="image", channels=channels, grid=(IMAGENET_SIDE,) * 2, classes=classes)

    def make() -> Skeleton:
        with torch.device("meta"):
            model = SKELETONS.create(Component(skeleton), _conv, task)
        model.load_state_dict(_read(path), assign=True)
        return model

    name = f"{skeleton} ({_origin(path)})"
    return Choice(name, f"{classes:,} classes, weights of {path.name}", _photograph_view(task), make)


def _conv(dim: int, *, grid_rank: int, stage: int, layer: int) -> TokenMixer:
    return MIXERS.create(MIXERS.parse("conv"), dim, grid_rank)


def _origin(path: Path) -> str:
    """The repository of a file in the cache of timm's downloads, or the name of the file."""
    repository = next((part for part in path.parts if part.startswith("models--")), None)
    return repository.removeprefix("models--").replace("--", "/") if repository else path.stem


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of a file with our names."""
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of every kind, by what the file is
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--weights {path} cannot be read: {first}") from None
    try:
        return from_timm(content)
    except (InputError, AttributeError, TypeError) as error:  # of whatever torch.save was given
        raise InputError(f"--weights {path}: {error}") from None


def _size(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and channels of each stage."""
    depths: dict[int, set[str]] = {}
    dims: dict[int, int] = {}
    for name, value in state.items():
        if name.startswith("stages.") and ".blocks." in name:
            _, stage, _, block, *_ = name.split(".")
            depths.setdefault(int(stage), set()).add(block)
            if name.endswith(".norm.weight"):
                dims[int(stage)] = len(value)
    stages = sorted(depths)
    return tuple(len(depths[stage]) for stage in stages), tuple(dims[stage] for stage in stages)


def _photograph_view(task: TaskSpec) -> View:
    """The mean and deviation that ImageNet's models are trained with, in timm and in MambaOut."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo

    channels = range(task.channels)
    low = tuple(-IMAGENET_DEFAULT_MEAN[c % 3] / IMAGENET_DEFAULT_STD[c % 3] for c in channels)
    high = tuple((1 - IMAGENET_DEFAULT_MEAN[c % 3]) / IMAGENET_DEFAULT_STD[c % 3] for c in channels)
    names = tuple(str(index) for index in range(task.classes))
    if task.classes == 1_000:
        known = ImageNetInfo()
        names = tuple(known.index_to_description(index).partition(",")[0] for index in range(task.classes))
    return View(
        (task.channels, IMAGENET_SIDE, IMAGENET_SIDE),
        low,
        high,
        standardised=False,
        dark=False,
        classes=names,
    )


def _photographs() -> Iterator[Picture]:
    """Photographs inside of scikit-image's wheel, small."""
    from importlib.resources import files

    for name in PHOTOGRAPHS:
        with (files("skimage.data") / name).open("rb") as file, Image.open(file) as image:
            square = Image.fromarray((255 * as_picture(np.asarray(image))).astype(np.uint8))
            yield as_picture(
                np.asarray(square.resize((IMAGENET_SIDE, IMAGENET_SIDE), Image.Resampling.BICUBIC))
            )
