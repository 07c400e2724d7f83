"""Many models timed in turn: each against the first, so that what slows the machine for a while slows both."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dcvit.bench.rounds import collector_paused
from dcvit.bench.statistics import speedup_interval
from dcvit.progress import track

FEWEST_ROUNDS = 7
MOST_ROUNDS = 40
TIGHT = 0.02
"""Rounds end when no interval of a ratio is wider than this share of it (±1 %) …"""
MOST_SECONDS = 12.0
"""… or after so long or `MOST_ROUNDS`, …"""
WIDE = 0.1
"""… unless an interval is still wider than this share (±5 %), as where something else ran for a while: …"""
PATIENCE = 3
"""… then after so many times as long, or as many."""
_WARM_UP = 2


@dataclass(frozen=True)
class Ratio:
    """A time as a share of the first model's, with its 95 % interval; `rounds` is what it rests on."""

    value: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Timed:
    """What a group of models took.

    Attributes:
        base_ms: Median time of the first.
        ratios: Of the others, in their order.
    """

    base_ms: float
    ratios: tuple[Ratio, ...]


def time_in_turn(
    passes: Sequence[Callable[[], object]],
    description: str,
    *,
    most_seconds: float = MOST_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Timed:
    """Times models in rounds; each round runs all of them once, in an order drawn for it.

    Args:
        passes: One forward pass of each; returns when it is finished. The first is what the others are compared with.
        description: For the progress bar.
        most_seconds: After which no new round starts, once there are enough for an interval; `PATIENCE` times that
            where an interval is still wider than `WIDE`.
        clock: In seconds.
    """
    order = random.Random(0)  # noqa: S311 (no secret)
    times: list[list[float]] = [[] for _ in passes]
    for _ in range(_WARM_UP):
        for forward in passes:
            forward()
    with collector_paused():
        started = clock()
        for done in track(range(1, PATIENCE * MOST_ROUNDS + 1), description):
            for index in order.sample(range(len(passes)), len(passes)):
                before = clock()
                passes[index]()
                times[index].append(1000 * (clock() - before))
            passed = max((clock() - started) / most_seconds, done / MOST_ROUNDS)
            if done < FEWEST_ROUNDS or (passed < 1 and done % FEWEST_ROUNDS):
                continue
            if passed >= PATIENCE or _widest(times) <= (WIDE if passed >= 1 else TIGHT):
                break
    return timed_of(times)


def timed_of(times_ms: Sequence[Sequence[float]]) -> Timed:
    """The same of times that were taken in rounds already; entry i of each list is of round i."""
    return Timed(float(np.median(times_ms[0])), tuple(_ratio(times_ms[0], each) for each in times_ms[1:]))


def _ratio(base: Sequence[float], times: Sequence[float]) -> Ratio:
    """The ratio of the medians; its interval is that of a speed-up, the other way round."""
    low, high = speedup_interval(base, times)
    return Ratio(float(np.median(times) / np.median(base)), 1 / high, 1 / low, len(base))


def _widest(times: Sequence[Sequence[float]]) -> float:
    """The width of the widest interval, as a share of its ratio."""
    found = [_ratio(times[0], each) for each in times[1:]]
    return max(((each.high - each.low) / each.value for each in found), default=0.0)
