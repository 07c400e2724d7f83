"""The interface between the methods and an architecture."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from dcvit.errors import InputError
from dcvit.layers.adaptor import Layer
from dcvit.layers.token_grid import TokenGrid
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.types import TimmModule

KeptNodes = Mapping[int, Tensor]
"""For each block that is narrowed, the indices [M'] of the MLP hidden nodes that it keeps."""

Refusals: TypeAlias = Mapping[Literal["merges", "attention", "mlp_hidden", "head_dim"], str]
"""What in a plan an architecture cannot do (`attention`: lose it alone), and why, in words for the user."""


@dataclass(frozen=True)
class BlockSpec:
    """Widths of one block: C, h, d and M; 0 where a block has no such thing."""

    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_hidden: int


@dataclass(frozen=True)
class Architecture:
    """The numbers of an uncompressed model that a plan is made from.

    Attributes:
        input_size: (channels, height, width) of one image.
        grid: Patch grid (H, W) in front of the first block.
        num_prefix_tokens: Class, distillation and register tokens.
    """

    input_size: tuple[int, int, int]
    grid: tuple[int, int]
    num_prefix_tokens: int
    num_classes: int
    blocks: tuple[BlockSpec, ...]

    @property
    def depth(self) -> int:
        """Number of blocks, D."""
        return len(self.blocks)


@dataclass(frozen=True)
class CostModules:
    """Names of the modules whose MACs a compressed block saves.

    Attributes:
        removed: Saved as a whole: attention and its norm, or the block itself.
        narrowed: Saved in proportion to the MLP's width; empty where whole blocks go.
        heads: Saved in proportion to the channels of the heads; empty where these keep their width.
    """

    removed: tuple[str, ...]
    narrowed: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdaptorLayers:
    """Names of the layers inside a block that an adaptor may hang on; the first one that a block has is taken.

    Attributes:
        first: What the block reads its input through.
        last: What its branch ends with.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]


@dataclass(frozen=True)
class AdaptorPlaces:
    """The layers around a gap that adaptors hang on.

    Attributes:
        behind: Last layers of earlier blocks, whose output goes through an adaptor.
        in_front: First layers of later blocks, whose input goes through one.
    """

    behind: tuple[Layer, ...]
    in_front: tuple[Layer, ...]


class Family(ABC):
    """One kind of architecture: how to read it, and how to put a plan into it.

    Attributes:
        name: For messages and manifests.
        supported: What of timm it takes, in words.
        removes: What a compressed block loses: its attention (the MLP stays, narrowed), or everything.
        refuses: What no plan for this architecture may ask.
        adaptor_layers: Where linear adaptors hang in a block. None where no place is known: an attention may use the
            weights of a layer without calling it, and an adaptor on that layer would do nothing.
        cannot_prune: Why compactors cannot prune its heads and MLPs, in words; None where they can.
    """

    name: str
    supported: str
    removes: Literal["attention", "block"] = "attention"
    refuses: ClassVar[Refusals] = {}
    adaptor_layers: ClassVar[AdaptorLayers | None] = None
    cannot_prune: ClassVar[str | None] = (
        "channel pruning narrows the heads and MLPs of plain Vision Transformers (vit_*, deit_*, deit3_*)"
    )

    @abstractmethod
    def matches(self, model: TimmModule) -> bool:
        """Whether the model is of this kind."""

    @abstractmethod
    def unsupported_reason(self, model: TimmModule) -> str | None:
        """What in a matching model no plan can handle, in words; None when all is well."""

    @abstractmethod
    def architecture(self, model: TimmModule) -> Architecture:
        """Reads the widths, the grid and the input size off an uncompressed model."""

    @abstractmethod
    def apply(self, model: TimmModule, plan: CompressionPlan, kept: KeptNodes | None = None) -> None:
        """Puts the plan into the model, in place.

        Where `kept` names no nodes for a narrowed MLP, its first ones stay, which is all that matters when the
        weights are loaded afterwards.
        """

    @abstractmethod
    def tokens(self, model: TimmModule, plan: CompressionPlan) -> list[int]:
        """Tokens N that each block works on, under the plan. `model` is uncompressed."""

    def units(self, model: TimmModule) -> list[tuple[int, ...]]:
        """Groups of blocks that are compressed together, in order. `model` is uncompressed.

        For a plain transformer each block stands alone, but for the first and the last, which are never compressed.
        """
        return [(index,) for index in range(1, self.architecture(model).depth - 1)]

    @abstractmethod
    def cost_modules(self, model: TimmModule, index: int) -> CostModules:
        """The modules of block `index` by how compression saves them. `model` is uncompressed."""

    @abstractmethod
    def blocks(self, model: TimmModule) -> list[TimmModule]:
        """All blocks of the model in order, with what stands where one was removed."""

    def block(self, model: TimmModule, index: int) -> TimmModule:
        """Block `index` of the model."""
        return self.blocks(model)[index]

    def block_arguments(self, model: TimmModule) -> dict[str, Any]:  # noqa: ARG002 (most give none)
        """What the model gives each of its blocks beside the tokens: who runs a block alone must give it too."""
        return {}

    @abstractmethod
    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        """What mimicking compares: all tokens after the final norm, [B, N, C], and the logits, [B, classes].

        Of a segmentation model the logits are those of every patch, [B, classes, H, W].
        """

    @abstractmethod
    def merge_tokens(self, model: TimmModule, plan: CompressionPlan, tokens: Tensor) -> Tensor:
        """The tokens [B, N, C] of an unmerged model, merged by their mean where the plan merges: [B, N', C]."""

    @abstractmethod
    def train_up_to(self, model: TimmModule, last_block: int) -> None:
        """Makes trainable what runs up to and with block `last_block`, and the final norm; freezes the rest."""

    def adaptor_places(self, model: TimmModule, unit: Sequence[int]) -> AdaptorPlaces | None:
        """Where adaptors may make up for a unit of blocks that was removed; None where the family has no place for any.

        A block that has lost such a layer gets no adaptor. `model` may be cut.
        """
        layers = self.adaptor_layers
        if layers is None:
            return None
        blocks, reach = self.blocks(model), self.adaptor_reach(model, unit)
        earlier = [_layer(blocks[index], layers.last) for index in reach if index < min(unit)]
        later = [_layer(blocks[index], layers.first) for index in reach if index > max(unit)]
        return AdaptorPlaces(
            tuple(layer for layer in earlier if layer is not None), tuple(layer for layer in later if layer is not None)
        )

    def adaptor_reach(self, model: TimmModule, unit: Sequence[int]) -> range:  # noqa: ARG002 (most adapt everywhere)
        """The blocks out of which those beside the unit may get an adaptor: all of them."""
        return range(len(self.blocks(model)))

    def tv_exponent(self, model: TimmModule) -> float:  # noqa: ARG002 (most have one for all models)
        """Power β of the total variation that keeps images smooth which are made from the model (arXiv 2403.18708)."""
        return 1.0

    def constructor_arguments(self, model: TimmModule) -> dict[str, Any]:  # noqa: ARG002 (most keep none of their own)
        """Arguments of timm's constructor that the models of this family keep in a way of their own."""
        return {}

    def fit_positions(self, model: TimmModule, state: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """A state dict whose positions fit the model's grid, as far as that can be done."""
        return state

    def cannot_trim(self, model: TimmModule) -> str | None:  # noqa: ARG002 (most have no plain blocks)
        """Why the last block cannot leave out all tokens but the prefix, in words; None where the logits stay equal."""
        return "only the last block of a plain Vision Transformer (vit_*, deit_*, deit3_*) can be trimmed"

    def check(self, model: TimmModule, plan: CompressionPlan) -> None:
        """Checks that a plan fits an uncompressed model.

        Raises:
            InputError: If it names a block, position or width that the model does not have, or asks what this
                architecture refuses.
        """
        if plan.merges and "merges" in self.refuses:
            raise InputError(f"--merge: {plan.model}: {self.refuses['merges']}")
        architecture = self.architecture(model)
        depth = architecture.depth
        for entry in plan.blocks:
            if entry.index >= depth:
                raise InputError(
                    f"plan: {plan.model} has no block {entry.index}; its {depth} blocks are numbered 0 to {depth - 1}"
                )
            self._check_refused(plan, entry)
            spec = architecture.blocks[entry.index]
            for what, width, limit in (
                ("mlp_hidden", entry.mlp_hidden, spec.mlp_hidden),
                ("head_dim", entry.head_dim, spec.head_dim),
            ):
                if width is not None and width > limit:
                    raise InputError(f"plan: block {entry.index} of {plan.model} has {what} {limit}; {width} is more")
        for merge in plan.merges:
            if merge.after >= depth:
                raise InputError(
                    f"--merge: {plan.model} has {depth} blocks, so {merge.axis}@{merge.after} is at no block; "
                    f"merges stand after 1 to {depth - 1} blocks"
                )
        self._check_grid(architecture, plan)
        if plan.trims_last_block:
            removed = plan.block(depth - 1).removed == "block"
            if reason := "its last block is removed" if removed else self.cannot_trim(model):
                raise InputError(f"--trim-last-block: {plan.model}: {reason}")

    def _check_refused(self, plan: CompressionPlan, entry: BlockPlan) -> None:
        asked: dict[Literal["attention", "mlp_hidden", "head_dim"], bool] = {
            "attention": entry.removed == "attention",
            "mlp_hidden": entry.mlp_hidden is not None,
            "head_dim": entry.head_dim is not None,
        }
        for what, wanted in asked.items():
            if wanted and what in self.refuses:
                raise InputError(f"plan: block {entry.index} of {plan.model}: {self.refuses[what]}")

    def _check_grid(self, architecture: Architecture, plan: CompressionPlan) -> None:
        grid = TokenGrid.unmerged(architecture.grid)
        for merge in plan.merges:
            side = grid.columns if merge.axis == "horizontal" else grid.rows
            if len(side) < 2:
                raise InputError(
                    f"--merge: {merge.axis}@{merge.after} has nothing to merge: the grid of {plan.model} is "
                    f"{grid.shape[0]}×{grid.shape[1]} there"
                )
            grid = grid.merged(merge.axis)

    def cut(self, model: TimmModule, plan: CompressionPlan, kept: KeptNodes | None = None) -> TimmModule:
        """A compressed copy of an uncompressed model, with the weights that the plan keeps."""
        self.check(model, plan)
        student = copy.deepcopy(model)
        self.apply(student, plan, kept)
        return student


def _layer(block: TimmModule, names: Sequence[str]) -> Layer | None:
    layers = dict(block.named_modules())
    return next((layers[name] for name in names if name in layers), None)
