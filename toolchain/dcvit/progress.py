"""Progress of long work. Library code reports; the command line decides whether and how to show it."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """Shows progress."""

    def track(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        """Passes the items on, and shows how far they are."""

    def say(self, text: str) -> None:
        """Shows one line about what happened."""

    def status(self, text: str) -> None:
        """Shows how the work under way stands, in the place of what it said before."""


class _Silent:
    def track(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:  # noqa: ARG002
        yield from items

    def say(self, text: str) -> None:
        pass

    def status(self, text: str) -> None:
        pass


_SILENT = _Silent()
_reporter: ContextVar[Reporter] = ContextVar("reporter")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Passes the items on, and reports how far they are. `total` is needed where the items have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    return _reporter.get(_SILENT).track(items, description, total)


def say(text: str) -> None:
    """Reports one line about what happened."""
    _reporter.get(_SILENT).say(text)


def status(text: str) -> None:
    """Reports how the work under way stands; a later status replaces it."""
    _reporter.get(_SILENT).status(text)


@contextmanager
def reporting_to(reporter: Reporter | None) -> Iterator[None]:
    """Sends the progress of a block to a reporter; without one it goes nowhere."""
    token = _reporter.set(reporter or _SILENT)
    try:
        yield
    finally:
        _reporter.reset(token)
