"""Figures from the times of interleaved rounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dcvit.errors import InputError

Protocol = Literal["default", "paper"]
"""What stands for many times: their median, or their mean as in the papers (500 runs)."""

Verdict = Literal["faster", "slower", "no difference"]

_QUANTILES = 41
_RESAMPLES = 1000
_CENTRE: dict[Protocol, Callable[..., NDArray[np.float64]]] = {"default": np.median, "paper": np.mean}


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass of one batch, in ms.

    Attributes:
        quantiles_ms: 41 quantiles at equal steps, from the smallest time to the largest: how the times are distributed.
    """

    median_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    quantiles_ms: tuple[float, ...] = ()

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> "Latency":
        """Median (p50), 95th and 99th percentile, mean, and the quantiles."""
        p50, p95, p99 = np.percentile(times_ms, [50, 95, 99])
        quantiles = np.percentile(times_ms, np.linspace(0, 100, _QUANTILES)).round(4)
        return cls(float(p50), float(p95), float(p99), float(np.mean(times_ms)), tuple(quantiles.tolist()))

    def of_protocol(self, protocol: Protocol) -> float:
        """The time that the protocol reports: the median, or the mean."""
        return self.mean_ms if protocol == "paper" else self.median_ms


def check_protocol(protocol: str) -> None:
    """Raises InputError unless there is such a protocol."""
    if protocol not in get_args(Protocol):
        raise InputError(f"--protocol {protocol}: choose {' or '.join(get_args(Protocol))}")


def speedup(baseline_ms: Sequence[float], candidate_ms: Sequence[float], protocol: Protocol = "default") -> float:
    """How many times faster the candidate is: the ratio of the medians, or of the means.

    Not the median of the rounds' ratios, which is nearly the same number, but not the quotient of the two times that
    stand in the table beside it.
    """
    centre = _CENTRE[protocol]
    return float(centre(baseline_ms) / centre(candidate_ms))


def speedup_interval(
    baseline_ms: Sequence[float], candidate_ms: Sequence[float], protocol: Protocol = "default"
) -> tuple[float, float]:
    """The 95 % interval of the speed-up: percentile bootstrap of `speedup` over blocks of consecutive rounds.

    Rounds are resampled whole, for the two times of a round share what the machine was doing then, and in blocks of
    n^⅓ consecutive ones (circular block bootstrap, Politis & Romano 1992), for neighbours share it too.
    """
    baseline, candidate = np.asarray(baseline_ms), np.asarray(candidate_ms)
    generator, rounds, centre = np.random.default_rng(0), len(baseline), _CENTRE[protocol]
    length = round(rounds ** (1 / 3))
    blocks = -(-rounds // length)
    ratios: list[float] = []
    while len(ratios) < _RESAMPLES:
        # In portions: a fast model makes tens of thousands of rounds, and all resamples of them would fill the memory.
        portion = min(_RESAMPLES - len(ratios), 1 + 1_000_000 // rounds)
        starts = generator.integers(rounds, size=(portion, blocks, 1))
        drawn = ((starts + np.arange(length)) % rounds).reshape(portion, -1)[:, :rounds]
        ratios += (centre(baseline[drawn], axis=1) / centre(candidate[drawn], axis=1)).tolist()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def verdict(interval: tuple[float, float]) -> Verdict:
    """What an interval of the speed-up allows to say: nothing, where it holds 1."""
    low, high = interval
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "no difference"
