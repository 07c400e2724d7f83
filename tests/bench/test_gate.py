"""The gate on a simulated machine that drifts, is busy in bursts, and has heavy tails."""

from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest

from dcvit.bench.gate import Judgement, judge, measure
from dcvit.bench.rounds import timed_rounds
from dcvit.bench.timers import wall_timer

from .noisy_machine import NoisyMachine


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage at the start of every simulated session would take nearly all of the time."""
    monkeypatch.setattr("dcvit.bench.rounds.gc.collect", lambda: 0)


BASELINE_MS, CANDIDATE_MS = 2.6, 1.5
SPEEDUP = BASELINE_MS / CANDIDATE_MS
GROUP = 7


def gate(seed: int, slower: float, *, max_seconds: float = 20, **noise: float) -> Judgement:
    machine = NoisyMachine(seed, **noise)
    open_pair = partial(machine.open_pair, BASELINE_MS, CANDIDATE_MS * (1 + slower))
    return judge(open_pair, 0.95 * SPEEDUP, GROUP, max_seconds, machine.clock, wall_timer(machine.clock))


def outcomes(runs: int, slower: float, **options: float) -> Counter[str]:
    return Counter(gate(seed, slower, **options).outcome for seed in range(runs))


def test_unchanged_models_raise_no_alarm() -> None:
    found = outcomes(200, slower=0.0)
    assert found["failed"] == 0
    assert found["passed"] >= 198


def test_ten_percent_slower_is_always_caught() -> None:
    found = outcomes(200, slower=0.10)
    assert found["passed"] == 0
    assert found["failed"] >= 198


@pytest.mark.parametrize("busy", [0.0, 1.0])
def test_it_holds_on_a_quiet_machine_and_on_one_that_is_always_busy(busy: float) -> None:
    assert outcomes(40, slower=0.0, busy=busy)["passed"] >= 39
    assert outcomes(40, slower=0.10, busy=busy)["failed"] >= 39


def test_at_the_threshold_it_takes_longer_and_may_say_that_it_cannot_tell() -> None:
    clear, close = [gate(seed, 0.0) for seed in range(30)], [gate(seed, 1 / 0.95 - 1) for seed in range(30)]
    assert np.median([each.seconds for each in close]) > 2 * np.median([each.seconds for each in clear])
    assert all(each.seconds < 20 + 1.5 for each in close)  # the limit, and the sample that was under way
    short = outcomes(30, slower=1 / 0.95 - 1, max_seconds=2)
    assert short["undecided"] >= 25


def test_one_session_that_is_wrong_is_outvoted() -> None:
    # Sessions differ by 5 %, so that one in ten of a model that has not changed says that it lies below the threshold.
    found = [gate(seed, 0.0, session_noise=0.05) for seed in range(200)]
    wrong = sum(each.sides.count("below") for each in found) / sum(len(each.sides) for each in found)
    assert wrong > 0.06
    # e² / (e² + (1−e)²) is 1.2 % at e = 0.1: 2.4 of 200 are expected, and three deviations more are 7.
    assert sum(each.outcome == "failed" for each in found) <= 7


def test_a_baseline_is_measured_to_one_percent_over_many_sessions() -> None:
    close = 0
    for seed in range(20):
        machine = NoisyMachine(seed)
        open_pair = partial(machine.open_pair, BASELINE_MS, CANDIDATE_MS)
        found = measure(open_pair, 0.01, 60, machine.clock, wall_timer(machine.clock))
        assert found.sessions >= 8
        assert 6 <= found.group <= 9  # 30 ms of 4.1 ms, and the machine is 10 % faster or slower at times
        low, high = found.interval
        assert low <= found.speedup <= high
        assert high - low <= 0.02 * found.speedup
        close += abs(found.speedup / SPEEDUP - 1) < 0.02
    assert close >= 19


def test_without_groups_other_processes_make_a_false_ratio() -> None:
    """Why a sample is made of the fastest passes: the slower model is interrupted more often."""
    machine = NoisyMachine(0, busy=1.0, session_noise=0.0)
    baseline, candidate = machine.open_pair(3 * BASELINE_MS, 3 * CANDIDATE_MS)
    rounds = islice(timed_rounds(baseline.execute, candidate.execute, wall_timer(machine.clock)), 8 * 500)
    times = np.array(list(rounds))
    ratios, fastest = times[:, 0] / times[:, 1], times.reshape(-1, 8, 2).min(axis=1)
    assert abs(np.median(ratios) / SPEEDUP - 1) > 0.05
    assert abs(np.median(fastest[:, 0] / fastest[:, 1]) / SPEEDUP - 1) < 0.03
