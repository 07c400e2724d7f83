"""timm's Swin Transformers (arXiv 2103.14030, 2111.09883): swin_*, swinv2_*; DC-ViT removes whole blocks in pairs."""

from itertools import pairwise
from typing import Any, ClassVar

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from dcvit.families.base import AdaptorLayers, Architecture, BlockSpec, Refusals
from dcvit.families.images import input_size
from dcvit.families.staged import Stage, StagedFamily
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule


class SwinFamily(StagedFamily):
    """Swin Transformers of the first version."""

    name = "swin"
    supported = "Swin Transformers of timm (swin_*)"
    refuses: ClassVar[Refusals] = {
        "merges": "merging needs a plain token grid, and the tokens of a Swin Transformer attend in shifted windows",
        "attention": "a Swin Transformer loses whole blocks, in pairs (removed: block)",
        "head_dim": "the heads of a Swin Transformer keep their width",
    }
    adaptor_layers: ClassVar[AdaptorLayers | None] = AdaptorLayers(first=("attn.qkv",), last=("mlp.fc2",))

    model_class: type[nn.Module] = SwinTransformer
    block_class: type[nn.Module] = SwinTransformerBlock

    def matches(self, model: TimmModule) -> bool:
        return isinstance(model, self.model_class)

    def unsupported_reason(self, model: TimmModule) -> str | None:
        for place in self.places(model):
            block = place.block
            if type(block) is not self.block_class:
                return f"blocks of type {type(block).__name__}"
            if block.dynamic_mask:
                return "attention masks made for each input (dynamic_img_size)"
        return None

    def architecture(self, model: TimmModule) -> Architecture:
        blocks = [place.block for place in self.places(model)]
        return Architecture(
            input_size=input_size(model),
            grid=model.patch_embed.grid_size,
            num_prefix_tokens=0,
            num_classes=model.num_classes,
            blocks=tuple(
                BlockSpec(
                    embed_dim=block.dim,
                    num_heads=block.attn.num_heads,
                    head_dim=block.attn.proj.in_features // block.attn.num_heads,
                    mlp_hidden=block.mlp.fc1.out_features,
                )
                for block in blocks
            ),
        )

    def tokens(self, model: TimmModule, plan: CompressionPlan) -> list[int]:  # noqa: ARG002 (no plan merges)
        resolutions = [place.block.input_resolution for place in self.places(model)]
        return [height * width for height, width in resolutions]

    def units(self, model: TimmModule) -> list[tuple[int, ...]]:
        """Pairs of a plain and a shifted block, which exchange information between windows only together.

        The first pair of each stage stays, because it is what adapts to the new width and resolution [choice], and so
        do the first and the last block of the model.
        """
        places = self.places(model)
        return [
            (first.index, second.index)
            for first, second in pairwise(places[:-1])
            if first.stage is second.stage and first.position > 0 and first.position % 2 == 0
        ]

    def stages(self, model: TimmModule) -> list[Stage]:
        return [Stage(stage, stage.blocks, f"layers.{index}.blocks") for index, stage in enumerate(model.layers)]

    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        features = model.forward_features(images)  # [B, H, W, C], after the final norm
        return features.flatten(1, 2), model.forward_head(features)

    def constructor_arguments(self, model: TimmModule) -> dict[str, Any]:
        stages = [stage.blocks for stage in self.stages(model)]
        first = stages[0][0]
        # timm clips windows to the resolution; where it clips those of the first stage, it does so in every later one,
        # and the clipped size builds the same model.
        height, width = getattr(first, "window_size", (None, None))
        return {
            "depths": [len(blocks) for blocks in stages],
            "num_heads": [getattr(getattr(blocks[0], "attn", None), "num_heads", None) for blocks in stages],
            "mlp_ratio": getattr(first, "mlp_ratio", None),
            "window_size": height if height == width else (height, width),
            "always_partition": getattr(first, "always_partition", None),
        }


class SwinV2Family(SwinFamily):
    """Swin Transformers of the second version: norms behind attention and MLP, and logits that are cosines."""

    name = "swinv2"
    supported = "Swin Transformers V2 of timm (swinv2_*; not swinv2_cr_*)"
    model_class, block_class = SwinTransformerV2, SwinTransformerV2Block
    adaptor_layers = None  # its attention uses the weights of qkv without calling the layer
