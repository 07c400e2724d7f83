"""A transformer block without its attention (DC-ViT, arXiv 2403.18708)."""

from typing import Any

from torch import Tensor, nn

from dcvit.layers.layer_scale import mlp_scale
from dcvit.types import TimmModule


class AttentionFreeBlock(nn.Module):
    """`x + mlp(norm2(x))`: what is left of a pre-norm block when attention, norm1 and their residual branch go.

    It takes over the block's own modules under their own names, so the weights keep their keys.
    """

    def __init__(self, block: TimmModule) -> None:
        super().__init__()
        self.norm2 = block.norm2
        self.mlp = block.mlp
        if hasattr(block, "ls2"):
            self.ls2 = block.ls2
        else:
            self.gamma_2 = block.gamma_2
        self.drop_path2 = block.drop_path2 if hasattr(block, "drop_path2") else block.drop_path

    def forward(self, x: Tensor, **_attention: Any) -> Tensor:
        """Maps tokens [B, N, C] to [B, N, C]; arguments meant for attention (masks) have nothing to act on."""
        branch, scale = self.mlp(self.norm2(x)), mlp_scale(self)
        return x + self.drop_path2(branch if scale is None else branch * scale)
