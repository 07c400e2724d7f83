"""Figures from the times of interleaved rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass of one batch, in ms."""

    median_ms: float
    p95_ms: float
    mean_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> "Latency":
        """Median, 95th percentile and mean."""
        return cls(float(np.median(times_ms)), float(np.percentile(times_ms, 95)), float(np.mean(times_ms)))


def speedup(baseline_ms: Sequence[float], candidate_ms: Sequence[float]) -> float:
    """How many times faster the candidate is: the ratio of the medians."""
    return float(np.median(baseline_ms) / np.median(candidate_ms))


def speedup_interval(baseline_ms: Sequence[float], candidate_ms: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the speed-up: percentile bootstrap of the ratio of medians.

    Rounds are resampled whole: the two times of a round share what the machine was doing then.
    """
    baseline, candidate = np.asarray(baseline_ms), np.asarray(candidate_ms)
    generator, rounds = np.random.default_rng(0), len(baseline)
    ratios: list[float] = []
    while len(ratios) < _RESAMPLES:
        # In portions: a fast model makes tens of thousands of rounds, and all resamples of them would fill the memory.
        portion = min(_RESAMPLES - len(ratios), 1 + 1_000_000 // rounds)
        drawn = generator.integers(rounds, size=(portion, rounds))
        ratios += (np.median(baseline[drawn], axis=1) / np.median(candidate[drawn], axis=1)).tolist()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
