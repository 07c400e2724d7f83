"""timm's `VisionTransformer`: vit_*, deit_*, deit3_*, with any prefix tokens, pooling and LayerScale."""

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import dcvit_kernels
from dcvit.dense import SegmentationVit
from dcvit.families.base import Architecture, BlockSpec, CostModules, Family, KeptNodes
from dcvit.layers import (
    AttentionFreeBlock,
    TokenMerge,
    attach_merge,
    attach_size_bias,
    carry_merges,
    narrow_attention,
    narrow_mlp,
)
from dcvit.layers.token_grid import TokenGrid, grids
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule


class VitFamily(Family):
    """Pre-norm Vision Transformers made of timm's plain blocks."""

    name = "vit"
    supported = "Vision Transformers of timm with plain pre-norm blocks (vit_*, deit_*, deit3_*)"

    def matches(self, model: TimmModule) -> bool:
        return isinstance(model, VisionTransformer)

    def unsupported_reason(self, model: TimmModule) -> str | None:
        for block in model.blocks:
            if type(block) is not Block:
                return f"blocks of type {type(block).__name__}"
            if type(block.attn) is not Attention:
                return f"attention of type {type(block.attn).__name__}"
            # Older timm, which we support, has no gate.
            if getattr(block.attn, "gate", None) is not None or not isinstance(block.attn.norm, nn.Identity):
                return "gated or normalised attention output"
            if type(block.mlp) is not Mlp:
                return f"MLPs of type {type(block.mlp).__name__}"
            if not isinstance(block.mlp.norm, nn.Identity):
                return "a norm inside the MLP"
        return None

    def architecture(self, model: TimmModule) -> Architecture:
        patch_embed = model.patch_embed
        return Architecture(
            input_size=(patch_embed.proj.in_channels, *patch_embed.img_size),
            grid=patch_embed.grid_size,
            num_prefix_tokens=model.num_prefix_tokens,
            num_classes=model.num_classes,
            blocks=tuple(
                BlockSpec(model.embed_dim, block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features)
                for block in model.blocks
            ),
        )

    def apply(self, model: TimmModule, plan: CompressionPlan, kept: KeptNodes | None = None) -> None:
        kept = kept or {}
        device = next(model.parameters()).device
        for entry in plan.blocks:
            block = model.blocks[entry.index]
            if entry.removed == "block":
                model.blocks[entry.index] = carry_merges(block, nn.Identity())
                continue
            if entry.mlp_hidden is not None:
                nodes = kept.get(entry.index, torch.arange(entry.mlp_hidden))
                narrow_mlp(block.mlp, nodes.to(device))
            if entry.head_dim is not None:
                channels = torch.arange(entry.head_dim, device=device).expand(block.attn.num_heads, -1)
                narrow_attention(block.attn, channels)
            if entry.removed == "attention":
                model.blocks[entry.index] = carry_merges(block, AttentionFreeBlock(block))
        if plan.merges:
            self._attach_merges(model, plan, device)

    def _attach_merges(self, model: TimmModule, plan: CompressionPlan, device: torch.device) -> None:
        prefix = model.num_prefix_tokens
        for index, grid in enumerate(grids(model.patch_embed.grid_size, plan.merges, len(model.blocks))):
            block = model.blocks[index]
            if plan.size_aware_attention and isinstance(block, Block) and max(grid.sizes) > 1:
                attach_size_bias(block.attn, torch.tensor((1,) * prefix + grid.sizes, device=device))
            for merge in plan.merges:
                if merge.after == index + 1:
                    layer = TokenMerge(model.embed_dim, grid.shape, merge.axis, prefix, plan.merge_operator)
                    attach_merge(block, layer.to(device))
                    grid = grid.merged(merge.axis)

    def tokens(self, model: TimmModule, plan: CompressionPlan) -> list[int]:
        before = grids(model.patch_embed.grid_size, plan.merges, len(model.blocks))
        return [model.num_prefix_tokens + len(grid.sizes) for grid in before]

    def cost_modules(self, model: TimmModule, index: int) -> CostModules:  # noqa: ARG002 (all models alike)
        return CostModules((f"blocks.{index}.norm1", f"blocks.{index}.attn"), (f"blocks.{index}.mlp",))

    def block(self, model: TimmModule, index: int) -> TimmModule:
        return model.blocks[index]

    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(model, SegmentationVit):
            return model.features_and_logits(images)
        tokens = model.forward_features(images)
        # With average pooling timm moves the final norm behind the pool; a layer norm acts on each token alone, so
        # it can stand in front of it too, and the features are normalised for every kind of head.
        return model.fc_norm(tokens), model.forward_head(tokens)

    def merge_tokens(self, model: TimmModule, plan: CompressionPlan, tokens: Tensor) -> Tensor:
        grid = TokenGrid.unmerged(model.patch_embed.grid_size)
        for merge in plan.merges:
            tokens = dcvit_kernels.merge_mean(tokens, grid.shape, merge.axis, model.num_prefix_tokens)
            grid = grid.merged(merge.axis)
        return tokens

    def train_up_to(self, model: TimmModule, last_block: int) -> None:
        model.requires_grad_(True)
        for block in model.blocks[last_block + 1 :]:
            block.requires_grad_(False)
        for name in ("head", "head_dist", "attn_pool"):
            if isinstance(head := getattr(model, name, None), nn.Module):
                head.requires_grad_(False)
