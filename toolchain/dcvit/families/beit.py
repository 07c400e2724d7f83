"""timm's `Beit` (arXiv 2106.08254): beit_*, beitv2_*, with relative position biases."""

from typing import Any, ClassVar

from timm.models.beit import Beit, Block

from dcvit.families.base import Refusals
from dcvit.families.plain import PlainFamily
from dcvit.types import TimmModule


class BeitFamily(PlainFamily):
    """BEiT and BEiT v2."""

    name = "beit"
    supported = "BEiT models of timm (beit_*, beitv2_*)"
    refuses: ClassVar[Refusals] = {
        "merges": "merging is for models that add positions to the tokens (vit_*, deit_*); here they are in attention",
        "head_dim": "the heads of a BEiT model keep their width",
    }
    model_class, block_class = Beit, Block

    def block_arguments(self, model: TimmModule) -> dict[str, Any]:
        return {"shared_rel_pos_bias": None if model.rel_pos_bias is None else model.rel_pos_bias()}
