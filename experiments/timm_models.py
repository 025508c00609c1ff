"""The hierarchical skeletons, with any mixer, as backbones that other libraries get from timm.

Importing this module registers them; nothing else in the project does:

    import experiments.timm_models
    timm.create_model("ablation_mambaout_tiny", mixer="ssm(scan=cross)", features_only=True)

The maps of the stages come with a LayerNorm each, as (B, C, h, w), which every library reads; timm's own
MambaOut gives (B, h, w, C), which some take for the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.layers.format import Format
from timm.models import register_model
from timm.models._features import FeatureInfo, feature_take_indices
from torch import Tensor, nn

from experiments import pretrained
from experiments.build import assemble
from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS, option_defaults
from experiments.skeletons.dense import channels_first
from experiments.skeletons.hierarchical import MambaOut
from experiments.skeletons.weights import from_timm
from mixers import MIXERS, Component, InputError

Indices = int | Sequence[int] | None
IMAGE = (224, 224)  # any other size may come in


class StageMaps(nn.Module):
    """A backbone: (B, in_chans, H, W) -> the maps of some stages, (B, C, h, w) each, the finest first.

    It has nothing that these maps do not need: neither later stages, nor norms of other maps, nor a head.
    """

    output_fmt = Format.NCHW

    def __init__(self, model: MambaOut, skeleton: str, out_indices: Indices) -> None:
        super().__init__()
        self.model, self._skeleton = model, skeleton
        chosen = list(out_indices) if isinstance(out_indices, Sequence) else out_indices
        indices, last = feature_take_indices(len(model.dims), chosen)
        assert model.stage_norms is not None
        model.head = nn.Identity()
        del model.stages[last + 1 :], model.stage_norms[last + 1 :]
        for stage in set(range(last)) - set(indices):
            model.stage_norms[stage] = nn.Identity()
        stages = enumerate(zip(model.dims, model.strides(), strict=True))
        self.feature_info = FeatureInfo(
            [
                {"num_chs": dim, "reduction": stride, "module": f"stages.{stage}"}
                for stage, (dim, stride) in stages
            ],
            tuple(indices),
        )

    def no_weight_decay(self) -> set[str]:
        """What timm's optimizers ask for: the parameters that weight decay must leave alone."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}

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
        if any(re.search(r"blocks\.\d+\.conv\.", name) for name in weights):  # timm's name of the mixer
            weights = from_timm(weights)
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
    return StageMaps(model, skeleton, out_indices) if features_only else model


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
        drop_path_rate: float | None = None,
        seed: int = 0,
    ) -> nn.Module:
        if pretrained or pretrained_cfg or pretrained_cfg_overlay:
            raise InputError(f"{entry.__name__} has no weights to download; checkpoint_path loads your own")
        return create(
            skeleton, mixer, features_only, out_indices, in_chans, num_classes, drop_path_rate, seed
        )

    entry.__name__ = f"ablation_{skeleton.replace('-', '_')}"
    return entry


NAMES = [
    register_model(_entry_point(skeleton)).__name__
    for skeleton in SKELETONS
    if issubclass(SKELETONS.load(skeleton), MambaOut)
]
"""What timm knows them as."""
