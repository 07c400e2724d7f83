"""What ViT, EVA, BEiT and CaiT share: pre-norm blocks in a row, each `attn` and `mlp`, all on the same patch grid."""

import math

import torch
from torch import Tensor, nn

from dcvit.families.base import Architecture, BlockSpec, CostModules, Family, KeptNodes
from dcvit.families.images import input_size, unfit_images
from dcvit.layers import (
    AttentionFreeBlock,
    PrefixBlock,
    RemovedBlock,
    cannot_narrow,
    carry_merges,
    hidden_width,
    narrow_attention,
    narrow_mlp,
)
from dcvit.layers.token_grid import patch_grid
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule


class PlainFamily(Family):
    """Transformers with `model.blocks`.

    Attributes:
        model_class: timm's class of the models.
        block_class: The only blocks that are taken: `x + mlp(norm2(x))` is what is left of one without attention.
    """

    model_class: type[nn.Module]
    block_class: type[nn.Module]

    def matches(self, model: TimmModule) -> bool:
        return isinstance(model, self.model_class)

    def unsupported_reason(self, model: TimmModule) -> str | None:
        if reason := unfit_images(model):
            return reason
        blocks: list[TimmModule] = list(model.blocks)
        for block in blocks:
            if type(block) is not self.block_class:
                return f"blocks of type {type(block).__name__}"
            if reason := cannot_narrow(block.mlp):
                return reason
        return None

    def architecture(self, model: TimmModule) -> Architecture:
        return Architecture(
            input_size=input_size(model),
            grid=patch_grid(model),
            num_prefix_tokens=self.prefix_tokens(model),
            num_classes=model.num_classes,
            blocks=tuple(
                BlockSpec(
                    embed_dim=model.embed_dim,
                    num_heads=block.attn.num_heads,
                    head_dim=block.attn.proj.in_features // block.attn.num_heads,
                    mlp_hidden=hidden_width(block.mlp),
                )
                for block in model.blocks
            ),
        )

    def prefix_tokens(self, model: TimmModule) -> int:
        """Tokens in front of the patches, as the blocks see them."""
        return int(model.num_prefix_tokens)

    def apply(self, model: TimmModule, plan: CompressionPlan, kept: KeptNodes | None = None) -> None:
        kept = kept or {}
        device = next(model.parameters()).device
        for entry in plan.blocks:
            block = model.blocks[entry.index]
            if entry.removed == "block":
                model.blocks[entry.index] = carry_merges(block, RemovedBlock())
                continue
            if entry.mlp_hidden is not None:
                nodes = kept.get(entry.index, torch.arange(entry.mlp_hidden))
                narrow_mlp(block.mlp, nodes.to(device))
            if entry.head_dim is not None:
                channels = torch.arange(entry.head_dim, device=device).expand(block.attn.num_heads, -1)
                narrow_attention(block.attn, channels)
            if entry.removed == "attention":
                model.blocks[entry.index] = carry_merges(block, _without_attention(block))

    def tokens(self, model: TimmModule, plan: CompressionPlan) -> list[int]:  # noqa: ARG002 (where no plan merges)
        return [self.prefix_tokens(model) + math.prod(patch_grid(model))] * len(model.blocks)

    def cost_modules(self, model: TimmModule, index: int) -> CostModules:  # noqa: ARG002 (all models alike)
        return CostModules((f"blocks.{index}.norm1", f"blocks.{index}.attn"), (f"blocks.{index}.mlp",))

    def blocks(self, model: TimmModule) -> list[TimmModule]:
        return list(model.blocks)

    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.forward_features(images)
        # With average pooling timm moves the final norm behind the pool; a layer norm acts on each token alone, so
        # it can stand in front of it too, and the features are normalised for every kind of head.
        return model.fc_norm(tokens), model.forward_head(tokens)

    def tv_exponent(self, model: TimmModule) -> float:
        """0.6 for a ViT and 1 for the others; a DeiT is a ViT but for its training, so timm's name has to tell."""
        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or ""
        return 0.6 if name.startswith("vit") else 1.0

    def merge_tokens(self, model: TimmModule, plan: CompressionPlan, tokens: Tensor) -> Tensor:  # noqa: ARG002
        return tokens  # `check` lets no plan merge them, but a ViT's

    def train_up_to(self, model: TimmModule, last_block: int) -> None:
        model.requires_grad_(True)
        for block in model.blocks[last_block + 1 :]:
            block.requires_grad_(False)
        for name in ("head", "head_dist", "attn_pool", "blocks_token_only"):
            if isinstance(head := getattr(model, name, None), nn.Module):
                head.requires_grad_(False)


def _without_attention(block: TimmModule) -> nn.Module:
    free = AttentionFreeBlock(block)
    return PrefixBlock(free, block.num_prefix_tokens) if isinstance(block, PrefixBlock) else free
