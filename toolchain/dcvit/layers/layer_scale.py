"""LayerScale (arXiv 2103.17239), which timm keeps in a module in some blocks and in a bare parameter in others."""

from timm.layers import LayerScale
from torch import Tensor

from dcvit.types import TimmModule


def mlp_scale(block: TimmModule) -> Tensor | None:
    """What a block multiplies its MLP's output by, [C]; None for a block without LayerScale."""
    if hasattr(block, "ls2"):
        return block.ls2.gamma if isinstance(block.ls2, LayerScale) else None
    return getattr(block, "gamma_2", None)
