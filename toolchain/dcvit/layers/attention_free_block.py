"""A transformer block without its attention (DC-ViT, arXiv 2403.18708)."""

from typing import Any

from torch import Tensor, nn

from dcvit.types import TimmModule


class AttentionFreeBlock(nn.Module):
    """`x + mlp(norm2(x))`: what is left of a pre-norm block when attention, norm1 and their residual branch go.

    It takes over the block's own modules under their own names, so the weights keep their keys.
    """

    def __init__(self, block: TimmModule) -> None:
        super().__init__()
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.ls2 = block.ls2
        self.drop_path2 = block.drop_path2

    def forward(self, x: Tensor, **_attention: Any) -> Tensor:
        """Maps tokens [B, N, C] to [B, N, C]; arguments meant for attention (masks) have nothing to act on."""
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
