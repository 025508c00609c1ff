"""A page to play with trained models: what several mixers answer to one picture, and what they look at.

Nothing leaves the machine and nothing is loaded from elsewhere: the models are the finished trials of a runs
folder, the bundled pictures come from their task's test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from experiments.build import create_task
from experiments.skeletons.base import Skeleton
from experiments.trained import Trained, trained
from mixers.registry import InputError

EXAMPLES = 8
TOP = 5
SHOWN_SIDE = 360  # pixels of a picture on the page

Picture = NDArray[np.float64]
"""(H, W) or (H, W, channels), from 0 to 1."""


@dataclass(frozen=True)
class Demo:
    """Trained models of one task, and what is needed to show them pictures.

    Attributes:
        title: the study, or studies, and the task.
        models: by arm.
        examples: pictures of the test split, (N, channels, H, W), as the models take them.
        low: the darkest value in them, black.
        high: the brightest, white.
    """

    title: str
    models: dict[str, Skeleton]
    examples: Tensor
    low: float
    high: float

    def example(self, number: int) -> Picture:
        """A bundled picture as it is shown."""
        scaled = (self.examples[number] - self.low) / (self.high - self.low)
        return np.asarray(scaled.mean(0).clamp(0, 1).double())

    def prepare(self, picture: Picture) -> Tensor:
        """Any picture -> (1, channels, H, W) as the models take it: grey, resized, ink bright on dark.

        Raises:
            InputError: it is not a picture, or empty.
        """
        pixels = torch.as_tensor(np.asarray(picture, dtype=np.float64))
        if pixels.ndim == 3:
            pixels = pixels[..., :3].mean(-1)
        if pixels.ndim != 2 or not pixels.numel() or not torch.isfinite(pixels).all():
            raise InputError(f"a picture has height, width and perhaps colours, got {tuple(pixels.shape)}")
        if pixels.max() > 1:
            pixels = pixels / 255
        if pixels.mean() > 0.5:  # drawn in ink on paper
            pixels = 1 - pixels
        channels, height, width = self.examples.shape[1:]
        resized = F.interpolate(pixels[None, None], (height, width), mode="bilinear", antialias=True)
        return (self.low + resized * (self.high - self.low)).float().expand(1, channels, -1, -1)

    @torch.inference_mode()
    def answers(self, x: Tensor) -> dict[str, dict[str, float]]:
        """For each arm its most likely classes with their probabilities, the first first."""
        found = {}
        for arm, model in self.models.items():
            probabilities = model(x)[0].softmax(-1)
            best = probabilities.topk(min(TOP, len(probabilities)))
            found[arm] = {
                str(index): value
                for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            }
        return found

    def dependence(self, arm: str, x: Tensor, row: float, column: float) -> Picture:
        """What the last feature at a place depends on.

        Args:
            arm: whose model.
            x: (1, channels, H, W).
            row: of the place, from 0 at the top to 1.
            column: of the place, from 0 at the left to 1.

        Returns:
            (H, W): the absolute gradient with respect to each pixel, the largest being 1.
        """
        pixels = x.clone().requires_grad_()
        features = self.models[arm].forward_features(pixels)  # (1, h, w, C)
        height, width = features.shape[1:3]
        token = features[0, min(int(row * height), height - 1), min(int(column * width), width - 1)]
        token.sum().backward()
        assert pixels.grad is not None
        influence = pixels.grad.abs().sum((0, 1))
        return np.asarray((influence / influence.max().clamp_min(1e-30)).double())


def load(runs: Path, study: str | None) -> Demo:
    """The trained image models of a study, or of the first study that has any.

    Raises:
        InputError: there is none; with the command that makes one.
    """
    groups: dict[str, list[Trained]] = {}
    for each in trained(runs, study):
        if create_task(each.trial.task).spec.input == "image":
            groups.setdefault(each.study, []).append(each)
    if not groups:
        where = f"study {study} in {runs}" if study else str(runs)
        raise InputError(
            f"no trained image model with weights in {where}; "
            "`run_ablation.py --mixer ssm` trains some in minutes"
        )
    name, members = next(iter(groups.items()))
    first = members[0].trial
    batch = next(iter(create_task(first.task).load(first.seed).batches("test", 256)))
    return Demo(
        f"{name}: {first.task}",
        {each.arm: each.load() for each in members if each.trial.task == first.task},
        batch.inputs[:EXAMPLES],
        batch.inputs.min().item(),
        batch.inputs.max().item(),
    )


def page(demo: Demo) -> Any:
    """The page, as Gradio blocks.

    Raises:
        InputError: Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError:
        raise InputError("the demo needs Gradio: uv sync --extra demo") from None

    def show(number: float) -> NDArray[np.uint8]:
        return _enlarged(demo.example(int(number)))

    def answer(picture: Picture | None) -> list[dict[str, float] | None]:
        if picture is None:
            return [None for _ in demo.models]
        return list(demo.answers(demo.prepare(picture)).values())

    def look(picture: Picture | None, event: gr.SelectData) -> list[NDArray[np.uint8]]:
        x = demo.prepare(np.zeros((8, 8)) if picture is None else picture)
        shape = np.asarray(picture).shape
        column, row = event.index[0] / shape[1], event.index[1] / shape[0]
        return [_heat(demo.dependence(arm, x, row, column)) for arm in demo.models]

    with gr.Blocks(title="Does it need the SSM?", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# What do the mixers see?\n{demo.title}. Choose a bundled picture or upload one; then click "
            "into it: below each answer is what the model's last feature at that place depends on."
        )
        with gr.Row():
            with gr.Column(scale=1):
                number = gr.Slider(0, len(demo.examples) - 1, 0, step=1, label="bundled picture")
                picture = gr.Image(show(0), label="picture", sources=["upload"], elem_id="picture")
            with gr.Column(scale=2), gr.Row():
                labels, heats = [], []
                for arm in demo.models:
                    with gr.Column(min_width=150):
                        labels.append(gr.Label(label=arm, num_top_classes=TOP))
                        heats.append(gr.Image(label=f"{arm} looks at", interactive=False))
        number.change(show, number, picture)
        picture.change(answer, picture, labels)
        picture.select(look, picture, heats)
        blocks.load(answer, picture, labels)
    return blocks


def serve(demo: Demo, port: int) -> None:
    """Show the page at http://127.0.0.1:port until interrupted."""
    page(demo).launch(server_name="127.0.0.1", server_port=port, share=False, quiet=True)


def _enlarged(picture: Picture) -> NDArray[np.uint8]:
    """(H, W) in 0..1 -> (SHOWN_SIDE, SHOWN_SIDE, 3) bytes with visible pixels."""
    rows, columns = (np.arange(SHOWN_SIDE) * size // SHOWN_SIDE for size in picture.shape)
    grey = (255 * picture[rows][:, columns]).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _heat(influence: Picture) -> NDArray[np.uint8]:
    """White where nothing matters, blue where much does; logarithmic over four decades."""
    shown = np.clip(np.log10(np.maximum(influence, 1e-12)) / 4 + 1, 0, 1)[..., None]
    white, blue = np.array([255.0, 255.0, 255.0]), np.array([8.0, 48.0, 107.0])
    colours = (white + shown * (blue - white)).astype(np.uint8)
    rows, columns = (np.arange(SHOWN_SIDE) * size // SHOWN_SIDE for size in influence.shape)
    return colours[rows][:, columns]
