"""The timing protocol: two models in turn, in random order, until the speed-up is known well enough."""

import gc
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dcvit.bench.statistics import speedup_interval
from dcvit.errors import InputError
from dcvit.progress import track

Stopped = Literal["runs", "interval", "time limit"]

FEWEST_ROUNDS = 5
TIGHT = 0.02
"""The interval is tight when it is no wider than this share of the speed-up (±1 %) …"""
TIGHT_AFTER = 20
"""… and rests on this many rounds. After them it is looked at seldom, each time after half as many rounds again: to
stop at the first lucky look of many would make it too narrow."""
_UNTIL_NEXT_LOOK = 1.5


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        runs: Exactly this many rounds, if the time allows; None stops when the interval is tight.
        max_seconds: Of measuring, without warm-up; None sets no limit. At least `FEWEST_ROUNDS` rounds run.
    """

    runs: int | None = None
    max_seconds: float | None = 60.0

    def __post_init__(self) -> None:
        """Raises InputError for limits that allow no interval."""
        if self.runs is not None and self.runs < FEWEST_ROUNDS:
            raise InputError(f"--runs {self.runs}: an interval needs at least {FEWEST_ROUNDS} runs")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise InputError(f"--max-seconds {self.max_seconds}: give a time above 0")


@dataclass(frozen=True)
class Rounds:
    """Times of one forward pass in ms; entry i of both lists is of the same round."""

    baseline_ms: list[float]
    candidate_ms: list[float]
    stopped: Stopped


def run_rounds(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    limits: Limits,
    description: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Times two models against each other; what slows the machine for a while slows both.

    Args:
        baseline: One forward pass; returns when it is finished.
        candidate: The same of the other model.
        limits: When to stop.
        description: For the progress bar.
        clock: In seconds.
    """
    pair_seconds = _warm_up(baseline, candidate, clock)
    order = random.Random(0)  # noqa: S311 (no secret)
    result = Rounds([], [], "runs")
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    next_look = TIGHT_AFTER
    started = clock()
    try:
        for _ in track(itertools.count(), description, _expected_rounds(limits, pair_seconds)):
            pair = [(baseline, result.baseline_ms), (candidate, result.candidate_ms)]
            order.shuffle(pair)
            for forward, times in pair:
                before = clock()
                forward()
                times.append(1000 * (clock() - before))
            done = len(result.baseline_ms)
            look = limits.runs is None and done == next_look
            if look:
                next_look = int(done * _UNTIL_NEXT_LOOK)
            if stopped := _stop(result, limits, clock() - started, look=look):
                return Rounds(result.baseline_ms, result.candidate_ms, stopped)
    finally:
        if collecting:
            gc.enable()
    raise AssertionError("the rounds have no end of their own")


def _warm_up(baseline: Callable[[], object], candidate: Callable[[], object], clock: Callable[[], float]) -> float:
    """Runs both for a second and at least twice (caches, clocks, lazy initialisation); seconds of the last pair."""
    started = clock()
    for count in itertools.count(1):
        before = clock()
        baseline()
        candidate()
        if count >= 2 and clock() - started >= 1:
            break
    return clock() - before


def _expected_rounds(limits: Limits, pair_seconds: float) -> int | None:
    if limits.max_seconds is None:
        return limits.runs
    in_time = max(FEWEST_ROUNDS, int(limits.max_seconds / max(pair_seconds, 1e-6)))
    return in_time if limits.runs is None else min(limits.runs, in_time)


def _stop(rounds: Rounds, limits: Limits, seconds: float, *, look: bool) -> Stopped | None:
    done = len(rounds.baseline_ms)
    if done < FEWEST_ROUNDS:
        return None
    if limits.runs is not None and done >= limits.runs:
        return "runs"
    if look:
        low, high = speedup_interval(rounds.baseline_ms, rounds.candidate_ms)
        if high - low <= TIGHT * low:
            return "interval"
    return "time limit" if limits.max_seconds is not None and seconds >= limits.max_seconds else None
