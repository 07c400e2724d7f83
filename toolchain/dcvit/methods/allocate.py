"""Which attention to remove and how wide each MLP stays: the least predicted damage that meets a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dcvit.methods.structure import UnitCost
from dcvit.plan import BlockPlan

RESOLUTION = 4096
"""Steps into which the MACs to save are divided: savings are rounded down to them, so the target is always met."""

NO_DAMAGE = 1e-7
"""KL, in nats, of a change too small to measure; keeps the logarithm of a damage finite."""


@dataclass(frozen=True)
class BlockDamage:
    """What compressing one block alone does to the outputs, as measured: mean KL(teacher ‖ student), in nats.

    Attributes:
        attention: Without its attention; None where it must stay.
        mlp: By MLP width M', for some widths below the original.
    """

    attention: float | None
    mlp: Mapping[int, float]

    def of_width(self, widths: npt.NDArray[np.int_], hidden: int) -> npt.NDArray[np.float64]:
        """Damage of any widths: log-linear between the measured ones, and 0 for the original."""
        known = [*sorted(self.mlp), hidden]
        damage = [max(self.mlp[width], NO_DAMAGE) for width in known[:-1]] + [NO_DAMAGE]
        estimate = np.exp(np.interp(np.log(widths), np.log(known), np.log(damage)))
        return np.where(widths >= hidden, 0.0, estimate)

    def of_entry(self, entry: BlockPlan, hidden: int) -> float:
        """Damage of what a plan makes of the block."""
        attention = 0.0 if entry.removed is None else self.attention or 0.0
        return attention + float(self.of_width(np.array([entry.mlp_hidden or hidden]), hidden)[0])


@dataclass(frozen=True)
class Allocation:
    """What becomes of one block."""

    block: int
    keeps_attention: bool
    mlp_hidden: int


class OutOfReachError(Exception):
    """No allocation saves as much as is asked for."""


def allocate(
    damages: Mapping[int, BlockDamage],
    costs: Mapping[int, UnitCost],
    hidden: int,
    macs: float,
    multiple: int,
    limits: Mapping[int, Allocation] | None = None,
) -> list[Allocation]:
    """Minimises the sum of the blocks' damages, subject to saving at least `macs`.

    Damages of several blocks are taken to add up. This is a multiple-choice knapsack, solved exactly (to 1/4096 of the
    target) by dynamic programming over the blocks.

    Args:
        damages: By block; only these blocks change.
        costs: MACs of each such block's attention (`removed`) and MLP (`narrowed`).
        hidden: MLP width M of an uncompressed block.
        macs: To be saved.
        multiple: Widths are multiples of this, and never below the narrowest that was measured.
        limits: What earlier cuts have left of some blocks: they only lose more.

    Raises:
        OutOfReachError: If even the most that is allowed saves too little.
    """
    blocks = sorted(damages)
    # best[s]: the least damage with which the blocks so far save s steps (the last entry: at least the target).
    best = np.full(RESOLUTION + 1, np.inf)
    best[0] = 0.0
    taken: list[tuple[list[_Option], npt.NDArray[np.int_], npt.NDArray[np.int_]]] = []
    for block in blocks:
        options = _options(damages[block], costs[block], hidden, macs, multiple, (limits or {}).get(block))
        reached = np.full(RESOLUTION + 1, np.inf)
        choice = np.zeros(RESOLUTION + 1, dtype=int)
        origin = np.zeros(RESOLUTION + 1, dtype=int)
        for number, option in enumerate(options):
            # From every s to s + steps, and from all that overshoot to the last entry.
            steps = min(option.steps, RESOLUTION)
            candidate = np.full(RESOLUTION + 1, np.inf)
            candidate[steps:] = best[: RESOLUTION + 1 - steps] + option.damage
            sources = np.arange(-steps, RESOLUTION + 1 - steps)
            last = RESOLUTION - steps + int(best[RESOLUTION - steps :].argmin())
            candidate[RESOLUTION], sources[RESOLUTION] = best[last] + option.damage, last
            better = candidate < reached
            reached[better], choice[better], origin[better] = candidate[better], number, sources[better]
        taken.append((options, choice, origin))
        best = reached
    if not np.isfinite(best[RESOLUTION]):
        raise OutOfReachError
    allocations = []
    state = RESOLUTION
    for block, (options, choice, origin) in zip(reversed(blocks), reversed(taken), strict=True):
        option = options[choice[state]]
        allocations.append(Allocation(block, option.keeps_attention, option.width))
        state = origin[state]
    return allocations[::-1]


@dataclass(frozen=True)
class _Option:
    steps: int
    damage: float
    keeps_attention: bool
    width: int


def _options(
    damage: BlockDamage, cost: UnitCost, hidden: int, macs: float, multiple: int, limit: Allocation | None
) -> list[_Option]:
    narrowest = min(damage.mlp, default=hidden)
    widths = np.array([*range(-(-narrowest // multiple) * multiple, hidden, multiple), hidden])
    if limit is not None:
        widths = widths[widths <= limit.mlp_hidden]
    mlp_damage = damage.of_width(widths, hidden)
    saved = cost.narrowed * (1 - widths / hidden)
    options = []
    attentions: Sequence[tuple[bool, float, float]] = [(True, 0.0, 0.0)]
    if damage.attention is not None:
        without = (False, cost.removed, damage.attention)
        attentions = [without] if limit is not None and not limit.keeps_attention else [*attentions, without]
    for keeps, removed, extra in attentions:
        for width, more, harm in zip(widths, saved, mlp_damage, strict=True):
            steps = int((removed + more) / macs * RESOLUTION)
            options.append(_Option(steps, float(harm) + extra, keeps, int(width)))
    return options
