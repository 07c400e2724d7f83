"""What stands where a block was."""

from typing import Any

from torch import Tensor, nn


class RemovedBlock(nn.Module):
    """The identity; positions and masks that the model hands to its blocks have nothing to act on."""

    def forward(self, x: Tensor, **_attention: Any) -> Tensor:
        """Returns the tokens [B, N, C]."""
        return x
