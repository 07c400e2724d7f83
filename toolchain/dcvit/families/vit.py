"""timm's `VisionTransformer`: vit_*, deit_*, deit3_*, with any prefix tokens, pooling and LayerScale."""

import logging
import math
from dataclasses import replace

import torch
from timm.layers import Attention, resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import dcvit_kernels
from dcvit.dense import SegmentationVit
from dcvit.families.base import AdaptorLayers, CostModules, KeptNodes
from dcvit.families.plain import PlainFamily
from dcvit.layers import PrefixBlock, TokenMerge, attach_merge, attach_size_bias, can_narrow_heads
from dcvit.layers.token_grid import TokenGrid, grids, patch_grid
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule

log = logging.getLogger(__name__)


class VitFamily(PlainFamily):
    """Pre-norm Vision Transformers made of timm's plain blocks."""

    name = "vit"
    supported = "Vision Transformers of timm with plain pre-norm blocks (vit_*, deit_*, deit3_*)"
    model_class, block_class = VisionTransformer, Block
    adaptor_layers = AdaptorLayers(first=("attn.qkv",), last=("mlp.fc2",))
    cannot_prune = None

    def unsupported_reason(self, model: TimmModule) -> str | None:
        if reason := super().unsupported_reason(model):
            return reason
        for block in model.blocks:
            if type(block.attn) is not Attention:
                return f"attention of type {type(block.attn).__name__}"
            # Older timm, which we support, has no gate.
            if getattr(block.attn, "gate", None) is not None or not isinstance(block.attn.norm, nn.Identity):
                return "gated or normalised attention output"
        return None

    def apply(self, model: TimmModule, plan: CompressionPlan, kept: KeptNodes | None = None) -> None:
        super().apply(model, plan, kept)
        prefix, device = model.num_prefix_tokens, next(model.parameters()).device
        if plan.trims_last_block:
            model.blocks[-1] = PrefixBlock(model.blocks[-1], prefix)
        if not plan.merges:
            return
        for index, grid in enumerate(grids(patch_grid(model), plan.merges, len(model.blocks))):
            block = model.blocks[index]
            if plan.size_aware_attention and hasattr(block, "attn") and max(grid.sizes) > 1:
                attach_size_bias(block.attn, torch.tensor((1,) * prefix + grid.sizes, device=device))
            for merge in plan.merges:
                if merge.after == index + 1:
                    layer = TokenMerge(model.embed_dim, grid.shape, merge.axis, prefix, plan.merge_operator)
                    attach_merge(block, layer.to(device))
                    grid = grid.merged(merge.axis)

    def cost_modules(self, model: TimmModule, index: int) -> CostModules:
        modules = super().cost_modules(model, index)
        attention = f"blocks.{index}.attn"
        return replace(modules, heads=(attention,) if can_narrow_heads(model.get_submodule(attention)) else ())

    def cannot_trim(self, model: TimmModule) -> str | None:
        dense = isinstance(model, SegmentationVit)
        if model.attn_pool is None and model.global_pool == "token" and model.num_prefix_tokens and not dense:
            return None
        return "its head reads the patch tokens too, so all of them are needed up to the end"

    def tokens(self, model: TimmModule, plan: CompressionPlan) -> list[int]:
        before = grids(patch_grid(model), plan.merges, len(model.blocks))
        return [model.num_prefix_tokens + len(grid.sizes) for grid in before]

    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(model, SegmentationVit):
            return model.features_and_logits(images)
        return super().features_and_logits(model, images)

    def fit_positions(self, model: TimmModule, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resamples a position embedding that differs from the model's in size alone, and takes its grid for square."""
        positions = state.get("pos_embed")
        if model.pos_embed is None or positions is None:
            return state
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        side = math.isqrt(max(0, positions.shape[1] - prefix))
        same_width = positions.shape[-1] == model.pos_embed.shape[-1]
        if positions.shape == model.pos_embed.shape or not same_width or side**2 != positions.shape[1] - prefix:
            return state
        height, width = model.patch_embed.grid_size
        log.warning("the checkpoint's %d×%d positions are resampled to %d×%d", side, side, height, width)
        resampled = resample_abs_pos_embed(
            positions, new_size=(height, width), old_size=(side, side), num_prefix_tokens=prefix
        )
        return state | {"pos_embed": resampled}

    def merge_tokens(self, model: TimmModule, plan: CompressionPlan, tokens: Tensor) -> Tensor:
        if tokens.shape[1] == model.num_prefix_tokens:  # behind a last block that leaves out the rest
            return tokens
        grid = TokenGrid.unmerged(patch_grid(model))
        for merge in plan.merges:
            tokens = dcvit_kernels.merge_mean(tokens, grid.shape, merge.axis, model.num_prefix_tokens)
            grid = grid.merged(merge.axis)
        return tokens
