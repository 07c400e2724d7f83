"""timm's `ResNet`: resnet*, resnext*, wide_resnet*, seresnet*, …, of which DC-ViT removes whole residual blocks."""

import math
from collections.abc import Sequence
from typing import ClassVar

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from dcvit.errors import InputError
from dcvit.families.base import AdaptorLayers, Architecture, BlockSpec, Refusals
from dcvit.families.staged import Stage, StagedFamily
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule


class ResnetFamily(StagedFamily):
    """ResNets of basic or bottleneck blocks, with any stem, groups, anti-aliasing and channel attention.

    Batch norms stay in evaluation mode while a student mimics its teacher, as `training.mimic` keeps every student:
    their scale and shift are trained, and the running statistics stay the teacher's.
    """

    name = "resnet"
    supported = "ResNets of timm with basic or bottleneck blocks (resnet*, resnext*, seresnet*; not resnetv2_*)"
    refuses: ClassVar[Refusals] = {
        "merges": "merging needs the tokens of a Vision Transformer, and a ResNet has none",
        "attention": "a ResNet has no attention; it loses whole blocks (removed: block)",
        "mlp_hidden": "a ResNet has no MLPs; it loses whole blocks (removed: block)",
        "head_dim": "a ResNet has no attention heads; it loses whole blocks (removed: block)",
    }
    adaptor_layers = AdaptorLayers(first=("conv1",), last=("conv3", "conv2"))

    def matches(self, model: TimmModule) -> bool:
        return isinstance(model, ResNet)

    def unsupported_reason(self, model: TimmModule) -> str | None:
        for place in self.places(model):
            if type(place.block) not in (BasicBlock, Bottleneck):
                return f"blocks of type {type(place.block).__name__}"
        return None

    def architecture(self, model: TimmModule) -> Architecture:
        """A ResNet takes images of any size, so its own is the one it was pretrained at.

        `model_kwargs` `{"pretrained_cfg_overlay": {"input_size": [3, 64, 64]}}` sets another.
        """
        _, height, width = model.pretrained_cfg["input_size"]
        stem = next(layer for layer in model.conv1.modules() if isinstance(layer, nn.Conv2d))
        grids = _grids(model)
        return Architecture(
            input_size=(stem.in_channels, height, width),
            grid=grids[0],
            num_prefix_tokens=0,
            num_classes=model.num_classes,
            blocks=tuple(
                BlockSpec(embed_dim=info["num_chs"], num_heads=0, head_dim=0, mlp_hidden=0)
                for stage, info in zip(self.stages(model), model.feature_info[1:], strict=True)
                for _ in stage.blocks
            ),
        )

    def tokens(self, model: TimmModule, plan: CompressionPlan) -> list[int]:  # noqa: ARG002 (no plan merges)
        """Positions H·W of each block's output; the first block of a stage reads more."""
        return [
            height * width
            for stage, (height, width) in zip(self.stages(model), _grids(model), strict=True)
            for _ in stage.blocks
        ]

    def units(self, model: TimmModule) -> list[tuple[int, ...]]:
        """Every block but the first of each stage, which changes width and resolution."""
        return [(place.index,) for place in self.places(model) if place.position > 0]

    def check(self, model: TimmModule, plan: CompressionPlan) -> None:
        super().check(model, plan)
        places = self.places(model)
        for entry in plan.blocks:
            if entry.removed and places[entry.index].position == 0:
                raise InputError(
                    f"plan: block {entry.index} of {plan.model} is the first of its stage, which changes width and "
                    "resolution, so it cannot be removed"
                )

    def adaptor_reach(self, model: TimmModule, unit: Sequence[int]) -> range:
        """Those of the unit's stage."""
        places = self.places(model)
        stage = [place.index for place in places if place.stage.name == places[unit[0]].stage.name]
        return range(stage[0], stage[-1] + 1)

    def stages(self, model: TimmModule) -> list[Stage]:
        names = [info["module"] for info in model.feature_info[1:]]
        return [Stage(stage, stage, name) for name in names for stage in [model.get_submodule(name)]]

    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        features = model.forward_features(images)  # [B, C, H, W]; there is no final norm
        return features.flatten(2).transpose(1, 2), model.forward_head(features)


def _grids(model: TimmModule) -> list[tuple[int, int]]:
    """The resolution (H, W) of each stage: every layer that halves it rounds up."""
    _, height, width = model.pretrained_cfg["input_size"]
    reductions = [info["reduction"] for info in model.feature_info[1:]]
    return [(math.ceil(height / reduction), math.ceil(width / reduction)) for reduction in reductions]
