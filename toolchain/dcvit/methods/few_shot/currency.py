"""A target in time, solved by what cuts save in milliseconds and in MACs, and which of the two serves.

A solver that knows prices takes what is underpriced, and a table's prices are some percent off. On a CPU where time
nearly follows MACs, plans that milliseconds had decided were some 3 % slower than predicted, beside plans that MACs had
decided, of the same predicted latency and damage (`docs/milliseconds.md`). So both are made, without a training step,
and compared on images.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dcvit.methods.target import Reach, Target

MARGIN = 0.8
"""The damage of a plan of milliseconds, as a share of that of a plan of MACs, at which it is preferred.

Three percent of latency, as a table is off, are worth a quarter of the KL where a model has begun to lose.
"""

_HALVINGS = 10
"""Of the range of shares: to a thousandth of the MACs."""


@dataclass(frozen=True)
class Compared:
    """Two untrained models of the same predicted latency, and how far each is from the original.

    Attributes:
        milliseconds: Damage of the one whose cuts were chosen by what they save in milliseconds.
        macs: Of the one whose cuts were chosen by MACs.
        macs_reduction: What that one removes.
    """

    milliseconds: float
    macs: float
    macs_reduction: float

    @property
    def macs_serve(self) -> bool:
        """Whether the plan of MACs is taken."""
        return self.milliseconds > MARGIN * self.macs

    def to_json(self) -> dict[str, Any]:
        """All fields, and which was taken."""
        return asdict(self) | {"chosen": "macs" if self.macs_serve else "milliseconds"}


def in_macs(target: Target, compared: Compared | None) -> Target:
    """The target in the currency that serves."""
    return target if compared is None or not compared.macs_serve else target.at(compared.macs_reduction)


def smallest_share(reach: Reach, milliseconds: Callable[[float], float], wanted: float) -> float | None:
    """The smallest share of the MACs at which a model is predicted to take no longer than wanted.

    Args:
        reach: Of the shares.
        milliseconds: What a table predicts of the plan for a share.
        wanted: In ms.

    Returns:
        None where no share is enough.
    """
    low, high = reach.least, reach.most
    if milliseconds(high) > wanted:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if milliseconds(middle) > wanted:
            low = middle
        else:
            high = middle
    return high
