"""Running two models until their times no longer change: caches, clocks, memory pools, lazy initialisation."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEADY = 0.1
"""Times are steady when the medians of two windows in a row are within this share of each other, for both models."""


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up ended.

    Attributes:
        runs: Untimed runs of each model.
        seconds: That they took.
        steady: Whether the times had come to rest; on a machine that is busy with other work they may never.
        pair_seconds: Of the last run of both models.
    """

    runs: int
    seconds: float
    steady: bool
    pair_seconds: float


def warm_up(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    *,
    window_seconds: float = 0.5,
    max_seconds: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> WarmUp:
    """Runs both in turn until two windows agree, or the time is over; at least three times.

    Args:
        baseline: One forward pass; returns when it is finished.
        candidate: The same of the other model.
        window_seconds: Least length of a window; it holds at least one run of each model. The first run is in none.
        max_seconds: For models that never come to rest.
        clock: In seconds.
    """
    started = clock()
    _timed_pair(baseline, candidate, clock)
    runs, before = 1, None
    while True:
        window_started, window = clock(), [_timed_pair(baseline, candidate, clock)]
        while clock() - window_started < window_seconds:
            window.append(_timed_pair(baseline, candidate, clock))
        runs += len(window)
        medians = np.median(window, axis=0)
        steady = before is not None and bool(np.all(np.abs(medians / before - 1) <= STEADY))
        seconds = clock() - started
        if steady or (before is not None and seconds >= max_seconds):
            return WarmUp(runs, seconds, steady, sum(window[-1]))
        before = medians


def _timed_pair(
    baseline: Callable[[], object], candidate: Callable[[], object], clock: Callable[[], float]
) -> tuple[float, float]:
    started = clock()
    baseline()
    between = clock()
    candidate()
    return between - started, clock() - between
