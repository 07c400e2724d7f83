"""How long a pass takes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

Timer = Callable[[Callable[[], object]], float]
"""Runs a pass and returns its seconds."""

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def wall_timer(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Seconds on the clock: what a user waits, and what every reported latency is."""

    def timed(forward: Callable[[], object]) -> float:
        before = clock()
        forward()
        return clock() - before

    return timed


def undisturbed_timer() -> Timer:
    """Seconds on the clock less those for which the calling thread was ready and waited for a core.

    Other processes then count only by what they do to the caches. Linux tells the wait (schedstat); elsewhere this is
    the time on the clock. What a pass waits for by itself (other threads, a GPU, a lock, sleep) stays in.
    """
    if not _SCHEDSTAT.exists():
        return wall_timer(time.perf_counter)
    file = os.open(_SCHEDSTAT, os.O_RDONLY)

    def waited() -> float:
        return int(os.pread(file, 64, 0).split()[1]) / 1e9

    def timed(forward: Callable[[], object]) -> float:
        # The clock is read outside: a wait between the readings makes a pass longer, never shorter than it was.
        before, ready = time.perf_counter(), waited()
        forward()
        ready = waited() - ready
        return time.perf_counter() - before - ready

    reading = min(timed(lambda: None) for _ in range(100))
    return lambda forward: timed(forward) - reading
