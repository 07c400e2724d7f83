"""Time by stage."""

import pytest

from dcvit.methods import stopwatch


def test_an_inner_stage_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 4.0, 10.0, 20.0, 25.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(times))
    watch = stopwatch.Stopwatch()
    with watch.stage("outer"), watch.stage("inner"):
        pass
    assert watch.seconds == {"outer": 7.0, "inner": 3.0}
    before = dict(watch.seconds)
    with watch.stage("inner"):
        pass
    assert watch.since(before) == {"inner": 5.0}


def test_a_stage_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(times))
    watch = stopwatch.Stopwatch()
    with pytest.raises(KeyError), watch.stage("failing"):
        raise KeyError
    assert watch.seconds == {"failing": 2.0}
