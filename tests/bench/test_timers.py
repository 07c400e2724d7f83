"""What a pass is said to take, on a clock that the test turns."""

from pathlib import Path

import pytest

from dcvit.bench import timers
from dcvit.bench.timers import undisturbed_timer, wall_timer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timers.time, "perf_counter", clock)
    return clock


def test_the_wall_timer_reads_the_clock(clock: Clock) -> None:
    assert wall_timer(clock)(lambda: clock.wait(2.5)) == 2.5


def test_waiting_for_a_core_is_taken_off_and_any_other_wait_is_not(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "schedstat"
    file.write_text("700 1000000000 1\n")
    monkeypatch.setattr(timers, "_SCHEDSTAT", file)
    timer = undisturbed_timer()

    def disturbed() -> None:
        clock.wait(0.2)
        file.write_text("900 1150000000 2\n")  # 0.15 s of them without a core

    assert timer(lambda: clock.wait(0.2)) == pytest.approx(0.2)
    assert timer(disturbed) == pytest.approx(0.05)


def test_without_the_kernels_figure_it_is_the_time_on_the_clock(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "_SCHEDSTAT", tmp_path / "none")
    assert undisturbed_timer()(lambda: clock.wait(0.2)) == pytest.approx(0.2)
