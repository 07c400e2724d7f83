"""The warm-up ends when times have come to rest, on a clock that the test turns."""

from collections.abc import Callable

from dcvit.bench.warm_up import warm_up


class Machine:
    def __init__(self) -> None:
        self.now = 0.0

    def model(self, seconds: Callable[[float], float]) -> Callable[[], None]:
        def forward() -> None:
            self.now += seconds(self.now)

        return forward

    def clock(self) -> float:
        return self.now


def test_steady_models_take_two_windows_after_their_first_run() -> None:
    machine = Machine()
    cold = machine.model(lambda now: 3.0 if now < 1 else 0.01)
    ended = warm_up(cold, machine.model(lambda now: 0.01), clock=machine.clock, max_seconds=9)
    assert ended.steady
    assert 1 + 2 * 25 <= ended.runs <= 1 + 2 * 26  # windows of 0.5 s, pairs of 0.02 s
    assert 4 < ended.seconds < 4.2


def test_it_goes_on_while_one_of_them_still_gets_faster() -> None:
    machine = Machine()
    falling = machine.model(lambda now: max(0.01, 0.05 * 2 ** (-2 * now)))
    ended = warm_up(machine.model(lambda now: 0.01), falling, clock=machine.clock)
    assert ended.steady
    assert ended.seconds > 1.16 + 0.5  # at rest from log2(5) / 2 s on, and then for a window


def test_models_that_never_come_to_rest_end_it_by_time_after_three_runs() -> None:
    machine = Machine()
    restless = machine.model(lambda now: 0.02 if int(now / 0.5) % 2 else 0.05)
    ended = warm_up(restless, restless, clock=machine.clock)
    assert not ended.steady
    assert 3 <= ended.seconds < 3.6
    slow = Machine()
    slower = slow.model(lambda now: 10 + now)
    assert warm_up(slower, slower, clock=slow.clock).runs == 3
