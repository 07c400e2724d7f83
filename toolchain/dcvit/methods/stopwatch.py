"""Where the time of a run went."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall time by stage; a stage within another is not counted twice."""

    def __init__(self) -> None:
        """Starts with no stage."""
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts a block for the stage `name`, but for the stages that it holds itself."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """Seconds by stage since `before`, an earlier copy of `seconds`; stages that did not run are left out."""
        grown = {name: spent - before.get(name, 0.0) for name, spent in self.seconds.items()}
        return {name: round(spent, 3) for name, spent in grown.items() if spent > 0}
