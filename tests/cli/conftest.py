"""Running the tool in the test's own process: importing torch anew for every command would take most of the time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from dcvit.cli.main import cli


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line on stderr."""
        (line,) = self.stderr.splitlines()
        return line.removeprefix("Error: ")


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs `dcvit-tool` with some arguments."""

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        try:
            cli([str(argument) for argument in arguments])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capfd.readouterr())

    return run
