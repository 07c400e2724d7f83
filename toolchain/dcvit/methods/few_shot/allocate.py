"""Which attention and blocks to remove, and how wide heads and MLPs stay: the least damage that meets a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dcvit.errors import InputError
from dcvit.folder.records import BlockDamage

RESOLUTION = 4096
"""Steps into which what is to be saved is divided: savings are rounded down to them, so the target is always met."""

NO_DAMAGE = 1e-6
"""KL, in nats, of a change too small to measure: about what rounding to bfloat16 makes of the logits."""


class Price(Protocol):
    """What the cuts of one block save, in any currency: MACs (`UnitCost`), or milliseconds (`BlockPrice`)."""

    def attention(self, head_dim: int, whole: int) -> float:
        """Where heads of `whole` channels keep `head_dim`; with 0, where attention goes."""

    def mlp(self, hidden: int, whole: int) -> float:
        """Where an MLP of `whole` nodes keeps `hidden`."""

    def block(self) -> float:
        """Where the block goes."""


@dataclass(frozen=True)
class BlockWidths:
    """How wide one block is; with nothing of either, it is gone.

    Attributes:
        head_dim: Channels of every head; 0 where its attention is gone.
        mlp_hidden: Nodes of its MLP.
    """

    head_dim: int
    mlp_hidden: int


NO_BLOCK = BlockWidths(head_dim=0, mlp_hidden=0)


def damage_of(damage: BlockDamage, widths: BlockWidths, whole: BlockWidths) -> float:
    """Damage of what becomes of a block that was `whole`."""
    if widths == NO_BLOCK:
        return np.inf if damage.block is None else damage.block
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
        cuts = {"attention": damage.attention, "block": damage.block}
        cuts |= {f"mlp {width}": each for width, each in damage.mlp.items()}
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
    prices: Mapping[int, Price],
    whole: Mapping[int, BlockWidths],
    wanted: float,
    multiple: int,
    limits: Mapping[int, BlockWidths] | None = None,
) -> dict[int, BlockWidths]:
    """Minimises the sum of all damages, subject to saving at least `wanted`.

    Damages of several blocks, and of a block's attention and MLP, are taken to add up, and so is what they save. This
    is a multiple-choice knapsack, solved exactly (to 1/4096 of the target) by dynamic programming over the blocks:
    each keeps its attention and its MLP at a width of their own, or goes.

    Args:
        damages: By block; only these blocks change.
        prices: What each such block's cuts save.
        whole: Widths of each block as it is.
        wanted: To be saved, in the currency of `prices`.
        multiple: BlockWidths are multiples of this, and never below the narrowest that was measured.
        limits: What earlier cuts have left of some blocks: they only lose more.

    Returns:
        The widths of each block of `damages`.

    Raises:
        OutOfReachError: If even the most that is allowed saves too little.
        InputError: If a damage is not finite.
    """
    check_damages(damages)
    best = np.full(RESOLUTION + 1, np.inf)
    best[0] = 0.0
    taken: list[tuple[int, _Layer, _Layer]] = []
    for block in sorted(damages):
        damage, price, now = damages[block], prices[block], whole[block]
        limit = (limits or {}).get(block, now)
        attention = mlp = _Layer.of([], best, wanted)
        if limit != NO_BLOCK:
            attention = _Layer.of(_attentions(damage, price, now, multiple, limit.head_dim), best, wanted)
            mlp = _Layer.of(_mlps(damage, price, now, multiple, limit.mlp_hidden), attention.best, wanted)
        if damage.block is not None:
            mlp.add(_Option(_GONE, price.block(), damage.block), best, wanted)
        taken.append((block, attention, mlp))
        best = mlp.best
    if not np.isfinite(best[RESOLUTION]):
        raise OutOfReachError
    widths: dict[int, BlockWidths] = {}
    state = RESOLUTION
    for block, attention, mlp in reversed(taken):
        width, state = mlp.taken(state)
        if width == _GONE:
            widths[block] = NO_BLOCK
            continue
        head_dim, state = attention.taken(state)
        widths[block] = BlockWidths(head_dim, width)
    return dict(reversed(widths.items()))


_GONE = -1
"""Stands among the widths of an MLP for the whole block being gone."""


@dataclass(frozen=True)
class _Option:
    width: int
    saved: float
    damage: float


@dataclass
class _Layer:
    """One choice among several, on top of those before it.

    Attributes:
        best: The least damage with which all so far save so many steps (the last entry: at least the target).
        width: That was chosen for it.
        origin: Steps that were saved before.
    """

    best: npt.NDArray[np.float64]
    width: npt.NDArray[np.int_]
    origin: npt.NDArray[np.int_]

    @classmethod
    def of(cls, options: Sequence[_Option], before: npt.NDArray[np.float64], wanted: float) -> "_Layer":
        nothing = np.zeros(RESOLUTION + 1, dtype=int)
        layer = cls(np.full(RESOLUTION + 1, np.inf), nothing, nothing.copy())
        for option in options:
            layer.add(option, before, wanted)
        return layer

    def add(self, option: _Option, before: npt.NDArray[np.float64], wanted: float) -> None:
        """Tries an option from every s to s + steps, and from all that overshoot to the last entry."""
        steps = min(int(option.saved / wanted * RESOLUTION), RESOLUTION)
        candidate = np.full(RESOLUTION + 1, np.inf)
        candidate[steps:] = before[: RESOLUTION + 1 - steps] + option.damage
        sources = np.arange(-steps, RESOLUTION + 1 - steps)
        last = RESOLUTION - steps + int(before[RESOLUTION - steps :].argmin())
        candidate[RESOLUTION], sources[RESOLUTION] = before[last] + option.damage, last
        better = candidate < self.best
        self.best[better], self.width[better], self.origin[better] = candidate[better], option.width, sources[better]

    def taken(self, state: int) -> tuple[int, int]:
        """The width that was chosen where so much is saved, and what was saved before."""
        return int(self.width[state]), int(self.origin[state])


def _attentions(damage: BlockDamage, price: Price, whole: BlockWidths, multiple: int, limit: int) -> list[_Option]:
    if not whole.head_dim:  # it is gone
        return [_Option(0, 0.0, 0.0)]
    head_dims = _allowed(min(damage.heads, default=whole.head_dim), whole.head_dim, multiple, limit)
    if damage.attention is not None:
        head_dims = [*head_dims, 0]
    saved = [price.attention(head_dim, whole.head_dim) for head_dim in head_dims]
    return _options(head_dims, saved, damage_of_head_dims(damage, head_dims, whole))


def _mlps(damage: BlockDamage, price: Price, whole: BlockWidths, multiple: int, limit: int) -> list[_Option]:
    hidden = _allowed(min(damage.mlp, default=whole.mlp_hidden), whole.mlp_hidden, multiple, limit)
    saved = [price.mlp(width, whole.mlp_hidden) for width in hidden]
    return _options(hidden, saved, damage_of_mlps(damage, hidden, whole))


def _allowed(narrowest: int, whole: int, multiple: int, limit: int) -> list[int]:
    widths = [*range(-(-narrowest // multiple) * multiple, whole, multiple), whole]
    return [width for width in widths if width <= limit]


def _options(widths: Sequence[int], saved: Sequence[float], damages: npt.NDArray[np.float64]) -> list[_Option]:
    return [_Option(*each) for each in zip(widths, saved, damages.tolist(), strict=True)]
