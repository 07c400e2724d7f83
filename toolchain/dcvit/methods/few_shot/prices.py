"""What the cuts of a block save in milliseconds, as the solver asks."""

from dataclasses import dataclass

from dcvit.plan import CompressionPlan
from dcvit.pricing.table import BlockTimes, LatencyTable


@dataclass(frozen=True)
class BlockPrice:
    """The price of a block's cuts, in one runtime.

    Attributes:
        times: What such a block costs.
        tokens: That it works on.
        scale: By which sums of the table are corrected.
    """

    times: BlockTimes
    tokens: int
    scale: float

    @classmethod
    def of(cls, table: LatencyTable, base: CompressionPlan, block: int, tokens: int) -> "BlockPrice":
        """The price of a base plan's block; a trimmed last one costs next to nothing, and its cuts save as little."""
        last = max(index for group in table.groups for index in group.blocks)
        nothing = base.trims_last_block and block == last
        return cls(table.group(block), tokens, 0.0 if nothing else table.scale)

    def attention(self, head_dim: int, whole: int) -> float:  # noqa: ARG002 (the table knows the whole)
        """Saved where heads keep `head_dim` channels; with 0, where attention goes."""
        if not head_dim:
            return self.scale * self.times.saved("attention", 0, self.tokens)
        return self.scale * self.times.saved("heads", head_dim, self.tokens)

    def mlp(self, hidden: int, whole: int) -> float:  # noqa: ARG002
        """Saved where the MLP keeps `hidden` nodes."""
        return self.scale * self.times.saved("mlp", hidden, self.tokens)

    def block(self) -> float:
        """Saved where the block goes."""
        return self.scale * self.times.saved("block", 0, self.tokens)
