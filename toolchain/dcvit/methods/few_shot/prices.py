"""What the cuts of a block save in milliseconds, as the solver asks."""

from dataclasses import dataclass

from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.pricing.table import BlockTimes, LatencyTable


@dataclass(frozen=True)
class BlockPrice:
    """The price of a block's cuts, in one runtime; a block that was cut before saves what it still has to lose.

    Attributes:
        times: What such a block costs when nothing is cut.
        now: What is cut of it already.
        tokens: That it works on.
        scale: By which sums of the table are corrected.
    """

    times: BlockTimes
    now: BlockPlan
    tokens: int
    scale: float

    @classmethod
    def of(cls, table: LatencyTable, base: CompressionPlan, block: int, tokens: int) -> "BlockPrice":
        """The price of a base plan's block; a trimmed last one costs next to nothing, and its cuts save as little."""
        last = max(index for group in table.groups for index in group.blocks)
        nothing = base.trims_last_block and block == last
        return cls(table.group(block), base.block(block), tokens, 0.0 if nothing else table.scale)

    def attention(self, head_dim: int, whole: int) -> float:
        """Saved where heads of `whole` channels keep `head_dim`; with 0, where attention goes."""
        kept = self.times.saved("heads", head_dim, self.tokens) if head_dim else None
        gone = self.times.saved("attention", 0, self.tokens)
        return self.scale * ((gone if kept is None else kept) - self.times.saved("heads", whole, self.tokens))

    def mlp(self, hidden: int, whole: int) -> float:
        """Saved where an MLP of `whole` nodes keeps `hidden`."""
        return self.scale * (self.times.saved("mlp", hidden, self.tokens) - self.times.saved("mlp", whole, self.tokens))

    def block(self) -> float:
        """Saved where the block goes."""
        return self.scale * (self.times.saved("block", 0, self.tokens) - self.times.saved_by(self.now, self.tokens))
