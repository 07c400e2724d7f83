"""The protocol, on a clock that the test turns."""

from collections.abc import Callable

import pytest

from dcvit.bench.rounds import FEWEST_ROUNDS, TIGHT_AFTER, Limits, Rounds, run_rounds
from dcvit.errors import InputError


class Machine:
    """Models that take the time they are told to; the first passes are slow, as they are."""

    def __init__(self, noise: Callable[[int], float] = lambda call: 1.0) -> None:
        self.now, self.calls, self.noise = 0.0, [], noise

    def model(self, name: str, seconds: float) -> Callable[[], None]:
        def forward() -> None:
            self.calls.append(name)
            cold = 50 if self.calls.count(name) == 1 else 1
            self.now += cold * seconds * self.noise(len(self.calls))

        return forward

    def run(self, limits: Limits, seconds: float = 0.02) -> Rounds:
        baseline, candidate = self.model("baseline", 2 * seconds), self.model("candidate", seconds)
        return run_rounds(baseline, candidate, limits, "timing", clock=lambda: self.now)


def uneven(call: int) -> float:
    return 1 + 0.2 * ((call * 7919) % 13) / 13


def test_runs_are_counted_exactly_and_warm_up_is_not_timed() -> None:
    machine = Machine()
    rounds = machine.run(Limits(runs=30, max_seconds=None))
    assert rounds.stopped == "runs"
    assert rounds.baseline_ms == pytest.approx([40.0] * 30)
    assert rounds.candidate_ms == pytest.approx([20.0] * 30)
    warm_up = len(machine.calls) - 60
    assert warm_up >= 4
    assert machine.calls.count("baseline") == machine.calls.count("candidate")


def test_the_order_within_a_round_is_random() -> None:
    machine = Machine()
    machine.run(Limits(runs=100, max_seconds=None))
    rounds = machine.calls[-200:]
    pairs = list(zip(rounds[::2], rounds[1::2], strict=True))
    assert all(set(pair) == {"baseline", "candidate"} for pair in pairs)
    first = sum(pair[0] == "baseline" for pair in pairs)
    assert 35 < first < 65  # 50 ± 3 deviations of a fair coin


def test_it_stops_when_the_interval_is_tight() -> None:
    rounds = Machine().run(Limits())
    assert rounds.stopped == "interval"
    assert len(rounds.baseline_ms) == TIGHT_AFTER
    noisy = Machine(uneven).run(Limits(max_seconds=1e6))
    assert noisy.stopped == "interval"
    assert len(noisy.baseline_ms) > TIGHT_AFTER


def test_it_stops_at_the_time_limit_but_not_before_five_rounds() -> None:
    rounds = Machine(uneven).run(Limits(max_seconds=1.0))
    assert rounds.stopped == "time limit"
    assert 1000 <= sum(rounds.baseline_ms) + sum(rounds.candidate_ms) < 1100
    slow = Machine().run(Limits(max_seconds=1.0), seconds=10)
    assert slow.stopped == "time limit"
    assert len(slow.baseline_ms) == FEWEST_ROUNDS
    limited = Machine().run(Limits(runs=500, max_seconds=1.0))
    assert limited.stopped == "time limit"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"runs": 0}, "--runs 0: an interval needs at least 5"),
        ({"runs": 4}, "--runs 4"),
        ({"max_seconds": 0.0}, r"--max-seconds 0\.0"),
        ({"max_seconds": float("nan")}, "--max-seconds nan"),
    ],
)
def test_limits_that_allow_no_interval_are_refused(limits: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Limits(**limits)
