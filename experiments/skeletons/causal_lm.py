"""A stack of blocks on tokens: embedding, blocks, norm, head. What language models and MQAR run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.interface import MixerFactory, MixerState, Output, TaskSpec
from experiments.skeletons.base import DropRate, HeadName, Init, Readout, Skeleton, read_out
from experiments.skeletons.blocks import (
    NORM_EPS,
    Activation,
    Block,
    BlockName,
    BlockOptions,
    ConvRatio,
    ExpansionRatio,
    LayerScaleInit,
    MlpName,
)
from experiments.skeletons.moe import BALANCE, Balance, ExpertOptions, Experts, ExpertsPerToken, MoeEvery
from mixers.registry import InputError

Width = Annotated[int, Field(ge=1, le=16_384)]
Depth = Annotated[int, Field(ge=1, le=256)]


class DecodingState(NamedTuple):
    """What decoding carries from one token to the next: one state per block, and the position."""

    blocks: tuple[MixerState, ...]
    position: int


class CausalLM(Skeleton):
    """Token embedding, blocks of one width, final norm, head.

    For a task with an answer per token it is a language model, (B, L) -> (B, L, classes); for a task
    with one answer it reads that out of one token, or of their mean: (B, L) -> (B, classes). Whether it
    is causal is the mixers' business. With mixers that have a recurrent form it also runs token by token
    (`init_state`, `step`) and gives the same.

    Args:
        mixer: makes the token mixer of each block.
        task: a task on tokens.
        dim: channels.
        depth: blocks.
        position: what is added to the embeddings: nothing, a learned embedding of each position (which
            then ends at the task's length), or sines and cosines (arXiv 1706.03762, section 3.5).
        tied: the head shares the embedding's weights, where the classes are the vocabulary.
        block: preset of the block.
        expansion_ratio: hidden channels per channel; None for the preset's.
        conv_ratio: channels handed to the mixer per channel; None for the preset's.
        act: activation of the block; None for the preset's.
        bias: in the block's linear layers; None for the preset's.
        gate: whether a gated block has its gate; None for the preset's.
        mlp: channel MLP of a metaformer block; None for the preset's.
        layer_scale: initial LayerScale; None for none.
        drop_path: of the last block, growing linearly from 0 at the first; None for that of the class.
        embed_drop: dropout of the embeddings.
        readout: what answers a task with one answer.
        init: of embeddings and linear layers, with "fixed-all" those inside the mixers too
            (`base.Skeleton.init_weights`); None for that of the class.
        experts: copies of a metaformer block's channel MLP that a router chooses from; 1 for a plain MLP.
        experts_per_token: how many of them every token goes through.
        moe_every: the last of every so many blocks has experts.
        balance: weight of the load-balancing loss.

    Raises:
        InputError: the task is not on tokens or asks for pixels or instances, or the options do not fit each
            other.
    """

    drop_path_rate: ClassVar[float] = 0.0
    heads: ClassVar[Mapping[Output, HeadName]] = {"one": "linear", "per-token": "linear"}
    block_name: ClassVar[BlockName] = "mamba"

    def __init__(
        self,
        mixer: MixerFactory,
        task: TaskSpec,
        *,
        dim: Width = 64,
        depth: Depth = 2,
        position: Literal["none", "learned", "sinusoidal"] = "none",
        tied: bool = True,
        block: BlockName = "mamba",
        expansion_ratio: ExpansionRatio | None = None,
        conv_ratio: ConvRatio | None = None,
        act: Activation | None = None,
        bias: bool | None = None,
        gate: bool | None = None,
        mlp: MlpName | None = None,
        layer_scale: LayerScaleInit | None = None,
        drop_path: DropRate | None = None,
        embed_drop: DropRate = 0.0,
        readout: Readout = "last",
        init: Init | None = None,
        experts: Experts = 1,
        experts_per_token: ExpertsPerToken = 1,
        moe_every: MoeEvery = 1,
        balance: Balance = BALANCE,
    ) -> None:
        super().__init__(init)
        if task.input != "tokens":
            raise InputError(
                f"causal-lm reads tokens, but the task's input is {task.input!r}: take another --skeleton, "
                "e.g. isotropic-nano"
            )
        if task.output not in self.heads:
            raise InputError(
                f"causal-lm answers {' or '.join(self.heads)}, but the task asks for {task.output!r}"
            )
        mixture = ExpertOptions(experts, experts_per_token, moe_every, balance)
        options = BlockOptions(block, expansion_ratio, conv_ratio, act, bias, gate, mlp, layer_scale, mixture)
        self.position = position
        # drawn with all other weights: on the meta device a first draw would make torch import its compiler
        self.embed = nn.Embedding.from_pretrained(torch.zeros(task.channels, dim), freeze=False)
        self.pos_embed = nn.Parameter(torch.zeros(*task.grid, dim)) if position == "learned" else None
        self.embed_drop = nn.Dropout(embed_drop)
        (blocks,) = self.build_blocks(mixer, options, [depth], [dim], grid_rank=1, drop_path=drop_path)
        self.blocks = nn.ModuleList(blocks)
        self.readout = readout if task.output == "one" else None
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc = nn.Linear(dim, task.classes, bias=False)
        if tied and task.classes == task.channels:
            self.fc.weight = self.embed.weight

    @classmethod
    def option_defaults(
        cls, block: str | None = None, output: Output = "one", mlp: str | None = None
    ) -> dict[str, Any]:
        defaults = super().option_defaults(block, output, mlp)
        del defaults["head"]  # which is always linear here
        return defaults

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self._positions(0, x.shape[1])  # (B, L, C)
        x = self.embed_drop(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward_head(self, features: Tensor) -> Tensor:
        if self.readout is not None:
            features = read_out(features, self.readout)  # (B, C)
        return self.fc(self.norm(features))

    def init_state(self, batch_size: int) -> DecodingState:
        """The state before the first token.

        Raises:
            TypeError: a mixer has no recurrent form, or the readout needs all tokens at once.
        """
        if self.readout not in (None, "last"):
            raise TypeError(f"readout {self.readout} needs all tokens at once; decoding reads the last")
        device = self.embed.weight.device
        mixers = [block.mixer for block in self._blocks()]
        return DecodingState(tuple(mixer.init_state(batch_size, device) for mixer in mixers), 0)

    def step(self, ids: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """The next token: (B,) -> logits (B, classes), as `forward` gives for the last of all tokens so far.

        Raises:
            InputError: beyond the last learned position.
        """
        x = self.embed(ids) + self._positions(state.position, 1)
        states = []
        for block, block_state in zip(self._blocks(), state.blocks, strict=True):
            x, block_state = block.step(x, block_state)
            states.append(block_state)
        return self.fc(self.norm(x)), DecodingState(tuple(states), state.position + 1)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _positions(self, start: int, length: int) -> Tensor | float:
        """(length, C) to be added; 0 without positions."""
        if self.pos_embed is not None:
            if start + length > len(self.pos_embed):
                raise InputError(
                    f"causal-lm has learned {len(self.pos_embed)} positions, {start + length} tokens came: "
                    "position sinusoidal or none goes on for ever"
                )
            return self.pos_embed[start : start + length]
        if self.position == "sinusoidal":
            return sinusoidal(start, length, self.embed.weight)
        return 0.0

    def _std(self, name: str) -> float:
        # A token and its position start at the same scale. The norms that follow undo the scale itself.
        if self.init == "fan-in" and name in ("embed.weight", "pos_embed"):
            return self.embed.embedding_dim**-0.5
        return super()._std(name)

    def no_weight_decay(self) -> set[str]:
        own = set() if self.pos_embed is None else {"pos_embed"}
        return super().no_weight_decay() | own


def sinusoidal(start: int, length: int, like: Tensor) -> Tensor:
    """Sines and cosines of positions start..start + length - 1, on the scale of the embedding: (length, C).

    Args:
        start: first position.
        length: number of them.
        like: the embedding's weight (vocabulary, C); its spread, type and device are taken over.
    """
    dim = like.shape[1]
    rates = 10_000.0 ** (-torch.arange(0, dim, 2, device=like.device) / dim)  # (ceil(C / 2),)
    positions = torch.arange(start, start + length, device=like.device)
    angles = positions[:, None] * rates  # (length, ceil(C / 2))
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]
    return (waves * like.detach().std() * 2**0.5).to(like.dtype)
