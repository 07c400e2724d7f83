"""A machine whose clock the tests turn, with the noise of real ones, and models that run on it."""

import math
import random
from typing import Any

from torch import Tensor

from dcvit.runtimes import Session


class NoisyMachine:
    """Simulates one core: its clock drifts, other processes take it away in bursts, and a pass is slow now and then.

    Attributes:
        now: Seconds.
        sessions: That were opened.
    """

    def __init__(self, seed: int, *, busy: float = 0.5, session_noise: float = 0.015) -> None:
        """Args are the share of the time in which others want the core, and the deviation of a session's speed."""
        self.now, self.sessions = 0.0, 0
        self._random, self._busy, self._session_noise = random.Random(seed), busy, session_noise
        self._phase_ends, self._contended = 0.0, False
        self._drift = self._random.uniform(0, 6)

    def clock(self) -> float:
        return self.now

    def open_pair(self, baseline_ms: float, candidate_ms: float) -> tuple[Session, Session]:
        self.sessions += 1
        self.now += 0.05
        return self._session(baseline_ms), self._session(candidate_ms)

    def _session(self, milliseconds: float) -> Session:
        return _Simulated(self, milliseconds / 1000 * math.exp(self._random.gauss(0, self._session_noise / 1.41)))

    def run(self, work: float) -> None:
        """Spends the time that some seconds of work take here and now."""
        if self.now > self._phase_ends:
            self._contended = self._random.random() < self._busy
            self._phase_ends = self.now + self._random.expovariate(1.5)
        draw = self._random.random()
        tail = 1 if draw > 0.02 else 0.02 / max(draw, 1e-4)  # Pareto, with no finite mean but for the cap
        taken = work * (1 + 0.1 * math.sin(0.8 * self.now + self._drift)) * math.exp(self._random.gauss(0, 0.02)) * tail
        left = taken
        while self._contended and (slice_ := self._random.expovariate(250)) < left:
            left -= slice_
            taken += 0.004
        self.now += taken


class _Simulated(Session):
    def __init__(self, machine: NoisyMachine, work: float) -> None:
        super().__init__(1, "a simulated core", 1)
        self._machine, self._work = machine, work

    def load(self, images: Tensor) -> None:
        pass

    def execute(self) -> None:
        self._machine.run(self._work)

    def logits(self) -> Any:
        raise NotImplementedError
