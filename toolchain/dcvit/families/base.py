"""The interface between the methods and an architecture."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from dcvit.errors import InputError
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


class Family(ABC):
    """One kind of architecture: how to read it, and how to put a plan into it.

    Attributes:
        name: For messages and manifests.
        supported: What of timm it takes, in words.
        removes: What a compressed block loses: its attention (the MLP stays, narrowed), or everything.
        refuses: What no plan for this architecture may ask.
    """

    name: str
    supported: str
    removes: Literal["attention", "block"] = "attention"
    refuses: ClassVar[Refusals] = {}

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
    def block(self, model: TimmModule, index: int) -> TimmModule:
        """Block `index` of the model."""

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
