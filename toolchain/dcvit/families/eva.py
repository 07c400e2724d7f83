"""timm's `Eva` (arXiv 2303.11331): eva_*, eva02_*, vit_*_dinov3, …, most of them with rotary position embeddings."""

from typing import Any, ClassVar

from timm.models.eva import Eva, EvaBlock

from dcvit.families.base import Refusals
from dcvit.families.plain import PlainFamily
from dcvit.layers.token_grid import patch_grid
from dcvit.types import TimmModule


class EvaFamily(PlainFamily):
    """EVA, EVA-02 and DINOv3 models of pre-norm blocks, with plain or gated MLPs and any position embedding."""

    name = "eva"
    supported = "EVA, EVA-02 and DINOv3 models of timm without a norm inside the MLP (eva02_tiny_*, vit_*_dinov3)"
    refuses: ClassVar[Refusals] = {
        "merges": "merging is for models that add positions to the tokens (vit_*, deit_*); here they are in attention",
        "head_dim": "the heads of an EVA or DINOv3 model keep their width, which its rotary embedding is made for",
    }
    model_class, block_class = Eva, EvaBlock

    def unsupported_reason(self, model: TimmModule) -> str | None:
        if model.rope_mixed:
            return "rotary embeddings that differ from block to block"
        return super().unsupported_reason(model)

    def block_arguments(self, model: TimmModule) -> dict[str, Any]:
        if model.rope is None:
            return {"rope": None}
        # Made beforehand for the model's grid, or, with `dynamic_img_size`, for that of each input.
        made = getattr(model.rope, "feat_shape", None) is not None
        return {"rope": model.rope.get_embed(shape=None if made else patch_grid(model))}
