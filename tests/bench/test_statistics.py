"""The interval means what it says."""

import numpy as np
import pytest

from dcvit.bench.statistics import Latency, speedup, speedup_interval


def times(generator: np.random.Generator, median: float, rounds: int) -> np.ndarray:
    """Times as they are: skewed, with a long tail."""
    return median * np.exp(0.1 * generator.standard_normal(rounds))


def test_the_interval_covers_the_true_speedup_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = speedup_interval(times(generator, 1.7, 40), times(generator, 1.0, 40))
        covered += low <= 1.7 <= high
    # 200 draws of p = 0.95 lie within ±3 deviations, 181 … 199; the bootstrap of a median is a little off at n = 40.
    assert 178 <= covered <= 199


def test_more_rounds_make_a_narrower_interval() -> None:
    generator = np.random.default_rng(1)
    widths = []
    for rounds in (20, 320):
        low, high = speedup_interval(times(generator, 1.7, rounds), times(generator, 1.0, rounds))
        widths.append(high - low)
    # 16 times the rounds: a quarter of the width, give or take what chance does to a width.
    assert 0.12 < widths[1] / widths[0] < 0.5


def test_speedup_is_the_ratio_of_medians_and_an_outlier_does_not_move_it() -> None:
    baseline, candidate = [2.0, 2.0, 2.0, 2.0, 100.0], [1.0, 1.0, 1.0, 1.0, 1.0]
    assert speedup(baseline, candidate) == 2.0
    assert Latency.of(baseline).median_ms == 2.0
    assert Latency.of(baseline).mean_ms == pytest.approx(21.6)
    assert Latency.of(baseline).p95_ms == pytest.approx(80.4)


def test_rounds_are_resampled_whole() -> None:
    # The machine is five times slower for half of the rounds. Both models feel it, and their ratio is always 2.
    candidate = np.array([1.0, 5.0] * 20) * np.linspace(1, 1.01, 40)
    assert speedup_interval(2 * candidate, candidate) == pytest.approx((2.0, 2.0))
    # Out of pairs, nothing could be told.
    low, high = speedup_interval(2 * candidate, np.random.default_rng(0).permutation(candidate))
    assert high - low > 1
