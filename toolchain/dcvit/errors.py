"""The two ways a command can fail, and their exit statuses."""

from typing import Any


class DcvitError(Exception):
    """Base of every error that the tool raises on purpose; its text is one line for the user."""

    exit_status = 1


class InputError(DcvitError):
    """The input is wrong: says what, where, and what to do about it. Exit status 2."""

    exit_status = 2


class TargetError(InputError):
    """What was asked of a run cannot be reached, so no state of it is worth keeping.

    Attributes:
        reach: Shares of the MACs, from the least to the most, that could have been asked for; None where that is not
            what is wrong.
    """

    def __init__(self, message: str, reach: tuple[float, float] | None = None) -> None:
        super().__init__(message)
        self.reach = reach


class WriteError(InputError):
    """The machine refuses to write: disk full, read-only, no permission. Results and checkpoints are as they were."""


class CheckFailedError(DcvitError):
    """The input is right, but a check did not hold (parity, accuracy, latency). Exit status 1."""

    exit_status = 1


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none: libraries' errors run over many lines."""
    lines: list[Any] = str(error).strip().splitlines()
    return str(lines[0]) if lines else type(error).__name__
