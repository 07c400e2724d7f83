"""The sign test keeps its error rate however often it is looked at."""

import numpy as np
import pytest

from dcvit.bench.sequential import SignTest


def ends(above: float, samples: int, tests: int = 400, alpha: float = 0.05) -> dict[object, float]:
    """Shares of the answers of tests that look after every sample, each above with a probability."""
    generator, found = np.random.default_rng(0), []
    for _ in range(tests):
        test = SignTest(1.0, alpha)
        for sample in np.where(generator.random(samples) < above, 2.0, 0.5):
            test.add(float(sample))
            if test.side():
                break
        found.append(test.side())
    return {side: found.count(side) / tests for side in ("above", "below", None)}


def test_at_the_threshold_each_wrong_answer_is_rarer_than_alpha_after_any_number_of_looks() -> None:
    found = ends(above=0.5, samples=300)
    # At most 0.05, and three deviations of 400 tests.
    assert found["above"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert found["below"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_it_finds_the_side() -> None:
    assert ends(above=0.8, samples=60)["above"] > 0.95
    assert ends(above=0.2, samples=60)["below"] > 0.95


def test_it_needs_some_samples_and_counts_none_that_lie_at_the_threshold() -> None:
    test = SignTest(1.0, 0.01)
    while test.side() is None:
        test.add(1.0)
        test.add(1.1)
    assert test.below == 0
    # A fair coin falls n times in a row with probability 2^-n; a bet on all stakes needs little more than 1/α = 2^6.6.
    assert 7 <= test.above <= 12


@pytest.mark.parametrize(("sample", "side"), [(1.01, "above"), (0.99, "below")])
def test_how_far_a_sample_lies_from_the_threshold_does_not_matter(sample: float, side: str) -> None:
    test = SignTest(1.0, 0.01)
    for _ in range(12):
        test.add(sample)
    assert test.side() == side
