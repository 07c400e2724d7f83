"""Many models timed in turn, against a clock that is known."""

import numpy as np
import pytest

from dcvit.pricing.timing import FEWEST_ROUNDS, MOST_ROUNDS, time_in_turn, timed_of


class Machine:
    """A clock that passes advance; `slow` makes every pass of some rounds take longer."""

    def __init__(self, seconds: list[float], noise: float = 0.0) -> None:
        self.now, self.generator, self.noise = 0.0, np.random.default_rng(0), noise
        self.order: list[int] = []
        self.passes = [lambda index=index, each=each: self._run(index, each) for index, each in enumerate(seconds)]

    def _run(self, index: int, seconds: float) -> None:
        self.order.append(index)
        self.now += seconds * (1 + self.generator.uniform(0, self.noise))

    def clock(self) -> float:
        return self.now


def test_ratios_are_to_the_first_model_and_quiet_machines_stop_early() -> None:
    machine = Machine([0.010, 0.005, 0.020])
    timed = time_in_turn(machine.passes, "timing", clock=machine.clock)
    assert timed.base_ms == pytest.approx(10)
    assert [ratio.value for ratio in timed.ratios] == pytest.approx([0.5, 2.0])
    assert timed.ratios[0].rounds == FEWEST_ROUNDS


def test_every_round_runs_all_in_an_order_of_its_own() -> None:
    machine = Machine([0.01] * 5, noise=0.5)
    time_in_turn(machine.passes, "timing", clock=machine.clock)
    rounds = [machine.order[at : at + 5] for at in range(10, len(machine.order), 5)]  # behind the warm-up
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 5


def test_noise_takes_more_rounds_and_the_interval_holds_the_truth() -> None:
    machine = Machine([0.010, 0.005], noise=0.3)
    timed = time_in_turn(machine.passes, "timing", clock=machine.clock)
    (ratio,) = timed.ratios
    assert FEWEST_ROUNDS < ratio.rounds <= MOST_ROUNDS
    assert ratio.low <= 0.5 <= ratio.high
    late = Machine([0.010, 0.005], noise=0.3)
    assert time_in_turn(late.passes, "timing", most_seconds=0.01, clock=late.clock).ratios[0].rounds == FEWEST_ROUNDS


def test_times_that_were_taken_elsewhere_give_the_same() -> None:
    timed = timed_of([[10.0] * 7, [4.0] * 7])
    assert (timed.base_ms, timed.ratios[0].value, timed.ratios[0].rounds) == (10.0, 0.4, 7)
