"""From a speed-up to the share of the MACs that gives it: a search with few measurements, and no training.

Structure alone decides the latency, so what is timed are models with random weights.
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
from dcvit.methods.target import Reach
from dcvit.model import build
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
class Candidates(Generic[T]):
    """The plans to choose from, by the share of the MACs that they remove.

    Attributes:
        base: The plan before any block is chosen.
        base_share: Removed by `base`.
        plan: The plan for a share.
        make: The compressed model for a share; None for `base`.
        reach: The shares that there is a plan for.
        base_chosen: Whether the method chose `base` itself, so that one that is faster than asked for is welcome.
    """

    base: CompressionPlan
    base_share: float
    plan: Callable[[float], CompressionPlan]
    make: Callable[[float | None], T]
    reach: Reach
    base_chosen: bool = False


@dataclass(frozen=True)
class Found:
    """Where the search ended.

    Attributes:
        macs_reduction: Share of the MACs to remove; None where the base plan is fast enough.
        speedup: That was measured there.
        measurements: Plans that were timed.
    """

    macs_reduction: float | None
    speedup: float
    measurements: int


@dataclass(frozen=True)
class _Point:
    share: float
    latency: float
    """As a share of the uncompressed model's."""


def find_reduction(speedup: float, candidates: Candidates[Any], measure: Measure) -> Found:
    """Searches the share of the MACs whose plan is `speedup` times as fast, within 3 %.

    Latency falls with the share, nearly in a line: secants find the place, halving the bracket keeps noise from
    stalling them. Where plans are so coarse that none is within 3 %, the next faster one is taken.

    Raises:
        TargetError: If no plan is as fast, or even the base plan is faster; the message gives the range.
    """
    timed: dict[str, tuple[float | None, BenchRow]] = {}

    def latency_of(plan: CompressionPlan, share: float | None) -> float:
        row = measure(plan)
        timed[plan.digest] = share, row
        at = "the plan" if share is None else f"−{share:.1%} MACs"
        say(f"{at}: ×{row.speedup:.3f} [{row.speedup_ci95[0]:.3f}, {row.speedup_ci95[1]:.3f}] in {row.runtime}")
        return 1 / row.speedup

    goal = 1 / speedup
    base, least, most = candidates.base, candidates.reach.least, candidates.reach.most
    slow = start = _Point(candidates.base_share, 1.0 if base.is_identity else latency_of(base, None))
    if candidates.base_chosen and start.latency <= goal:
        return Found(None, 1 / start.latency, len(timed))
    if most <= candidates.base_share:
        raise TargetError(
            f"--speedup {speedup:g}: the merges alone measure ×{1 / start.latency:.2f}, and nothing else can be cut; "
            "give other merges, or let widths change"
        )
    if start.latency < goal * (1 - TOLERANCE):
        fastest = 1 / latency_of(candidates.plan(most), most)
        raise TargetError(
            f"--speedup {speedup:g}: the plan and its merges alone are ×{1 / start.latency:.2f} as fast; "
            f"ask for ×{1 / start.latency:.2f} to ×{fastest:.2f}"
        )
    fast: _Point | None = None
    share = 1 - goal * (1 - start.share) / start.latency  # as if latency followed MACs
    widths: list[float] = []
    while len(timed) < MOST_MEASUREMENTS and not _met(timed, speedup, _AIM):
        share = min(max(share, least), most)
        plan = candidates.plan(share)
        if plan.digest in timed:
            break  # nothing lies between the plans that were timed
        point = _Point(share, latency_of(plan, share))
        if point.latency <= goal:
            fast = point
        else:
            slow = point
        if fast is None:
            if share >= most and not _met(timed, speedup, TOLERANCE):
                raise TargetError(
                    f"--speedup {speedup:g} is out of reach in {timed[plan.digest][1].runtime}: cutting all that can "
                    f"be cut measures ×{1 / point.latency:.2f}; ask for ×{1 / start.latency:.2f} to that"
                )
            share = _extrapolated(start, slow, goal) if len(timed) < _UNTIL_THE_END else most
            continue
        widths.append(fast.share - slow.share)
        if widths[-1] < _FINEST:
            break
        if len(widths) >= 3 and widths[-1] > widths[-3] / 2:
            share = (slow.share + fast.share) / 2
        else:
            share = _interpolated(slow, fast, goal)
    return _best(timed, speedup)


def correct(
    found: Found,
    speedup: float,
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
        speedup: That is asked for.
        candidates: Make the models.
        measure: Times a model that was made.
        corrections: Models to make beyond the first.
    """
    share = found.macs_reduction
    tries: list[tuple[float, T, BenchRow]] = []
    for _ in range(1 + corrections):
        made = candidates.make(share)
        row = measure(made)
        tries.append((abs(row.speedup / speedup - 1), made, row))
        if tries[-1][0] <= TOLERANCE or share is None or row.speedup <= 1:
            break
        # As if latency fell with the share in a line through the uncompressed model and this one.
        line = share * (1 - 1 / speedup) / (1 - 1 / row.speedup)
        corrected = min(max(line, candidates.reach.least), candidates.reach.most)
        if corrected == share:
            break
        share = corrected
        say(f"what was chosen makes it ×{row.speedup:.3f} as fast: again, with −{share:.1%} MACs")
    miss, made, row = min(tries, key=lambda each: each[0])
    wanted = share is not None and abs(found.speedup / speedup - 1) <= TOLERANCE
    if miss > TOLERANCE and wanted:
        log.warning("what was chosen makes it ×%.3f as fast, not within 3 %% of ×%g", row.speedup, speedup)
    return made, row


def _extrapolated(start: _Point, slow: _Point, goal: float) -> float:
    slope = (slow.latency - start.latency) / max(slow.share - start.share, 1e-9)
    return slow.share + 1.1 * (goal - slow.latency) / min(slope, -0.1)


def _interpolated(slow: _Point, fast: _Point, goal: float) -> float:
    """Where the line through both ends of the bracket meets the goal, but not at its very ends."""
    position = (slow.latency - goal) / max(slow.latency - fast.latency, 1e-9)
    return slow.share + min(max(position, 0.05), 0.95) * (fast.share - slow.share)


def _met(timed: dict[str, tuple[float | None, BenchRow]], speedup: float, within: float) -> bool:
    return any(abs(row.speedup / speedup - 1) <= within for _, row in timed.values())


def _best(timed: dict[str, tuple[float | None, BenchRow]], speedup: float) -> Found:
    share, row = min(timed.values(), key=lambda each: abs(each[1].speedup / speedup - 1))
    if abs(row.speedup / speedup - 1) > TOLERANCE:
        faster = [each for each in timed.values() if each[1].speedup >= speedup]
        share, row = min(faster or [(share, row)], key=lambda each: abs(each[1].speedup / speedup - 1))
        log.warning("no plan was measured within 3 %% of ×%g; the one taken is ×%.3f as fast", speedup, row.speedup)
    return Found(share, row.speedup, len(timed))


@contextmanager
def measuring(original: CompressionPlan, preprocessing: Preprocessing, runtime: str | None = None) -> Iterator[Measure]:
    """A function that times plans against the uncompressed model: batch 64, fp32, interleaved rounds.

    A plan is timed once. Of several processes the first measures.

    Args:
        original: The uncompressed model's plan.
        preprocessing: For the input size.
        runtime: Name of the runtime; None takes ONNX Runtime on the CPU.

    Raises:
        InputError: If the runtime cannot run here.
    """
    chosen = runtime_named(runtime or DEFAULT_RUNTIME)
    known: dict[str, BenchRow] = {}
    with seeded(0), temporary_folder(build(original), original, preprocessing) as baseline:

        def time_plan(plan: CompressionPlan) -> BenchRow:
            with seeded(0), temporary_folder(build(plan), plan, preprocessing) as folder:
                export_for(chosen, folder, Variant())
                timed = benchmark(folder, baseline.path, runtimes=[chosen.name], max_seconds=_MAX_SECONDS)
            return timed.rows[0]

        def measure(plan: CompressionPlan) -> BenchRow:
            if plan.digest not in known:
                shared = [time_plan(plan) if accelerator().is_main_process else None]
                row = broadcast_object_list(shared)[0]
                assert row is not None
                known[plan.digest] = row
            return known[plan.digest]

        if accelerator().is_main_process:
            export_for(chosen, baseline, Variant())
        yield measure
