"""Our MambaOut with the `conv` mixer against timm's: same weights, same logits, same gradients."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from experiments.interface import TaskSpec
from experiments.skeletons import SKELETONS
from experiments.skeletons.weights import from_timm
from mixers import InputError
from mixers.conv import DepthwiseConv

RELEASED = {  # parameters, published drop path
    "femto": (7_304_536, 0.025),
    "kobe": (9_141_208, 0.025),
    "tiny": (26_545_096, 0.2),
    "small": (48_488_072, 0.4),
    "base": (84_813_092, 0.6),
}
TASK = TaskSpec(input="image", channels=3, grid=(64, 64), classes=1000)


def conv(dim: int, *, grid_rank: int, stage: int, layer: int) -> nn.Module:
    return DepthwiseConv(dim, grid_rank)


def build_ours(size: str, device: str = "cpu") -> nn.Module:
    with torch.device(device):
        return SKELETONS.load(f"mambaout-{size}")(conv, TASK)


@cache
def pair(size: str) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's in evaluation mode; no parameter at a trivial value, activations of order 1."""
    with torch.device("meta"):
        theirs = timm.create_model(f"mambaout_{size}")
    theirs.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # norms and biases
            nn.init.uniform_(parameter, 0.2, 1.0, generator=generator)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    ours = build_ours(size, "meta")
    ours.load_state_dict(from_timm(theirs.state_dict()), assign=True)
    return ours.eval(), theirs.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def largest_difference(models: tuple[nn.Module, nn.Module], x: Tensor) -> float:
    with torch.inference_mode():
        ours, theirs = (model(x) for model in models)
    assert theirs.std() > 0.1
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("size", list(RELEASED))
def test_parameters(size):
    count = sum(parameter.numel() for parameter in build_ours(size, "meta").parameters())
    assert count == RELEASED[size][0]


@pytest.mark.parametrize("size", list(RELEASED))
@pytest.mark.parametrize("grid", [(64, 64), (33, 50)])
def test_logits_in_float32(size, grid):
    assert largest_difference(pair(size), images(2, 3, *grid)) < 1e-4


@pytest.mark.parametrize("size", list(RELEASED))
def test_logits_in_float64(size):
    ours, theirs = models = pair(size)
    try:
        x = images(1, 3, 33, 50).double()
        assert largest_difference((ours.double(), theirs.double()), x) < 1e-9
    finally:
        for model in models:
            model.float()


@pytest.mark.parametrize("grid", [(1, 1), (224, 224), (31, 97)])
def test_logits_of_femto_on_other_grids(grid):
    assert largest_difference(pair("femto"), images(1, 3, *grid)) < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_gradients_of_femto(dtype, tolerance):
    ours, theirs = (model.to(dtype) for model in pair("femto"))
    x = images(2, 3, 48, 40).to(dtype)
    try:
        for model in (ours, theirs):
            model.zero_grad()
            model(x).square().mean().backward()
        expected = from_timm({name: parameter.grad for name, parameter in theirs.named_parameters()})
        for name, parameter in ours.named_parameters():
            difference = (parameter.grad - expected[name]).norm() / expected[name].norm()
            assert difference < tolerance, name
    finally:
        for model in (ours, theirs):
            model.zero_grad()
            model.float()


@pytest.mark.parametrize("size", list(RELEASED))
def test_drop_path_schedule(size):
    def rates(model: nn.Module) -> list[float]:
        return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]

    with torch.device("meta"):
        theirs = timm.create_model(f"mambaout_{size}", drop_path_rate=RELEASED[size][1])
    assert rates(build_ours(size, "meta")) == pytest.approx(rates(theirs), rel=1e-6)


def test_weights_there_and_back(to_timm):
    theirs = pair("femto")[1].state_dict()
    back = to_timm(from_timm(theirs))
    assert back.keys() == theirs.keys()
    assert all(back[name] is theirs[name] for name in theirs)


def test_official_checkpoints_are_read():
    ours, theirs = pair("femto")
    renamed = {}
    for name, value in theirs.state_dict().items():  # the layout of github.com/yuweihao/MambaOut
        for new, old in (
            ("stem.", "downsample_layers.0."),
            ("head.norm.", "norm."),
            ("head.fc.", "head.fc2."),
            ("head.pre_logits.fc.", "head.fc1."),
            ("head.pre_logits.norm.", "head.norm."),
            (".blocks.", "."),
        ):
            if new in name:
                name = name.replace(new, old)
                break
        if ".downsample." in name:
            name = f"downsample_layers.{name.split('.')[1]}.{name.split('.downsample.')[1]}"
        renamed[name] = value
    read = from_timm({"model": renamed})
    assert read.keys() == ours.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in ours.state_dict().items())


def test_incomplete_and_foreign_weights_are_refused_by_name():
    weights = dict(pair("femto")[1].state_dict())
    incomplete = {name: value for name, value in weights.items() if name != "stages.2.blocks.4.fc1.bias"}
    with pytest.raises(InputError, match=r"stages\.2\.blocks\.4\.fc1\.bias missing"):
        from_timm(incomplete)
    with pytest.raises(InputError, match=r"stages\.0\.blocks\.0\.ls\.gamma unknown"):
        from_timm({**weights, "stages.0.blocks.0.ls.gamma": torch.zeros(48)})
    with pytest.raises(InputError, match="missing"):
        from_timm({})
