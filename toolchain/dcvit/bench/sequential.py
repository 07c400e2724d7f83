"""Is a ratio above a threshold or below? A test that may be looked at after every sample and keeps its error rate.

A sample is one ratio of the two models' times, and the models take their turns in an order drawn by a fair coin. Say
that a pass takes a time of its own, times whatever the machine does at that moment. Then, where the true ratio *is* the
threshold, a sample lies above it or below with probability ½ each, independent of all others: exchanging the models'
turns exchanges above and below, and the coin decides. That holds for noise of any kind, with heavy tails, drifts and
bursts, for nothing is assumed of it but that it does not know the coin. So the sign of each sample is all that is used.

The test bets on those signs. Who stakes a share s of his money on "above" each time holds (1+s)^a · (1−s)^b after a
samples above and b below. Against a fair coin that is a martingale of mean 1, so the probability that it ever reaches
1/α is at most α (Ville's inequality), however often one looks and whenever one stops. The mean over several stakes is
such a martingale too, and grows nearly as fast as the best of them. (Betting tests: Shafer 2021; Waudby-Smith and
Ramdas 2024. Quantiles: Howard and Ramdas 2022.)
"""

from typing import Literal

import numpy as np

Side = Literal["above", "below"]

_STAKES = np.arange(1, 10) / 10


class SignTest:
    """Counts samples on either side of a threshold until they can be no accident.

    Attributes:
        above: Samples above the threshold.
        below: Samples below it. One exactly at it says nothing.
    """

    def __init__(self, threshold: float, alpha: float) -> None:
        """Starts with no samples.

        Args:
            threshold: To compare samples with.
            alpha: Greatest probability, for each side, of ever answering with it where the other one is true.
        """
        self.above = self.below = 0
        self._threshold, self._enough = threshold, float(np.log(1 / alpha))

    def add(self, sample: float) -> None:
        """Takes note of one sample."""
        self.above += sample > self._threshold
        self.below += sample < self._threshold

    def side(self) -> Side | None:
        """Where the true value lies; None while it may be either."""
        if _evidence(self.above, self.below) >= self._enough:
            return "above"
        return "below" if _evidence(self.below, self.above) >= self._enough else None


def _evidence(wins: int, losses: int) -> float:
    """Logarithm of what a bet of 1 has become, on the mean over the stakes."""
    logs = wins * np.log1p(_STAKES) + losses * np.log1p(-_STAKES)
    return float(np.logaddexp.reduce(logs) - np.log(len(_STAKES)))
