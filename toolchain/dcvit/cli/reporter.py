"""How progress reaches the user: a bar where stderr is a terminal, else lines, so that silence never lasts."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from dcvit.progress import Reporter

T = TypeVar("T")

SILENCE_SECONDS = 30.0
"""After so long without a line one says how the work stands."""
VERBOSE_SECONDS = 5.0
"""The same with --verbose."""
LONG_SECONDS = 60.0
"""A stage that will take longer gets an estimate at its start."""
_FIRST_SECONDS = 5.0
"""Into a stage, when its estimate is made: sooner it would be of the first, slow items."""


def reporter(*, quiet: bool, verbose: bool) -> AbstractContextManager[Reporter | None]:
    """Around a command: what shows its progress on stderr, if anything does."""
    if quiet:
        return nullcontext(None)
    if sys.stderr.isatty():
        return nullcontext(BarReporter())
    return _beating(LineReporter(VERBOSE_SECONDS if verbose else SILENCE_SECONDS))


@dataclass(eq=False)
class _Stage:
    description: str
    total: int | None
    started: float
    done: int = 0
    status: str = ""
    estimated: bool = False


class LineReporter:
    """Lines: when a stage ends, when one will be long, and whenever nothing was said for a while.

    `beat` says the last two, and is called about once a second, from another thread than the work's.
    """

    def __init__(
        self,
        silence: float = SILENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self._silence, self._clock = silence, clock
        self._echo = echo or (lambda text: click.echo(text, err=True))
        self._stages: list[_Stage] = []
        self._what, self._since = "starting", clock()
        self._told = self._since

    def track(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        stage = _Stage(description, total, self._clock())
        self._stages.append(stage)
        try:
            for item in items:
                yield item
                stage.done += 1
        finally:
            self._stages.remove(stage)
        self._line(f"{description}: {stage.done} in {self._clock() - stage.started:.1f} s")
        self._what, self._since = f"after {description}", self._clock()

    def say(self, text: str) -> None:
        self._line(text)
        self._what, self._since = text, self._clock()

    def status(self, text: str) -> None:
        if self._stages:
            self._stages[-1].status = text
        else:
            self._what = text

    def beat(self) -> None:
        """Says how the work stands, if that is due."""
        now = self._clock()
        stages = [*self._stages]  # the work's thread changes the list
        for stage in stages:
            left = _seconds_left(stage, now)
            if stage.estimated or left is None or now - stage.started < _FIRST_SECONDS:
                continue
            stage.estimated = True
            if now - stage.started + left > LONG_SECONDS:
                self._line(f"{stage.description}: {stage.total} will take about {_duration(left, coarse=True)}")
        if now - self._told >= self._silence:
            said = "; ".join(_standing(stage, now) for stage in stages)
            self._line(said or f"{self._what}: {_duration(now - self._since)} so far")

    def _line(self, text: str) -> None:
        self._told = self._clock()
        self._echo(text)


@contextmanager
def _beating(lines: LineReporter) -> Iterator[Reporter]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            lines.beat()

    thread = threading.Thread(target=beat, daemon=True, name="dcvit-progress")
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


def _seconds_left(stage: _Stage, now: float) -> float | None:
    if not stage.done or stage.total is None:
        return None
    return (now - stage.started) * max(stage.total - stage.done, 0) / stage.done


def _standing(stage: _Stage, now: float) -> str:
    left = _seconds_left(stage, now)
    of = "" if stage.total is None else f" of {stage.total}"
    time_left = f"{_duration(now - stage.started)} so far" if left is None else f"{_duration(left)} left"
    return f"{stage.description}: {stage.done}{of}, {time_left}" + (f" ({stage.status})" if stage.status else "")


def _duration(seconds: float, *, coarse: bool = False) -> str:
    if coarse:
        return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class BarReporter:
    """A bar with the time left, and below it how the work stands; a line when a stage ends."""

    def __init__(self) -> None:
        self._live: Any = None

    def track(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        started, done = time.perf_counter(), 0
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
        console = Console(stderr=True, markup=False, emoji=False)
        with _progress_with_status(*columns, console=console, transient=True) as live:
            outer, self._live = self._live, live
            try:
                for item in live.track(items, total=total, description=description):
                    yield item
                    done += 1
            finally:
                self._live = outer
        self.say(f"{description}: {done} in {time.perf_counter() - started:.1f} s")

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def status(self, text: str) -> None:
        if self._live is not None:
            self._live.status = text


def _progress_with_status(*columns: Any, **options: Any) -> Any:
    from rich.progress import Progress

    class WithStatus(Progress):
        status = ""

        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            yield self.status

    return WithStatus(*columns, **options)
