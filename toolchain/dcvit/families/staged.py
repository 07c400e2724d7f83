"""What Swin Transformers and ResNets share: stages of blocks, and compression that takes out whole blocks."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcvit.families.base import CostModules, Family, KeptNodes
from dcvit.layers import narrow_mlp
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of one width and resolution.

    Attributes:
        module: The whole stage, with the layer in front of its blocks that changes width and resolution, if it has one.
        blocks: Its blocks, and nothing else.
        name: Of `blocks` in the model.
    """

    module: nn.Module
    blocks: nn.Sequential
    name: str


@dataclass(frozen=True)
class Place:
    """Where a block is: its number in the model, its stage, and its number in the stage."""

    index: int
    stage: Stage
    position: int

    @property
    def block(self) -> TimmModule:
        """The block that stands there."""
        return self.stage.blocks[self.position]


class StagedFamily(Family):
    """Models of several stages, whose blocks are numbered through all of them.

    A removed block becomes an identity where it stood, so the others keep their names.
    """

    removes = "block"

    @abstractmethod
    def stages(self, model: TimmModule) -> list[Stage]:
        """The stages in order."""

    def places(self, model: TimmModule) -> list[Place]:
        """Every block's place, in order."""
        places = [(stage, position) for stage in self.stages(model) for position in range(len(stage.blocks))]
        return [Place(index, stage, position) for index, (stage, position) in enumerate(places)]

    def apply(self, model: TimmModule, plan: CompressionPlan, kept: KeptNodes | None = None) -> None:
        kept = kept or {}
        places = self.places(model)
        for entry in plan.blocks:
            place = places[entry.index]
            if entry.removed == "block":
                place.stage.blocks[place.position] = nn.Identity()
            elif entry.mlp_hidden is not None:
                mlp = place.block.mlp
                nodes = kept.get(entry.index, torch.arange(entry.mlp_hidden))
                narrow_mlp(mlp, nodes.to(mlp.fc1.weight.device))

    def cost_modules(self, model: TimmModule, index: int) -> CostModules:
        place = self.places(model)[index]
        return CostModules((f"{place.stage.name}.{place.position}",))

    def blocks(self, model: TimmModule) -> list[TimmModule]:
        return [place.block for place in self.places(model)]

    def merge_tokens(self, model: TimmModule, plan: CompressionPlan, tokens: Tensor) -> Tensor:  # noqa: ARG002
        return tokens  # `check` lets no plan merge them

    def train_up_to(self, model: TimmModule, last_block: int) -> None:
        model.requires_grad_(True)
        for place in self.places(model):
            if place.index > last_block:
                # With the first block of a later stage goes the layer in front of it.
                frozen = place.stage.module if place.position == 0 else place.block
                frozen.requires_grad_(False)
        model.get_classifier().requires_grad_(False)
