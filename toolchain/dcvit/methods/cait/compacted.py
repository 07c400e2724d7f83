"""One attention or MLP behind which a compactor stands: its masks, what its units matter, and how it folds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcvit.layers.compactor import CompactedLinear
from dcvit.layers.narrow import narrow_attention, narrow_mlp
from dcvit.methods.cait.prunable import PrunableLayer
from dcvit.types import TimmModule

SENSITIVITY_DECAY = 0.98
"""Of the running mean of squared gate gradients: it looks back over some fifty steps."""

TINY = 1e-12


@dataclass
class CompactedLayer:
    """A layer of a block, whose compactor has one row for each channel of q, k and v, or for each hidden node.

    Masks are for parts: q and k, whose channels meet in a product, are the first part of an attention and v is the
    second; an MLP is one part of one head. The blocks that methods take may be the student's, or those of a copy.

    Attributes:
        mask: [parts, heads, width], True where rows are to vanish.
        sensitivity: [parts, heads, width], mean squared gradient of a gate on a unit whose rows have norm 1.
    """

    layer: PrunableLayer
    mask: Tensor
    sensitivity: Tensor

    @classmethod
    def attach(cls, layer: PrunableLayer, block: TimmModule) -> "CompactedLayer":
        """Puts an identity compactor into the block, in place."""
        if layer.kind == "head_dim":
            shape = (2, block.attn.num_heads, layer.width)
            block.attn.qkv = CompactedLinear(block.attn.qkv, 3 * block.attn.num_heads)
        else:
            shape = (1, 1, layer.width)
            block.mlp.fc1 = CompactedLinear(block.mlp.fc1)
        return cls(layer, torch.zeros(shape, dtype=torch.bool), torch.zeros(shape))

    @property
    def name(self) -> str:
        return f"blocks.{self.layer.block}.{self.layer.kind}"

    @property
    def width(self) -> int:
        """Units that are not masked."""
        return self.layer.width - int(self.mask[0, 0].sum())

    def linear(self, block: TimmModule) -> CompactedLinear:
        """The compacted layer of the block."""
        layer = block.attn.qkv if self.layer.kind == "head_dim" else block.mlp.fc1
        assert isinstance(layer, CompactedLinear)
        return layer

    def rows(self, compactor: Tensor) -> Tensor:
        """A compactor, or its gradient, as [members, heads, width, width]: q, k and v, or the nodes alone."""
        return compactor.unflatten(0, (len(self._part_of), -1))

    def masked(self) -> Tensor:
        """The mask for the rows of the compactor, [members, heads, width, 1]."""
        return self.mask[self._part_of].unsqueeze(-1)

    @torch.no_grad()
    def note_and_drop_gradients(self, block: TimmModule) -> None:
        """Learns from the gradients how much each unit matters, then drops those of masked rows."""
        compactor = self.linear(block).compactor
        if compactor.grad is None:
            return
        self.mask, self.sensitivity = self.mask.to(compactor.device), self.sensitivity.to(compactor.device)
        rows, gradient = self.rows(compactor), self.rows(compactor.grad)
        # Scaling the q row of a channel, its k row, or their product is one and the same gate.
        gates = torch.stack([part[0] for part in self._by_part((rows * gradient).sum(-1))])
        found = (gates / self._sizes(compactor).clamp_min(TINY)).to(self.sensitivity) ** 2
        self.sensitivity = self.sensitivity.lerp(found, 1 - SENSITIVITY_DECAY)
        gradient.masked_fill_(self.masked(), 0.0)

    @torch.no_grad()
    def shrink(self, block: TimmModule, by: float, vanish_norm: float) -> None:
        """Takes `by` off the norm of every masked row, and zeroes those of which no more than `vanish_norm` is left."""
        compactor = self.linear(block).compactor
        self.mask = self.mask.to(compactor.device)
        rows = self.rows(compactor)
        norms = rows.norm(dim=-1, keepdim=True)
        factor = torch.where(norms - by > vanish_norm, (norms - by) / norms.clamp_min(TINY), 0.0)
        rows.mul_(torch.where(self.masked(), factor, 1.0))

    @torch.no_grad()
    def importance(self, block: TimmModule) -> Tensor:
        """Fisher information of a gate on each unit as long as it is now, [parts, heads, width]."""
        sizes = self._sizes(self.linear(block).compactor)
        return sizes**2 * self.sensitivity.to(sizes)

    @torch.no_grad()
    def weight_norms(self, block: TimmModule) -> Tensor:
        """What stands in for importance before the first gradient: squared norms of the map through each unit.

        Blocks cannot be compared by them, so a layer's are shares of what the layer costs: [parts, heads, width].
        """
        heads, width = self.mask.shape[1:]
        weight, _ = self.linear(block).product()
        inward = weight.square().sum(-1).view(-1, heads, width)
        out = block.attn.proj.weight if self.layer.kind == "head_dim" else block.mlp.fc2.weight
        found = torch.stack([part.prod(0) for part in self._by_part(inward)])
        found[-1] *= out.square().sum(0).view(heads, width)  # q and k meet only each other
        return found / found.sum((1, 2), keepdim=True) * (self.layer.macs * width / len(found))

    @torch.no_grad()
    def fold(self, block: TimmModule) -> float:
        """Puts a plain narrow layer in place of the compacted one; returns the largest norm of a row that it cut."""
        linear = self.linear(block)
        norms = self.rows(linear.compactor).norm(dim=-1, keepdim=True)
        mask = self.mask.to(norms.device)
        kept = (~mask).nonzero()[:, -1].view(*mask.shape[:2], -1)
        if self.layer.kind == "head_dim":
            block.attn.qkv = linear.folded()
            narrow_attention(block.attn, *kept)
        else:
            block.mlp.fc1 = linear.folded()
            narrow_mlp(block.mlp, kept[0, 0])
        return float((norms * mask[self._part_of].unsqueeze(-1)).max())

    @property
    def _part_of(self) -> list[int]:
        """The part of the mask that each member of the compactor belongs to."""
        return [0, 0, 1] if self.layer.kind == "head_dim" else [0]

    def _by_part(self, of_members: Tensor) -> tuple[Tensor, ...]:
        """Groups [members, heads, width] by the parts of the mask."""
        return of_members.split([2, 1] if self.layer.kind == "head_dim" else [1])

    def _sizes(self, compactor: Tensor) -> Tensor:
        """[parts, heads, width]: norms of the rows; for q and k their product, which is all that attention sees."""
        return torch.stack([part.prod(0) for part in self._by_part(self.rows(compactor).norm(dim=-1))])
