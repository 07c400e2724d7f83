"""Which attention to remove, and how wide heads and MLPs stay: the least predicted damage that meets a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dcvit.errors import InputError
from dcvit.folder.records import BlockDamage
from dcvit.methods.few_shot.structure import UnitCost

RESOLUTION = 4096
"""Steps into which the MACs to save are divided: savings are rounded down to them, so the target is always met."""

NO_DAMAGE = 1e-6
"""KL, in nats, of a change too small to measure: about what rounding to bfloat16 makes of the logits."""


@dataclass(frozen=True)
class BlockWidths:
    """How wide one block is.

    Attributes:
        head_dim: Channels of every head; 0 where its attention is gone.
        mlp_hidden: Nodes of its MLP.
    """

    head_dim: int
    mlp_hidden: int


def damage_of(damage: BlockDamage, widths: BlockWidths, whole: BlockWidths) -> float:
    """Damage of what becomes of a block that was `whole`."""
    attention = damage_of_head_dims(damage, [widths.head_dim], whole)
    return float(attention[0] + damage_of_mlps(damage, [widths.mlp_hidden], whole)[0])


def damage_of_mlps(damage: BlockDamage, hidden: Sequence[int], whole: BlockWidths) -> npt.NDArray[np.float64]:
    """Damage of MLPs of any widths."""
    return _interpolated(damage.mlp, hidden, whole.mlp_hidden)


def damage_of_head_dims(damage: BlockDamage, head_dims: Sequence[int], whole: BlockWidths) -> npt.NDArray[np.float64]:
    """Damage of heads with any number of channels; with 0, that of losing attention, if there is one."""
    if not whole.head_dim:
        return np.zeros(len(head_dims))
    kept = [head_dim or whole.head_dim for head_dim in head_dims]
    gone = np.inf if damage.attention is None else damage.attention
    return np.where(np.array(head_dims) == 0, gone, _interpolated(damage.heads, kept, whole.head_dim))


def check_damages(damages: Mapping[int, BlockDamage]) -> None:
    """Whether every cut could be measured.

    Raises:
        InputError: By the first block and cut whose damage is not finite: the model overflows with it.
    """
    for block, damage in sorted(damages.items()):
        cuts = {"attention": damage.attention, **{f"mlp {width}": each for width, each in damage.mlp.items()}}
        cuts |= {f"head_dim {width}": each for width, each in damage.heads.items()}
        for cut, each in cuts.items():
            if each is not None and not np.isfinite(each):
                raise InputError(
                    f"block {block}: the damage of the cut '{cut}' is {each}, so the model's outputs are not finite on "
                    "these images; check the weights, and that the images are those that it was trained for"
                )


def _interpolated(measured: Mapping[int, float], widths: Sequence[int], whole: int) -> npt.NDArray[np.float64]:
    """Log-linear between the measured widths, and 0 for the original."""
    known = [*sorted(measured), whole]
    damage = [max(measured[width], NO_DAMAGE) for width in known[:-1]] + [NO_DAMAGE]
    estimate = np.exp(np.interp(np.log(widths), np.log(known), np.log(damage)))
    return np.where(np.array(widths) >= whole, 0.0, estimate)


class OutOfReachError(Exception):
    """No allocation saves as much as is asked for."""


def allocate(
    damages: Mapping[int, BlockDamage],
    costs: Mapping[int, UnitCost],
    whole: Mapping[int, BlockWidths],
    macs: float,
    multiple: int,
    limits: Mapping[int, BlockWidths] | None = None,
) -> dict[int, BlockWidths]:
    """Minimises the sum of all damages, subject to saving at least `macs`.

    Damages of several blocks, and of a block's attention and MLP, are taken to add up. This is a multiple-choice
    knapsack, solved exactly (to 1/4096 of the target) by dynamic programming over attentions and MLPs.

    Args:
        damages: By block; only these blocks change.
        costs: MACs of each such block's attention (`removed`, and of it `heads` if these are narrowed) and MLP
            (`narrowed`).
        whole: Widths of each block as it is.
        macs: To be saved.
        multiple: BlockWidths are multiples of this, and never below the narrowest that was measured.
        limits: What earlier cuts have left of some blocks: they only lose more.

    Returns:
        The widths of each block of `damages`.

    Raises:
        OutOfReachError: If even the most that is allowed saves too little.
        InputError: If a damage is not finite.
    """
    check_damages(damages)
    layers = []
    for block in sorted(damages):
        now = whole[block]
        limit = (limits or {}).get(block, now)
        layers.append(_attentions(damages[block], costs[block], now, multiple, limit.head_dim))
        layers.append(_mlps(damages[block], costs[block], now, multiple, limit.mlp_hidden))
    # best[s]: the least damage with which the layers so far save s steps (the last entry: at least the target).
    best = np.full(RESOLUTION + 1, np.inf)
    best[0] = 0.0
    taken: list[tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]] = []
    for options in layers:
        reached = np.full(RESOLUTION + 1, np.inf)
        choice = np.zeros(RESOLUTION + 1, dtype=int)
        origin = np.zeros(RESOLUTION + 1, dtype=int)
        for number, option in enumerate(options):
            # From every s to s + steps, and from all that overshoot to the last entry.
            steps = min(int(option.saved / macs * RESOLUTION), RESOLUTION)
            candidate = np.full(RESOLUTION + 1, np.inf)
            candidate[steps:] = best[: RESOLUTION + 1 - steps] + option.damage
            sources = np.arange(-steps, RESOLUTION + 1 - steps)
            last = RESOLUTION - steps + int(best[RESOLUTION - steps :].argmin())
            candidate[RESOLUTION], sources[RESOLUTION] = best[last] + option.damage, last
            better = candidate < reached
            reached[better], choice[better], origin[better] = candidate[better], number, sources[better]
        taken.append((choice, origin))
        best = reached
    if not np.isfinite(best[RESOLUTION]):
        raise OutOfReachError
    widths: list[int] = []
    state = RESOLUTION
    for options, (choice, origin) in zip(reversed(layers), reversed(taken), strict=True):
        widths.append(options[choice[state]].width)
        state = origin[state]
    widths.reverse()
    pairs = zip(widths[::2], widths[1::2], strict=True)
    return {block: BlockWidths(*pair) for block, pair in zip(sorted(damages), pairs, strict=True)}


@dataclass(frozen=True)
class _Option:
    width: int
    saved: float
    damage: float


def _attentions(damage: BlockDamage, cost: UnitCost, whole: BlockWidths, multiple: int, limit: int) -> list[_Option]:
    if not whole.head_dim:  # it is gone
        return [_Option(0, 0.0, 0.0)]
    head_dims = _allowed(min(damage.heads, default=whole.head_dim), whole.head_dim, multiple, limit)
    saved = [cost.heads * (1 - head_dim / whole.head_dim) for head_dim in head_dims]
    if damage.attention is not None:
        head_dims, saved = [*head_dims, 0], [*saved, cost.removed]
    return _options(head_dims, saved, damage_of_head_dims(damage, head_dims, whole))


def _mlps(damage: BlockDamage, cost: UnitCost, whole: BlockWidths, multiple: int, limit: int) -> list[_Option]:
    hidden = _allowed(min(damage.mlp, default=whole.mlp_hidden), whole.mlp_hidden, multiple, limit)
    saved = [cost.narrowed * (1 - width / whole.mlp_hidden) for width in hidden]
    return _options(hidden, saved, damage_of_mlps(damage, hidden, whole))


def _allowed(narrowest: int, whole: int, multiple: int, limit: int) -> list[int]:
    widths = [*range(-(-narrowest // multiple) * multiple, whole, multiple), whole]
    return [width for width in widths if width <= limit]


def _options(widths: Sequence[int], saved: Sequence[float], damages: npt.NDArray[np.float64]) -> list[_Option]:
    return [_Option(*each) for each in zip(widths, saved, damages.tolist(), strict=True)]
