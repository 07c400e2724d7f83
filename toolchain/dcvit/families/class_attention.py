"""timm's `Cait` (arXiv 2103.17239): cait_*, whose class token comes in behind the blocks, in class-attention layers."""

from typing import ClassVar

from timm.models.cait import Cait, LayerScaleBlock
from torch import Tensor

from dcvit.families.base import Refusals
from dcvit.families.plain import PlainFamily
from dcvit.types import TimmModule


class ClassAttentionFamily(PlainFamily):
    """CaiT; the class-attention layers behind the blocks stay as they are."""

    name = "class-attention"
    supported = "CaiT models of timm (cait_*)"
    refuses: ClassVar[Refusals] = {
        "merges": "merging is for models whose blocks carry the class token along (vit_*, deit_*)",
        "head_dim": "the heads of a CaiT model keep their width, for they talk to each other",
    }
    model_class, block_class = Cait, LayerScaleBlock

    def prefix_tokens(self, model: TimmModule) -> int:  # noqa: ARG002 (all models alike)
        return 0

    def features_and_logits(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = model.forward_features(images)
        return tokens, model.forward_head(tokens)
