"""Many models timed in turn, against a clock that is known."""

import numpy as np
import pytest

from dcvit.pricing.timing import FEWEST_ROUNDS, MOST_ROUNDS, PATIENCE, WIDE, time_in_turn, timed_of


class Machine:
    """A clock that passes advance; `slow` makes every pass of some rounds take longer."""

    def __init__(self, seconds: list[float], noise: float = 0.0, quiet_after: float = 0.0) -> None:
        self.now, self.generator, self.noise, self.quiet_after = 0.0, np.random.default_rng(0), noise, quiet_after
        self.order: list[int] = []
        self.passes = [lambda index=index, each=each: self._run(index, each) for index, each in enumerate(seconds)]

    def _run(self, index: int, seconds: float) -> None:
        self.order.append(index)
        beside_it = self.generator.uniform(0, 4) if self.now < self.quiet_after else 0.0
        self.now += seconds * (1 + self.generator.uniform(0, self.noise) + beside_it)

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
    assert FEWEST_ROUNDS < ratio.rounds <= PATIENCE * MOST_ROUNDS
    assert ratio.low <= 0.5 <= ratio.high
    late = Machine([0.010, 0.005], noise=0.05)
    assert time_in_turn(late.passes, "timing", most_seconds=0.01, clock=late.clock).ratios[0].rounds == FEWEST_ROUNDS


def test_a_machine_that_does_something_else_for_a_while_is_waited_for() -> None:
    """Ten seconds of other work had made a table with intervals of ±20 %, which nothing said."""
    machine = Machine([0.10, 0.05], quiet_after=10.0)
    (ratio,) = time_in_turn(machine.passes, "timing", clock=machine.clock).ratios
    assert ratio.value == pytest.approx(0.5, rel=0.02)
    assert ratio.high - ratio.low <= WIDE * ratio.value
    assert MOST_ROUNDS < ratio.rounds < PATIENCE * MOST_ROUNDS
    busy = Machine([0.10, 0.05], quiet_after=1e9)
    (ratio,) = time_in_turn(busy.passes, "timing", clock=busy.clock, most_seconds=10.0).ratios
    assert ratio.high - ratio.low > WIDE * ratio.value
    assert 30 <= busy.now < 35  # not for ever


def test_times_that_were_taken_elsewhere_give_the_same() -> None:
    timed = timed_of([[10.0] * 7, [4.0] * 7])
    assert (timed.base_ms, timed.ratios[0].value, timed.ratios[0].rounds) == (10.0, 0.4, 7)
