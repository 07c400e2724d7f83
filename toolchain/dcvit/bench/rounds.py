"""The timing protocol: two models in turn, in random order, until the speed-up is known well enough."""

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from dcvit.bench.statistics import Protocol, check_protocol, speedup_interval
from dcvit.bench.timers import Timer, wall_timer
from dcvit.bench.warm_up import WarmUp, warm_up
from dcvit.errors import InputError
from dcvit.progress import track

Stopped = Literal["runs", "interval", "time limit"]

FEWEST_ROUNDS = 5
PAPER_RUNS = 500
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
        protocol: Of the speed-up whose interval is looked at.
    """

    runs: int | None = None
    max_seconds: float | None = 60.0
    protocol: Protocol = "default"

    @classmethod
    def of(cls, protocol: Protocol, runs: int | None = None, max_seconds: float | None = None) -> "Limits":
        """What a protocol asks for where nothing else is said: 500 rounds, or at most 60 s until the interval is tight.

        Raises:
            InputError: For a protocol that does not exist, or limits that allow no interval.
        """
        check_protocol(protocol)
        if runs is None and protocol == "paper":
            runs = PAPER_RUNS
        return cls(runs, 60.0 if max_seconds is None and runs is None else max_seconds, protocol)

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
    warm_up: WarmUp


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
    warmed = warm_up(baseline, candidate, clock=clock)
    result = Rounds([], [], "runs", warmed)
    next_look = TIGHT_AFTER
    with collector_paused():
        started = clock()
        rounds = timed_rounds(baseline, candidate, wall_timer(clock))
        for before, after in track(rounds, description, _expected_rounds(limits, warmed.pair_seconds)):
            result.baseline_ms.append(before)
            result.candidate_ms.append(after)
            done = len(result.baseline_ms)
            look = limits.runs is None and done == next_look
            if look:
                next_look = int(done * _UNTIL_NEXT_LOOK)
            if stopped := _stop(result, limits, clock() - started, look=look):
                return replace(result, stopped=stopped)
    raise AssertionError("the rounds have no end of their own")


def timed_rounds(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    timer: Timer,
    seed: int = 0,
) -> Iterator[tuple[float, float]]:
    """Endless rounds: each runs both models once, in an order drawn for it, and yields their times in ms."""
    order = random.Random(seed)  # noqa: S311 (no secret)
    while True:
        times = [0.0, 0.0]
        pair = [(0, baseline), (1, candidate)]
        order.shuffle(pair)
        for index, forward in pair:
            times[index] = 1000 * timer(forward)
        yield times[0], times[1]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps Python's garbage collector from running inside a timed pass."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


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
        low, high = speedup_interval(rounds.baseline_ms, rounds.candidate_ms, limits.protocol)
        if high - low <= TIGHT * low:
            return "interval"
    return "time limit" if limits.max_seconds is not None and seconds >= limits.max_seconds else None
