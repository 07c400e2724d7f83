"""Has a speed-up fallen below a threshold? The measurement behind the gate, made for machines that do other work too.

Three kinds of noise, and what is done about each:

*Other processes* take the core away for some milliseconds, from the slower model more often than from the faster one,
so that the median of the rounds' ratios is wrong by far (×4 and ×12 were seen in place of ×1.75). The time for which
the calling thread was ready but had no core is therefore taken off (`undisturbed_timer`). What remains, cold caches
above all, only ever makes a pass slower. So rounds are put into groups of 30 ms, and a group's sample is the ratio of
the fastest passes in it. Longer passes are disturbed in proportion to their length, which leaves the ratio alone: there
a group is one round.

*Chance* within a session: samples are added until the sign test of `sequential` can tell, with an error of at most 1 in
100 for each session.

*The session*: where its memory came to lie, and what ran beside it, moves a ratio by 1 to 2 %, and no number of rounds
in it averages that out. So sessions are opened anew, and the verdict is the side that leads by two sessions. If each
is wrong with probability e, independently, the verdict is with e² / (e² + (1−e)²) (the gambler's ruin): 1 in 10,000 for
an e of 1 in 100, and still 1 in 300 for 1 in 20.

What takes longer than the time limit is undecided: the speed-up is too near to the threshold for this machine. Only the
undisturbed latency is guarded, not its tail: a pass that is slow now and then is never the fastest of its group.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dcvit.bench.pair import OpenPair
from dcvit.bench.rounds import collector_paused, timed_rounds
from dcvit.bench.sequential import Side, SignTest
from dcvit.bench.timers import Timer, undisturbed_timer
from dcvit.bench.warm_up import warm_up

Outcome = Literal["passed", "failed", "undecided"]

LEAD = 2
ALPHA = 0.01
_GROUP_SECONDS = 0.03
_MOST_SAMPLES = 60
"""Of one session in the gate: where so many cannot tell, its ratio is at the threshold, and another session is due."""
_SESSIONS, _SAMPLES = 8, 12
"""Sessions at least, and samples in each, of what a baseline is made from."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Judgement:
    """What the gate found.

    Attributes:
        outcome: `passed` where the speed-up is above the threshold, `failed` below, else `undecided`.
        speedup: Median of the sessions' medians; of those that were cut short too.
        sides: What each session said; None for one that could not tell.
        rounds: Timed passes of each model.
        seconds: All in all, opening of sessions and warm-up included.
        baseline_ms: Fastest pass of the baseline.
        candidate_ms: Fastest pass of the candidate.
    """

    outcome: Outcome
    speedup: float
    sides: tuple[Side | None, ...]
    rounds: int
    seconds: float
    baseline_ms: float
    candidate_ms: float


@dataclass(frozen=True)
class Measurement:
    """A speed-up to compare with later.

    Attributes:
        speedup: Median of the sessions' medians.
        interval: Its 95 % interval, by a bootstrap over the sessions.
        sessions: How many there were.
        group: Rounds in a group. Later checks use the same, for the fastest of more passes is another figure.
    """

    speedup: float
    interval: tuple[float, float]
    sessions: int
    group: int


def judge(
    open_pair: OpenPair,
    threshold: float,
    group: int,
    max_seconds: float,
    clock: Clock = time.perf_counter,
    timer: Timer | None = None,
) -> Judgement:
    """Opens sessions and times them until one side of the threshold leads by two, or the time is over.

    Args:
        open_pair: Fresh sessions of the baseline and the candidate.
        threshold: Speed-up to compare with.
        group: Rounds in a group.
        max_seconds: For all; the first session has at least one group.
        clock: In seconds.
        timer: Of the passes; by default the undisturbed one.
    """
    started, timer = clock(), timer or undisturbed_timer()
    sides: list[Side | None] = []
    medians, fastest, rounds = [], np.full(2, np.inf), 0
    lead = 0
    while abs(lead) < LEAD and (not sides or clock() - started <= max_seconds):
        test, samples = SignTest(threshold, ALPHA), []
        for times in itertools.islice(_groups(open_pair, group, len(sides), clock, timer), _MOST_SAMPLES):
            fastest, rounds = np.minimum(fastest, times), rounds + group
            samples.append(times[0] / times[1])
            test.add(samples[-1])
            if test.side() or clock() - started > max_seconds:
                break
        sides.append(test.side())
        medians.append(np.median(samples))
        lead = sides.count("above") - sides.count("below")
    outcome: Outcome = "undecided" if abs(lead) < LEAD else "passed" if lead > 0 else "failed"
    return Judgement(outcome, float(np.median(medians)), tuple(sides), rounds, clock() - started, *map(float, fastest))


def measure(
    open_pair: OpenPair,
    precision: float,
    max_seconds: float,
    clock: Clock = time.perf_counter,
    timer: Timer | None = None,
) -> Measurement:
    """Measures a speed-up over many sessions, until its interval is tight or the time is over.

    Args:
        open_pair: Fresh sessions of the baseline and the candidate.
        precision: Half the width of the interval to reach, as a share of the speed-up.
        max_seconds: For all, but at least eight sessions are opened.
        clock: In seconds.
        timer: Of the passes; by default the undisturbed one.
    """
    started, timer = clock(), timer or undisturbed_timer()
    group = _group_size(open_pair, clock, timer)
    medians: list[float] = []
    while True:
        groups = itertools.islice(_groups(open_pair, group, len(medians), clock, timer), _SAMPLES)
        medians.append(float(np.median([before / after for before, after in groups])))
        if len(medians) < _SESSIONS:
            continue
        speedup, interval = float(np.median(medians)), _interval(medians)
        if interval[1] - interval[0] <= 2 * precision * speedup or clock() - started > max_seconds:
            return Measurement(speedup, interval, len(medians), group)


def _groups(open_pair: OpenPair, group: int, session: int, clock: Clock, timer: Timer) -> Iterator[tuple[float, float]]:
    """Endless groups of fresh sessions: the fastest pass of each model, in ms."""
    baseline, candidate = open_pair()
    warm_up(baseline.execute, candidate.execute, window_seconds=0.1, max_seconds=1.0, clock=clock)
    with collector_paused():
        rounds = timed_rounds(baseline.execute, candidate.execute, timer, seed=session)
        while True:
            times = list(itertools.islice(rounds, group))
            yield min(before for before, _ in times), min(after for _, after in times)


def _group_size(open_pair: OpenPair, clock: Clock, timer: Timer) -> int:
    """Rounds that take 30 ms where nothing disturbs them."""
    baseline, candidate = open_pair()
    warm_up(baseline.execute, candidate.execute, clock=clock)
    rounds = itertools.islice(timed_rounds(baseline.execute, candidate.execute, timer), 10)
    seconds = min(before + after for before, after in rounds) / 1000
    return max(1, round(_GROUP_SECONDS / seconds))


def _interval(medians: list[float]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(medians, size=(1000, len(medians)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)
