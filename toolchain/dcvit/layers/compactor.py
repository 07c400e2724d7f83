"""Compactors: a square matrix behind a linear layer, through which training narrows the layer (ResRep, 2007.03260)."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CompactedLinear(nn.Linear):
    """A linear layer with a compactor Q behind it, the identity at first: `x ↦ Q(Wx + b)`.

    It is computed as (QW)x + Qb, which is the same map: with many more tokens than channels, multiplying the weights
    is far cheaper than a second layer, and it is the very product that folding leaves behind.

    Args:
        linear: Its parameters are taken over, under their own names.
        groups: Q is block-diagonal with this many equal blocks: [groups, width, width].
    """

    def __init__(self, linear: nn.Linear, groups: int = 1) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        width = linear.out_features // groups
        self.compactor = nn.Parameter(torch.eye(width).to(linear.weight).repeat(groups, 1, 1))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        weight, bias = self.product()
        return F.linear(input, weight, bias)

    def product(self) -> tuple[Tensor, Tensor | None]:
        """QW and Qb, in the precision of the weights, under autocast too."""
        groups, device = len(self.compactor), self.weight.device.type
        available = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if available else nullcontext():
            weight = torch.bmm(self.compactor, self.weight.unflatten(0, (groups, -1))).flatten(0, 1)
            bias: Tensor | None = self.bias
            if bias is not None:
                bias = torch.bmm(self.compactor, bias.view(groups, -1, 1)).flatten()
        return weight, bias

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """A plain layer that computes the same."""
        weight, bias = self.product()
        plain = nn.Linear(self.in_features, self.out_features, bias=bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        if bias is not None:
            plain.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)
        return plain
