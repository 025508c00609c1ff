"""What each command takes, as dataclasses of its flags. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import study as studies
from experiments.launch import Shard
from experiments.runtime import Placement, Runtime
from experiments.trial import Precision, Recipe
from mixers.registry import InputError

OF_STUDY = "the study's"
OF_RUNS = "all of the runs folder"


def flag(metavar: str, default: str) -> object:
    """What the help says of a flag: what to put there, and in words what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def require_at_least(least: int, asked: object, *names: str) -> None:
    """Refuse what is less, of flags with a number, with several, or with none.

    Raises:
        InputError: a number that is.
    """
    for name in names:
        given = getattr(asked, name)
        for number in given if isinstance(given, tuple) else (given,):
            if number is not None and number < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {number}")


@dataclass(frozen=True)
class Request:
    """Does this task need the SSM? Trains what is missing of a study, then writes its table, figures,
    verdict and report. Options of a task or skeleton also go by dotted name: --task.canvas 20."""

    mixer: Annotated[tuple[str, ...], flag("MIXER ...", OF_STUDY)] = ()
    """Arms to judge, e.g. ssm attention "ssm(d_state=8, scan=forward)". The name of one of the study's arms
    means that arm, with its options."""
    baseline: Annotated[str | None, flag("ARM", OF_STUDY)] = None
    """Arm that they are judged against and matched to."""
    study: str = studies.DEFAULT
    """A checked-in study (see `list`) or a path to your own .toml file."""
    task: Annotated[str | None, flag("TASK", OF_STUDY)] = None
    """Task in place of the study's, e.g. "digits(canvas=20)"."""
    skeleton: Annotated[str | None, flag("SKELETON", OF_STUDY)] = None
    """Skeleton in place of the study's, e.g. "mambaout-nano(readout=last)"."""
    seeds: Annotated[int | None, flag("N", OF_STUDY)] = None
    """Paired seeds per arm; a verdict needs at least 3."""
    looks: Annotated[tuple[int, ...] | None, flag("N ...", OF_STUDY)] = None
    """Numbers of seeds at which to judge, e.g. 5 10 20: on to the next while anything is undecided. Planned
    before the run, at a share of 5 % each, this is a test; seeds that are added without a plan are not."""
    match: Annotated[Literal["params", "macs", "none"] | None, flag("{params,macs,none}", OF_STUDY)] = None
    """What the arms have in common in size; the block's hidden width is solved for it."""
    margin: Annotated[float | None, flag("X", OF_STUDY)] = None
    """Differences within this count as equivalent, in the metric's unit."""
    lr_grid: Annotated[tuple[float, ...] | None, flag("LR ...", OF_STUDY)] = None
    """Learning rates to choose from on validation, for every arm; a single one is simply taken."""
    train: Recipe = field(default_factory=Recipe)
    """How every arm is trained."""
    runs: Path = Path("runs")
    """Folder of trials and studies."""
    workers: Annotated[int | None, flag("N", "one per GPU, without GPUs cores / threads")] = None
    """Trials run at once."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Who runs them: this machine, the Ray cluster that RAY_ADDRESS names, or the SLURM queue."""
    shard: Annotated[str | None, flag("I/N", "all of them")] = None
    """Run only the I-th of N shares of the trials; each of N machines runs its own."""
    retrain: bool = False
    """Run finished trials again whose mixer or task has changed since, as far as results tell; the old
    results are kept beside the new."""
    gpus_per_trial: Annotated[float | None, flag("X", "1 where there are any")] = None
    """GPU of one trial: 1, or a share of one (0.5: two trials on each)."""
    slurm: Annotated[tuple[str, ...], flag("OPTION=VALUE ...", "none")] = ()
    """Options of sbatch for --executor slurm, e.g. partition=gpu time=240 (minutes)."""
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="MINUTES")] = 1.0
    """Minutes between two checkpoints of a trial, which is what a power cut can cost."""
    threads: int = 1
    """Threads per trial. The bits of a result may depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trials run."""
    backend: str = "auto"
    """Kernels of scans and causal convolutions; see `doctor`."""
    keep_weights: bool = True
    """Of finished trials, for `look` and `demo`."""
    micro_batch: Annotated[int | None, flag("N", "the whole batch")] = None
    """Examples per forward and backward pass, where the whole batch does not fit into memory."""
    compile: bool = False
    """Run training steps through torch.compile."""
    channels_last: bool = False
    """Keep images and convolutions in channels-last memory."""
    log_every: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 50
    """Steps between two lines of a trial's metrics.jsonl."""
    tensorboard: bool = False
    """Write these metrics for TensorBoard, too (uv sync --extra tensorboard)."""
    loaders: int = 2
    """Processes per trial that read and augment images from files; 0 for none beside the one that trains."""
    options: Annotated[Mapping[str, Mapping[str, str]], tyro.conf.Suppress] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InputError: what is wrong with a placement, a shard or how trials run.
        """
        _ = self.share, self.placement, self.runtime

    @property
    def placement(self) -> Placement:
        """Where trials go.

        Raises:
            InputError: a number of GPUs or an option of sbatch that makes no sense.
        """
        gpus = self.gpus_per_trial
        if gpus is not None and not 0 < gpus <= 1:
            raise InputError(
                f"--gpus-per-trial must be 1 or a share of one, got {gpus:g}; one trial on several is "
                "torchrun's: torchrun --nproc-per-node N run_ablation.py ..."
            )
        if self.slurm and self.executor != "slurm":
            raise InputError("--slurm has no effect without --executor slurm")
        options = {}
        for text in self.slurm:
            name, equals, value = text.partition("=")
            if not (name and equals and value):
                raise InputError(f"--slurm takes OPTION=VALUE, such as partition=gpu, got {text!r}")
            options[name.removeprefix("--").replace("_", "-")] = value
        return Placement(self.executor, self.workers, gpus, options)

    @property
    def share(self) -> Shard | None:
        """The share of the trials that was asked for.

        Raises:
            InputError: a shard that does not exist.
        """
        return None if self.shard is None else Shard.parse(self.shard)

    @property
    def runtime(self) -> Runtime:
        """How trials run.

        Raises:
            InputError: a number of workers, threads or examples that makes no sense.
        """
        require_at_least(1, self, "threads", "workers", "micro_batch", "log_every")
        require_at_least(0, self, "loaders")
        if not 0 < self.checkpoint_every < float("inf"):
            raise InputError(f"--checkpoint-every must be positive minutes, got {self.checkpoint_every:g}")
        return Runtime(
            self.device,
            self.threads,
            self.backend,
            checkpoint_every=60 * self.checkpoint_every,
            keep_weights=self.keep_weights,
            micro_batch=self.micro_batch,
            compile=self.compile,
            channels_last=self.channels_last,
            log_every=self.log_every,
            tensorboard=self.tensorboard,
            loaders=self.loaders,
        )


@dataclass(frozen=True)
class PaperRequest:
    """The figures and tables of the MambaOut paper again, ours beside theirs, with an index page."""

    runs: Path = Path("runs")
    """Folder whose studies stand beside the published numbers; the page goes to its subfolder paper."""


@dataclass(frozen=True)
class LongRequest:
    """Where a backbone sees long sequences in the sense of MambaOut: in every stage, the operations of a
    Transformer block that grow with the number of tokens L, with its square, and from which L on the
    latter are more (24 D^2 L + 4 D L^2, so L > 6 D)."""

    backbone: Annotated[tuple[str, ...], flag("NAME ...", "all, unless --dims gives another")] = ()
    """Published ones, e.g. vit-s mambaout-tiny."""
    dims: Annotated[tuple[int, ...], flag("D ...", "none")] = ()
    """Channels of a backbone of your own, one number per stage."""
    patch: Annotated[tuple[int, ...], flag("PIXELS ...", "16 for one stage, 4 8 16 32 for four")] = ()
    """Its pixels per token along a side, per stage."""
    size: Annotated[
        tuple[str, ...], flag("HEIGHTxWIDTH ...", "those of ImageNet, COCO and ADE20K in the paper")
    ] = ()
    """Images in pixels, e.g. 224 512x2048."""
    mlp_ratio: float = 4.0
    """Hidden channels of the block's MLP over D."""
    causal: bool = False
    """Attention to what came before only, which halves the quadratic part."""

    @property
    def patches(self) -> tuple[int, ...]:
        """Pixels per token of each stage of `dims`.

        Raises:
            InputError: not one for each stage.
        """
        if self.patch and not self.dims:
            raise InputError("--patch has no effect without --dims, the channels of each stage")
        usual = {1: (16,), 4: (4, 8, 16, 32)}.get(len(self.dims), ())
        patch = self.patch or usual
        if len(patch) != len(self.dims):
            raise InputError(
                f"--patch must have a number for each of the {len(self.dims)} stages of --dims, "
                f"got {' '.join(map(str, patch)) or 'none'}"
            )
        return patch

    @property
    def images(self) -> dict[str, tuple[int, int]]:
        """Height and width of the images that were asked for, by name.

        Raises:
            InputError: not a size.
        """
        found = {}
        for text in self.size:
            match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
            if match is None:
                raise InputError(
                    f"--size must be pixels such as 224 or 512x2048 (height first), got {text!r}"
                )
            height, width = int(match[1]), int(match[2] or match[1])
            found[f"{height} x {width}"] = height, width
        return found

    def check(self) -> None:
        """Check what the types cannot.

        Raises:
            InputError: a number that makes no sense.
        """
        require_at_least(1, self, "dims", "patch")
        if not 0 <= self.mlp_ratio < float("inf"):
            raise InputError(f"--mlp-ratio must be finite and not negative, got {self.mlp_ratio:g}")


LOOKED_AT = (
    "conv",
    "causal-conv",
    "pooling",
    "ssm(scan=forward, conv=none)",
    "ssm(scan=bidirectional, conv=none)",
    "ssm(scan=cross, conv=none)",
    "ssm",
    "s4d(conv=none)",
    "ssd(conv=none)",
    "gru(conv=none)",
    "attention(head_dim=4)",
    "causal-attention(head_dim=4)",
    "window-attention(window=3, head_dim=4)",
    "linear-attention(head_dim=4)",
    "random",
)


@dataclass(frozen=True)
class LookRequest:
    """What a token can see: scan orders, influence maps of single mixers, and the effective receptive
    fields of trained image models before and after training."""

    mixer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MIXER ...")] = LOOKED_AT
    """Mixers to look at on their own."""
    study: Annotated[str | None, flag("NAME", OF_RUNS)] = None
    """Trained models of this study only."""
    side: int = 15
    """Tokens along a side of the image that a single mixer is looked at on."""
    runs: Path = Path("runs")
    """Folder of trials and studies; the figures go to its subfolder look."""


@dataclass(frozen=True)
class BenchRequest:
    """Latency, throughput and memory of token mixers against length and width, beside what the machine
    can do at most, with the lengths at which one overtakes another."""

    mixer: Annotated[
        tuple[str, ...], flag("MIXER ...", "all that take sequences, in their causal form if they have one")
    ] = ()
    """Mixers to measure."""
    length: Annotated[tuple[int, ...], tyro.conf.arg(metavar="L ...")] = (256, 1024, 4096)
    """Tokens."""
    dim: Annotated[tuple[int, ...], tyro.conf.arg(metavar="C ...")] = (64,)
    """Channels."""
    batch: Annotated[int | None, flag("N", "1")] = None
    """Sequences at every length."""
    tokens: Annotated[int | None, flag("N", "none")] = None
    """In place of --batch: as many tokens at every length, in N / L sequences. At batch 1 short lengths
    measure on a GPU how fast kernels are launched."""
    seconds: float = 0.5
    """To measure each point for; one that would take far longer is skipped, and said to be."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and inputs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where."""
    threads: int = 1
    """Of torch on the CPU."""
    runs: Path = Path("runs")
    """The table and the figures go to its subfolder bench."""

    def check(self) -> None:
        """Check what the types cannot.

        Raises:
            InputError: a number that makes no sense.
        """
        require_at_least(1, self, "length", "dim", "batch", "tokens", "threads")
        if not 0 < self.seconds < float("inf"):
            raise InputError(f"--seconds must be positive and finite, got {self.seconds:g}")

    @property
    def batches(self) -> dict[int, int]:
        """Sequences to measure with, by their length.

        Raises:
            InputError: both a batch and tokens, or tokens that some length does not divide.
        """
        if self.tokens is None:
            return dict.fromkeys(self.length, 1 if self.batch is None else self.batch)
        if self.batch is not None:
            raise InputError("--tokens sets the batch of each length: give it or --batch, not both")
        odd = [f"{length:,}" for length in self.length if self.tokens % length]
        if odd:
            raise InputError(
                f"--tokens {self.tokens:,} cannot be cut into sequences of --length {' or '.join(odd)}: it "
                "must be a multiple of every length"
            )
        return {length: self.tokens // length for length in self.length}


@dataclass(frozen=True)
class DemoRequest:
    """A page to play with trained image models: their answers side by side, and what each depends on.
    Needs Gradio (uv sync --extra demo). MambaOut weights that timm has downloaded before are offered too."""

    study: Annotated[str | None, flag("NAME", OF_RUNS)] = None
    """Models of this study only."""
    weights: Annotated[tuple[Path, ...], flag("FILE ...", "none")] = ()
    """MambaOut weights with timm's names, or those of the official release."""
    port: int = 7860
    """Of the page, on this machine only."""
    runs: Path = Path("runs")
    """Folder of trials and studies."""


@dataclass(frozen=True)
class EvaluateRequest:
    """Top-1 and top-5 accuracy of a trained model on a data set: evaluate --weights timm --task.data PATH."""

    skeleton: str = "mambaout-tiny"
    """The model's, e.g. mambaout-femto."""
    weights: str = "timm"
    """"timm" for the released ones that are on this disk, or a file: .safetensors, .pth."""
    mixer: str = "conv"
    """The mixer that the model was trained with."""
    task: str = "images"
    """With its options, which also go by dotted name: --task.data PATH --task.size 224."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where."""
    precision: Precision = "float32"
    """Of matrix products."""
    threads: int = 1
    """Of torch on the CPU."""
    loaders: int = 2
    """Processes that read images; 0 for none beside the one that answers."""
    options: Annotated[Mapping[str, Mapping[str, str]], tyro.conf.Suppress] = field(default_factory=dict)
