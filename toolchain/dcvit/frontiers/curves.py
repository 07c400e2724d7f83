"""What the sizes of a frontier are counted in: MACs, or milliseconds of a runtime; each has sizes of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcvit.errors import InputError
from dcvit.methods.milliseconds import SETTING
from dcvit.methods.target import Target
from dcvit.pricing.kept import read_table
from dcvit.runtimes import runtime_named
from dcvit.variant import Precision

MACS = "macs"
"""The curve whose sizes are shares of the MACs."""

REDUCTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the MACs to remove, as far as they can be reached."""

SPEEDUPS = (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""How many times faster in a runtime, as its table predicts, as far as that can be reached."""


@dataclass(frozen=True)
class Curve:
    """Sizes that are solved for in one currency.

    Attributes:
        name: `macs`, or what folders in a runtime's currency begin with.
        where: Fields of a target that say where latency counts; none for MACs.
    """

    name: str
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        """Whether milliseconds are counted, not MACs."""
        return bool(self.where)

    def target(self, target: Target, share: float) -> Target:
        """The same target with a share of what this counts to remove."""
        if not self.timed:
            return target.at(share)
        return target.model_copy(update=self.where).priced(share)


@dataclass(frozen=True)
class Size:
    """One model of a frontier to be.

    Attributes:
        curve: Whose it is.
        share: To be removed of what the curve counts; None where a loss decides.
        target: What to compress to.
        folder: Its name in the frontier's folder.
        words: The target in words.
    """

    curve: Curve
    share: float | None
    target: Target
    folder: str
    words: str

    @classmethod
    def of_macs(cls, curve: Curve, target: Target, share: float) -> "Size":
        """One that removes a share of the MACs."""
        return cls(curve, share, curve.target(target, share), f"r{share:g}", f"−{share:.1%} MACs")

    @classmethod
    def of_speed(cls, curve: Curve, target: Target, speedup: float) -> "Size":
        """One that is so many times faster, as a table predicts."""
        share = 1 - 1 / speedup
        words = f"×{speedup:g} in {curve.name}, as predicted"
        return cls(curve, share, curve.target(target, share), f"{curve.name}-x{speedup:g}", words)

    @classmethod
    def of_loss(cls, curve: Curve, target: Target, max_drop: float) -> "Size":
        """The smallest that loses so little."""
        losing = Target.model_validate(dict(target) | {"max_drop": max_drop})
        return cls(curve, None, losing, f"d{max_drop:g}", f"at most {max_drop:g} points lost")


def timed_curves(
    runtimes: Sequence[str],
    tables: Sequence[str | Path],
    precision: Precision | None,
    batch: int | None,
    threads: int | None,
) -> list[Curve]:
    """A curve for each runtime here, and for each table that was brought along.

    Args:
        runtimes: Names; the tables of these are measured here, unless they are kept.
        tables: Files that `dcvit-tool latency -o` wrote.
        precision: That runtimes compute in.
        batch: Images in every batch.
        threads: CPU threads.

    Raises:
        InputError: If there is no such runtime or table, or two curves would have one name.
    """
    here = {"precision": precision, "batch": batch, "threads": threads}
    given = {name: value for name, value in here.items() if value is not None}
    if given and not runtimes:
        options = " and ".join(f"--{name}" for name in given)
        raise InputError(f"{options}: name the runtimes that are timed so with --runtime")
    blank: dict[str, Any] = dict.fromkeys(SETTING)
    curves = [Curve(runtime_named(name).name, blank | given | {"runtime": name}) for name in dict.fromkeys(runtimes)]
    for path in map(Path, tables):
        read_table(path)
        curves.append(Curve(path.stem, blank | {"latency_table": path}))
    names = [curve.name for curve in curves]
    for name in names:
        if names.count(name) > 1 or name == MACS:
            raise InputError(f"two curves would be called '{name}'; give the file of --latency-table another name")
    return curves
