"""From a speed-up or a latency to the share of the cost that gives it: few measurements, and no training.

The cost is what plans are made by: milliseconds as a table predicts them, or MACs. Structure alone decides the latency,
so what is timed are models with random weights.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from accelerate.utils import broadcast_object_list

from dcvit.bench import BenchRow, benchmark
from dcvit.data import seeded
from dcvit.errors import TargetError
from dcvit.exporting.for_runtime import export_for
from dcvit.folder.temporary import temporary_folder
from dcvit.hardware import accelerator
from dcvit.methods.target import Reach, Target
from dcvit.model import stand_in
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.progress import say
from dcvit.runtimes import runtime_named
from dcvit.variant import Variant

DEFAULT_RUNTIME = "onnxruntime"
TOLERANCE = 0.03
"""A speed-up is met within this share of it …"""
_AIM = 0.015
"""… and the search goes on until it is this close: the other half is left to the noise of the next measurement."""
_FINEST = 0.01
"""Plans that differ by less than this share of the MACs are not told apart: noise is larger."""
MOST_MEASUREMENTS = 8
_UNTIL_THE_END = 4
"""Measurements without one fast enough, after which the most that can be cut is measured."""
_MAX_SECONDS = 30.0
"""Of timing one plan, unless its interval is tight (±1 %) before."""

T = TypeVar("T")

Measure = Callable[[CompressionPlan], BenchRow]
"""Times a plan against the uncompressed model."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goal:
    """How fast a model is to be: a speed-up, or milliseconds of a batch; one of them is given.

    Attributes:
        speedup: Over the uncompressed model, timed in turn with it.
        latency_ms: Median of a batch.
    """

    speedup: float | None = None
    latency_ms: float | None = None

    @classmethod
    def of(cls, target: Target) -> "Goal":
        """What a target asks for."""
        return cls(target.speedup, target.latency)

    def reached(self, row: BenchRow) -> float:
        """How fast a model is, as a share of what is asked for: 1 is exactly that, more is faster."""
        if self.speedup is not None:
            return row.speedup / self.speedup
        assert self.latency_ms is not None
        return self.latency_ms / row.latency.median_ms

    @property
    def option(self) -> str:
        """As the user says it."""
        return f"--latency {self.latency_ms:g}ms" if self.speedup is None else f"--speedup {self.speedup:g}"

    def describe(self, reached: float) -> str:
        """A model that is so fast, in the unit of the goal."""
        if self.speedup is None:
            assert self.latency_ms is not None
            return f"{self.latency_ms / reached:.3g} ms"
        return f"×{reached * self.speedup:.2f}"


@dataclass(frozen=True)
class Candidates(Generic[T]):
    """The plans to choose from, by the share of the cost that they remove.

    Attributes:
        base: The plan before any block is chosen.
        base_share: Removed by `base`.
        plan: The plan for a share.
        make: The compressed model for a share; None for `base`.
        reach: The shares that there is a plan for.
        base_chosen: Whether the method chose `base` itself, so that one that is faster than asked for is welcome.
        cost: What shares are of, in words.
    """

    base: CompressionPlan
    base_share: float
    plan: Callable[[float], CompressionPlan]
    make: Callable[[float | None], T]
    reach: Reach
    base_chosen: bool = False
    cost: str = "MACs"


@dataclass(frozen=True)
class Found:
    """Where the search ended.

    Attributes:
        share: Of the cost to remove; None where the base plan is fast enough.
        reached: How fast that was measured to be, as a share of the goal.
        measurements: Plans that were timed.
    """

    share: float | None
    reached: float
    measurements: int


@dataclass(frozen=True)
class _Point:
    share: float
    latency: float
    """As a multiple of the one that is asked for."""


def find_share(goal: Goal, candidates: Candidates[Any], measure: Measure) -> Found:
    """Searches the share of the cost whose plan is as fast as asked for, within 3 %.

    Latency falls with the share, nearly in a line: secants find the place, halving the bracket keeps noise from
    stalling them. Where plans are so coarse that none is within 3 %, the next faster one is taken.

    Raises:
        TargetError: If no plan is as fast, or even the base plan is faster; the message gives the range.
    """
    timed: dict[str, tuple[float | None, BenchRow]] = {}

    def latency_of(plan: CompressionPlan, share: float | None) -> float:
        row = measure(plan)
        timed[plan.digest] = share, row
        at = "the plan" if share is None else f"−{share:.1%} {candidates.cost}"
        low, high = row.speedup_ci95
        say(f"{at}: {row.latency.median_ms:.3g} ms, ×{row.speedup:.3f} [{low:.3f}, {high:.3f}] in {row.runtime}")
        return 1 / goal.reached(row)

    base, least, most = candidates.base, candidates.reach.least, candidates.reach.most
    whole = goal.speedup if base.is_identity and goal.speedup is not None else latency_of(base, None)
    slow = start = _Point(candidates.base_share, whole)
    if candidates.base_chosen and start.latency <= 1:
        return Found(None, 1 / start.latency, len(timed))
    if most <= candidates.base_share:
        raise TargetError(
            f"{goal.option}: the merges alone measure {goal.describe(1 / start.latency)}, and nothing else can be cut; "
            "give other merges, or let widths change"
        )
    if start.latency < 1 - TOLERANCE:
        fastest = 1 / latency_of(candidates.plan(most), most)
        alone = goal.describe(1 / start.latency)
        what = "the uncompressed model is" if base.is_identity else "the plan and its merges alone are"
        raise TargetError(f"{goal.option}: {what} at {alone} already; ask for {alone} to {goal.describe(fastest)}")
    fast: _Point | None = None
    share = 1 - (1 - start.share) / start.latency  # as if latency followed the cost
    widths: list[float] = []
    while len(timed) < MOST_MEASUREMENTS and not _met(timed, goal, _AIM):
        share = min(max(share, least), most)
        plan = candidates.plan(share)
        if plan.digest in timed:
            break  # nothing lies between the plans that were timed
        point = _Point(share, latency_of(plan, share))
        if point.latency <= 1:
            fast = point
        else:
            slow = point
        if fast is None:
            if share >= most and not _met(timed, goal, TOLERANCE):
                raise TargetError(
                    f"{goal.option} is out of reach in {timed[plan.digest][1].runtime}: cutting all that can "
                    f"be cut measures {goal.describe(1 / point.latency)}; ask for "
                    f"{goal.describe(1 / start.latency)} to that"
                )
            share = _extrapolated(start, slow) if len(timed) < _UNTIL_THE_END else most
            continue
        widths.append(fast.share - slow.share)
        if widths[-1] < _FINEST:
            break
        if len(widths) >= 3 and widths[-1] > widths[-3] / 2:
            share = (slow.share + fast.share) / 2
        else:
            share = _interpolated(slow, fast)
    return _best(timed, goal)


def correct(
    found: Found,
    goal: Goal,
    candidates: Candidates[T],
    measure: Callable[[T], BenchRow],
    corrections: int,
) -> tuple[T, BenchRow]:
    """Makes the model of the share that was found; where it is not as fast as its stand-in was, of a corrected share.

    Blocks that cost differently (Swin's and ResNet's stages) make the plan that trials choose faster or slower than
    the one that was timed in its place, and so do widths that training finds. What comes nearest is kept, with a
    warning where that is not within 3 %.

    Args:
        found: Where the search ended.
        goal: That is asked for.
        candidates: Make the models.
        measure: Times a model that was made.
        corrections: Models to make beyond the first.
    """
    share = found.share
    tries: list[tuple[float, T, BenchRow]] = []
    for _ in range(1 + corrections):
        made = candidates.make(share)
        row = measure(made)
        reached = goal.reached(row)
        tries.append((abs(reached - 1), made, row))
        if tries[-1][0] <= TOLERANCE or share is None or row.speedup <= 1:
            break
        # As if latency fell with the share in a line through the uncompressed model and this one.
        line = share * (1 - reached / row.speedup) / (1 - 1 / row.speedup)
        corrected = min(max(line, candidates.reach.least), candidates.reach.most)
        if corrected == share:
            break
        share = corrected
        say(f"what was chosen comes to {goal.describe(reached)}: again, with −{share:.1%} {candidates.cost}")
    miss, made, row = min(tries, key=lambda each: each[0])
    wanted = share is not None and abs(found.reached - 1) <= TOLERANCE
    if miss > TOLERANCE and wanted:
        came_to = goal.describe(goal.reached(row))
        log.warning("what was chosen comes to %s, not within 3 %% of %s", came_to, goal.option)
    return made, row


def _extrapolated(start: _Point, slow: _Point) -> float:
    slope = (slow.latency - start.latency) / max(slow.share - start.share, 1e-9)
    return slow.share + 1.1 * (1 - slow.latency) / min(slope, -0.1 * start.latency)


def _interpolated(slow: _Point, fast: _Point) -> float:
    """Where the line through both ends of the bracket meets the goal, but not at its very ends."""
    position = (slow.latency - 1) / max(slow.latency - fast.latency, 1e-9)
    return slow.share + min(max(position, 0.05), 0.95) * (fast.share - slow.share)


def _met(timed: dict[str, tuple[float | None, BenchRow]], goal: Goal, within: float) -> bool:
    return any(abs(goal.reached(row) - 1) <= within for _, row in timed.values())


def _best(timed: dict[str, tuple[float | None, BenchRow]], goal: Goal) -> Found:
    def miss(each: tuple[float | None, BenchRow]) -> float:
        return abs(goal.reached(each[1]) - 1)

    share, row = min(timed.values(), key=miss)
    if miss((share, row)) > TOLERANCE:
        faster = [each for each in timed.values() if goal.reached(each[1]) >= 1]
        share, row = min(faster or [(share, row)], key=miss)
        came_to = goal.describe(goal.reached(row))
        log.warning("no plan was measured within 3 %% of %s; the one taken is at %s", goal.option, came_to)
    return Found(share, goal.reached(row), len(timed))


@contextmanager
def measuring(
    original: CompressionPlan,
    preprocessing: Preprocessing,
    runtime: str | None = None,
    variant: Variant | None = None,
    threads: int | None = None,
) -> Iterator[Measure]:
    """A function that times plans against the uncompressed model, in interleaved rounds.

    A plan is timed once. Of several processes the first measures.

    Args:
        original: The uncompressed model's plan.
        preprocessing: For the input size.
        runtime: Name of the runtime; None takes ONNX Runtime on the CPU.
        variant: Batch and precision; None is batch 64 in fp32.
        threads: CPU threads; None takes all cores.

    Raises:
        InputError: If the runtime cannot run here.
    """
    chosen, variant = runtime_named(runtime or DEFAULT_RUNTIME), variant or Variant()
    known: dict[str, BenchRow] = {}
    with seeded(0), temporary_folder(stand_in(original), original, preprocessing) as baseline:

        def time_plan(plan: CompressionPlan) -> BenchRow:
            with seeded(0), temporary_folder(stand_in(plan), plan, preprocessing) as folder:
                export_for(chosen, folder, variant, latency_only=True)
                timed = benchmark(
                    folder,
                    baseline.path,
                    runtimes=[chosen.name],
                    batch=variant.batch,
                    precision=variant.precision,
                    threads=threads,
                    max_seconds=_MAX_SECONDS,
                )
            return timed.rows[0]

        def measure(plan: CompressionPlan) -> BenchRow:
            if plan.digest not in known:
                shared = [time_plan(plan) if accelerator().is_main_process else None]
                row = broadcast_object_list(shared)[0]
                assert row is not None
                known[plan.digest] = row
            return known[plan.digest]

        if accelerator().is_main_process:
            export_for(chosen, baseline, variant, latency_only=True)
        yield measure
