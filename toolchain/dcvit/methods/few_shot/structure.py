"""How many blocks DC-ViT compresses and how wide their MLPs stay, from a target in MACs (arXiv 2403.18708)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dcvit.cost import MacCount
from dcvit.families import Family
from dcvit.methods.target import Reach
from dcvit.types import TimmModule


@dataclass(frozen=True)
class UnitCost:
    """What compressing a unit (a block, or a group of blocks that go together) can save: MACs, or milliseconds.

    Attributes:
        removed: Saved as a whole: attention, or entire blocks.
        narrowed: Saved in proportion to the MLP's width; 0 where entire blocks go.
        heads: Saved in proportion to the channels of the heads; 0 where these keep their width.
    """

    removed: float
    narrowed: float
    heads: float = 0.0

    def attention(self, head_dim: int, whole: int) -> float:
        """Saved where heads of `whole` channels keep `head_dim`; with 0, where attention goes."""
        return self.heads * (1 - head_dim / whole) if head_dim else self.removed

    def mlp(self, hidden: int, whole: int) -> float:
        """Saved where an MLP of `whole` nodes keeps `hidden`."""
        return self.narrowed * (1 - hidden / whole)

    def block(self) -> float:
        """Saved where the whole block goes."""
        return self.removed + self.narrowed


@dataclass(frozen=True)
class Structure:
    """k units are compressed, and keep `mlp_hidden` (M') MLP nodes a block; None where entire blocks go."""

    units: int
    mlp_hidden: int | None


def unit_cost(count: MacCount, family: Family, model: TimmModule, unit: Sequence[int]) -> UnitCost:
    """What a unit of a counted model costs."""
    modules = [family.cost_modules(model, index) for index in unit]
    return UnitCost(
        removed=sum(count.under(module.removed) for module in modules),
        narrowed=sum(count.under(module.narrowed) for module in modules),
        heads=sum(count.under(module.heads) for module in modules),
    )


def solve_structure(
    costs: Sequence[UnitCost], hidden: int, macs: float, total: float, multiple: int, saved: float = 0
) -> Structure:
    """The fewest units that reach a reduction, and the width that meets it.

    Args:
        costs: Of the candidate units. Where they differ, their mean decides; the width is solved again for the units
            that the trials choose.
        hidden: MLP width M of an uncompressed block.
        macs: MACs to remove, R.
        total: MACs of the original model, for the message.
        multiple: M' is a multiple of this (1 reproduces the paper).
        saved: MACs that are removed already, for the message.

    Raises:
        InputError: If the reduction is out of reach; the message gives the range.
    """
    mean = UnitCost(sum(cost.removed for cost in costs) / len(costs), sum(cost.narrowed for cost in costs) / len(costs))
    if macs >= mean.removed * (1 - 1e-9) or not mean.narrowed:
        first = max(1, math.ceil(macs / (mean.removed + mean.narrowed) - 1e-9))
        for units in range(first, len(costs) + 1):
            if not mean.narrowed:
                return Structure(units, None)
            width = solve_width([mean] * units, hidden, macs, multiple)
            if width is not None:
                return Structure(units, width)
    most = len(costs) * (mean.removed + mean.narrowed * (1 - multiple / hidden if mean.narrowed else 0))
    reach = Reach((saved + mean.removed) / total, (saved + most) / total)
    raise reach.refusal((saved + macs) / total, f"compressing 1 to {len(costs)} blocks")


def solve_width(costs: Sequence[UnitCost], hidden: int, macs: float, multiple: int) -> int | None:
    """The MLP width at which these units together save `macs`, rounded down; None if no width does."""
    removed, narrowed = sum(cost.removed for cost in costs), sum(cost.narrowed for cost in costs)
    # A hundredth of a node absorbs the rounding of a target that was written as a decimal fraction.
    width = math.floor(hidden * (1 - (macs - removed) / narrowed) + 0.01)
    if width >= hidden:
        return hidden
    width -= width % multiple
    return width if width > 0 else None
