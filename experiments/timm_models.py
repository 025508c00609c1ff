"""The hierarchical skeletons, with any mixer, as backbones that other libraries get from timm.

Importing this module registers them; nothing else in the project does:

    import experiments.timm_models
    timm.create_model("ablation_mambaout_tiny", mixer="ssm(scan=cross)", features_only=True)
    timm.create_model("ablation_mambaout_tiny", mixer="ssm", num_classes=10)

The maps of the stages come with a LayerNorm each, as (B, C, h, w), which every library reads; timm's own
MambaOut gives (B, h, w, C), which some take for the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.format import Format
from timm.layers.weight_init import trunc_normal_
from timm.models import checkpoint_seq, register_model
from timm.models._features import FeatureInfo, feature_take_indices
from torch import Tensor, nn

from experiments import pretrained
from experiments.build import assemble
from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.base import INIT_STD, Head
from experiments.skeletons.dense import channels_first
from experiments.skeletons.hierarchical import MambaOut, Stage
from experiments.skeletons.weights import from_timm
from mixers import MIXERS, Component, InputError

Indices = int | Sequence[int] | None
IMAGE = (224, 224)  # any other size may come in


class Recomputed(nn.Sequential):
    """In training, modules whose activations the backward pass computes again: less memory, more time."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint_seq(self, x) if self.training else super().forward(x)
        return found


def _set_grad_checkpointing(stages: nn.Module, enable: bool) -> None:
    kind = Recomputed if enable else nn.Sequential
    for stage in stages.children():
        assert isinstance(stage, Stage)
        stage.blocks = kind(*stage.blocks.children()).train(stage.training)


def _under_our_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of ours, or of timm's MambaOut."""
    timms = any(re.search(r"blocks\.\d+\.conv\.", name) for name in weights)  # its name of the mixer
    return from_timm(weights) if timms else weights


class Classifier(nn.Module):
    """By timm's contract, with our names of the weights: images (B, in_chans, H, W) -> logits (B, classes).

    Args:
        model: whose modules it is made of.
        skeleton: its name.
        num_classes: width of the output; 0 for what the classifier would read.
        drop_rate: of dropout before the classifier.
    """

    def __init__(self, model: MambaOut, skeleton: str, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.stem = model.stem
        self.stages: nn.Sequential = model.stages
        assert isinstance(model.head, Head)
        self.head: Head = model.head
        self.head_dropout = nn.Dropout(drop_rate)
        self.num_classes, self._skeleton = num_classes, skeleton
        self.num_features = model.dims[-1]
        self.head_hidden_size = 4 * model.dims[-1]
        self.feature_info = _feature_info(model)
        self.pretrained_cfg = {  # by which timm's scripts choose their transforms; the paper's
            "input_size": (self.stem.conv1.in_channels, *IMAGE),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
        }
        self._no_weight_decay = model.no_weight_decay()

    def no_weight_decay(self) -> set[str]:
        """What timm's optimizers ask for: the parameters that weight decay must leave alone."""
        return self._no_weight_decay

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What layer-wise learning rates ask for: which names are of which layer, as timm has it."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the blocks again in its backward pass, to save memory."""
        _set_grad_checkpointing(self.stages, enable)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh last layer, drawn as MambaOut's is.

        Args:
            num_classes: width of the output; 0 for what the classifier would read.
            global_pool: "avg", which is all that there is.

        Raises:
            InputError: another pooling is asked for.
        """
        _require_average(global_pool)
        self.num_classes = num_classes
        old = next(self.head.parameters())
        fresh = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        if isinstance(fresh, nn.Linear):
            trunc_normal_(fresh.weight, std=INIT_STD)
            nn.init.zeros_(fresh.bias)
        self.head.fc = fresh.to(old.device, old.dtype).train(self.training)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Weights of a classifier of this skeleton, ours or timm's: `checkpoint_path`.

        Raises:
            InputError: `strict`, and they are of another model.
        """
        found = _under_our_names(state_dict)
        if strict:
            pretrained.require_all_of(self, found, "of this checkpoint", self._skeleton)
        return super().load_state_dict(found, strict, assign)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, h, w, C)."""
        features: Tensor = self.stages(self.stem(x.permute(0, 2, 3, 1)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, C) -> (B, classes), or what the classifier reads."""
        read: Tensor = self.head_dropout(self.head.features(x))
        return read if pre_logits else self.head.fc(read)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of some stages, and the last one as `forward_features` gives it, unless they are all.

        Args:
            x: (B, in_chans, H, W).
            indices: stages whose maps are wanted; a number for so many of the last, None for all.
            norm: there is none between stages.
            stop_early: run no stage behind the last that is wanted.
            output_fmt: "NCHW" for (B, C, h, w), "NHWC" for (B, h, w, C).
            intermediates_only: whether the last map is left out.
        """
        taken, last = _taken(indices, len(self.stages))
        x = self.stem(x.permute(0, 2, 3, 1))
        maps = []
        for number, stage in enumerate(self.stages.children()):
            if stop_early and number > last:
                break
            x = stage(x)
            if number in taken:
                maps.append(channels_first(x) if output_fmt == "NCHW" else x)
        return maps if intermediates_only else (x, maps)


def _require_average(global_pool: str | None) -> None:
    if global_pool not in (None, "avg"):
        raise InputError(f"global_pool {global_pool!r} is not there: these classifiers read the mean, 'avg'")


def _taken(indices: Indices, stages: int) -> tuple[list[int], int]:
    """The numbers of the stages that are asked for, and the last of them."""
    found, last = feature_take_indices(stages, list(indices) if isinstance(indices, Sequence) else indices)
    return list(found), last


def _feature_info(model: MambaOut) -> list[dict[str, Any]]:
    stages = enumerate(zip(model.dims, model.strides(), strict=True))
    return [
        {"num_chs": dim, "reduction": stride, "module": f"stages.{stage}"} for stage, (dim, stride) in stages
    ]


class StageMaps(nn.Module):
    """A backbone: (B, in_chans, H, W) -> the maps of some stages, (B, C, h, w) each, the finest first.

    It has nothing that these maps do not need: neither later stages, nor norms of other maps, nor a head.
    """

    output_fmt = Format.NCHW

    def __init__(self, model: MambaOut, skeleton: str, out_indices: Indices) -> None:
        super().__init__()
        self.model, self._skeleton = model, skeleton
        indices, last = _taken(out_indices, len(model.dims))
        assert model.stage_norms is not None
        model.head = nn.Identity()
        del model.stages[last + 1 :], model.stage_norms[last + 1 :]
        for stage in set(range(last)) - set(indices):
            model.stage_norms[stage] = nn.Identity()
        self.feature_info = FeatureInfo(_feature_info(model), tuple(indices))

    def no_weight_decay(self) -> set[str]:
        """What timm's optimizers ask for: the parameters that weight decay must leave alone."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the blocks again in its backward pass, to save memory."""
        _set_grad_checkpointing(self.model.stages, enable)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Its own weights, or those of a classifier or of a dense model, ours or timm's: `checkpoint_path`.

        Of the latter it takes what it has itself; norms of the maps, which classifiers do not have, stay.

        Raises:
            InputError: they are of another model.
        """
        if not any(name.startswith("model.") for name in state_dict):
            state_dict = {f"model.{name}": value for name, value in self._wanted(state_dict).items()}
        return super().load_state_dict(state_dict, strict, assign)

    def _wanted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the model in it, from weights of all stages with a head."""
        weights = _under_our_names(weights)
        own = self.model.state_dict()
        norms = {name: value for name, value in own.items() if name.startswith("stage_norms.")}
        found = norms | {name: value for name, value in weights.items() if not self._lacks(name)}
        pretrained.require_all_of(self.model, found, "of this checkpoint", self._skeleton)
        return found

    def _lacks(self, name: str) -> bool:
        """Whether a weight belongs to the head, or to a stage or a norm that these maps do not need."""
        part, _, rest = name.partition(".")
        if part not in ("stages", "stage_norms"):
            return part == "head"
        stage = int(rest.partition(".")[0])
        wanted: Sequence[int] = self.feature_info.out_indices
        return stage > max(wanted) if part == "stages" else stage not in wanted

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model.forward_pyramid(x)
        return [channels_first(maps[stage]) for stage in self.feature_info.out_indices]


def create(
    skeleton: str,
    mixer: str,
    features_only: bool,
    out_indices: Indices,
    in_chans: int,
    num_classes: int,
    drop_rate: float,
    drop_path_rate: float | None,
    seed: int,
) -> nn.Module:
    """What the registered functions return: a classifier, or the maps of its stages.

    Args:
        skeleton: name of a hierarchical skeleton.
        mixer: as on the command line; several, separated by commas, for one per stage.
        features_only: whether the maps are wanted.
        out_indices: stages whose maps are returned; a number for so many of the last, None for all.
        in_chans: channels of the images.
        num_classes: of the classifier; 0 for what it would read, (B, features).
        drop_rate: of dropout before the classifier; the maps have none.
        drop_path_rate: of the last block; None for that of the size.
        seed: that the initial weights are drawn from.

    Raises:
        InputError: an unknown mixer or option, or one that does not fit.
    """
    classes, output = (1, "per-pixel") if features_only else (num_classes, "one")
    spec = TaskSpec("image", in_chans, IMAGE, classes, output=output)  # type: ignore[arg-type]
    options: dict[str, Any] = {} if drop_path_rate is None else {"drop_path": drop_path_rate}
    if features_only:
        options["head"] = "linear"  # the smallest; it is taken off again
    chosen = Component(skeleton, options)
    resolved = SKELETONS.resolve(chosen, option_defaults(chosen, spec.output))
    mixers = tuple(
        MIXERS.resolve(each, MIXERS.load(each.name).place_defaults(2, False))
        for each in MIXERS.parse_pattern(mixer)
    )
    model = assemble(mixers, resolved, "a backbone", spec, seed)
    assert isinstance(model, MambaOut)
    if features_only:
        return StageMaps(model, skeleton, out_indices)
    return Classifier(model, skeleton, num_classes, drop_rate)


def _entry_point(skeleton: str) -> Callable[..., nn.Module]:
    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        *,
        mixer: str = "conv",
        features_only: bool = False,
        out_indices: Indices = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        seed: int = 0,
    ) -> nn.Module:
        _require_average(global_pool)
        if pretrained or pretrained_cfg or pretrained_cfg_overlay:
            raise InputError(f"{entry.__name__} has no weights to download; checkpoint_path loads your own")
        return create(
            skeleton,
            mixer,
            features_only,
            out_indices,
            in_chans,
            num_classes,
            drop_rate,
            drop_path_rate,
            seed,
        )

    entry.__name__ = f"ablation_{skeleton.replace('-', '_')}"
    return entry


NAMES = [
    register_model(_entry_point(skeleton)).__name__
    for skeleton in SKELETONS
    if issubclass(SKELETONS.load(skeleton), MambaOut)
]
"""What timm knows them as."""
