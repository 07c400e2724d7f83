"""How many blocks DC-ViT compresses and how wide their MLPs stay, from a target in MACs (arXiv 2403.18708)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dcvit.cost import MacCount
from dcvit.errors import InputError
from dcvit.families import Family


@dataclass(frozen=True)
class BlockCost:
    """MACs of a block that compression can save: all of its attention, and its MLP in proportion to the width."""

    attention: float
    mlp: float


@dataclass(frozen=True)
class Structure:
    """k blocks lose their attention and keep `mlp_hidden` (M') MLP nodes each."""

    blocks: int
    mlp_hidden: int


def block_costs(count: MacCount, family: Family, depth: int) -> list[BlockCost]:
    """What each block of a counted model costs."""
    return [
        BlockCost(count.under(family.attention_modules(index)), count.under(family.mlp_modules(index)))
        for index in range(depth)
    ]


def candidates(depth: int) -> range:
    """Blocks that may be compressed: never the first, never the last."""
    return range(1, depth - 1)


def solve_structure(costs: Sequence[BlockCost], hidden: int, macs: float, total: int, multiple: int) -> Structure:
    """The fewest blocks that reach a reduction, and the width that meets it.

    Args:
        costs: Of the candidate blocks. Where merging makes them differ, their mean decides; the width is solved again
            for the blocks that the trials choose.
        hidden: MLP width M of an uncompressed block.
        macs: MACs to remove, R.
        total: MACs of the original model, for the message.
        multiple: M' is a multiple of this (1 reproduces the paper).

    Raises:
        InputError: If the reduction is out of reach; the message gives the range.
    """
    mean = BlockCost(sum(cost.attention for cost in costs) / len(costs), sum(cost.mlp for cost in costs) / len(costs))
    if macs >= mean.attention * (1 - 1e-9):
        first = max(1, math.ceil(macs / (mean.attention + mean.mlp) - 1e-9))
        for blocks in range(first, len(costs) + 1):
            width = solve_width([mean] * blocks, hidden, macs, multiple)
            if width is not None:
                return Structure(blocks, width)
    most = len(costs) * (mean.attention + mean.mlp * (1 - multiple / hidden))
    raise InputError(
        f"--macs-reduction: {macs / total:.4f} is out of reach; compressing 1 to {len(costs)} blocks takes "
        f"{math.ceil(mean.attention / total * 1e4) / 1e4:.4f} to {math.floor(most / total * 1e4) / 1e4:.4f}"
    )


def solve_width(costs: Sequence[BlockCost], hidden: int, macs: float, multiple: int) -> int | None:
    """The MLP width at which these blocks together save `macs`, rounded down; None if no width does."""
    attention, mlp = sum(cost.attention for cost in costs), sum(cost.mlp for cost in costs)
    # A hundredth of a node absorbs the rounding of a target that was written as a decimal fraction.
    width = math.floor(hidden * (1 - (macs - attention) / mlp) + 0.01)
    if width >= hidden:
        return hidden
    width -= width % multiple
    return width if width > 0 else None
