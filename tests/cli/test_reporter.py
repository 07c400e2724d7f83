"""Progress without a terminal, by a clock that the test sets."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcvit.cli import reporter as module
from dcvit.cli.reporter import LineReporter

Tool = Callable[..., Any]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A reporter, what it says, and its clock."""

    def __init__(self) -> None:
        self.clock, self.said = Clock(), list[str]()
        self.lines = LineReporter(30.0, self.clock, self.said.append)

    def second(self, seconds: float = 1.0) -> None:
        """Lets time pass, with a beat every second."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.lines.beat()


@pytest.fixture
def shown() -> Shown:
    return Shown()


def test_a_short_stage_is_one_line(shown: Shown) -> None:
    for _ in shown.lines.track(range(10), "fitting", 10):
        shown.second(2)
    assert shown.said == ["fitting: 10 in 20.0 s"]


def test_a_long_stage_has_an_estimate_and_a_line_every_30_seconds(shown: Shown) -> None:
    for _ in shown.lines.track(range(20), "trials", 20):
        shown.second(6)
    assert shown.said == [
        "trials: 20 will take about 2 min",  # 7 s in, with one done
        "trials: 6 of 20, 1:26 left",  # 30 s later
        "trials: 11 of 20, 0:55 left",
        "trials: 16 of 20, 0:24 left",
        "trials: 20 in 120.0 s",
    ]


def test_one_long_item_is_not_silent(shown: Shown) -> None:
    for _ in shown.lines.track([0], "checking engines", 1):
        shown.second(65)
    assert shown.said == [
        "checking engines: 0 of 1, 0:30 so far", "checking engines: 0 of 1, 1:00 so far",
        "checking engines: 1 in 65.0 s",
    ]  # fmt: skip


def test_work_without_items_is_not_silent(shown: Shown) -> None:
    shown.lines.say("building an engine")
    shown.second(3700)
    assert shown.said[:2] == ["building an engine", "building an engine: 0:30 so far"]
    assert shown.said[-1] == "building an engine: 1:01:30 so far"
    assert len(shown.said) == 1 + 3700 // 30


def test_stages_within_stages_and_how_they_stand(shown: Shown) -> None:
    for _ in shown.lines.track(range(2), "sizes", 2):
        for step in shown.lines.track(range(40), "training", None):
            shown.lines.status(f"loss {step}")
            shown.second()
        shown.lines.status("")
    assert "sizes: 0 of 2, 0:30 so far; training: 29, 0:30 so far (loss 29)" in shown.said
    assert shown.said[-1] == "sizes: 2 in 80.0 s"


def test_a_beat_while_the_work_goes_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The thread of a command: it beats while the work is in one long step, and ends with it."""
    beaten = threading.Event()
    monkeypatch.setattr(LineReporter, "beat", lambda self: beaten.set())
    with module.reporter(quiet=False, verbose=False) as lines:
        assert isinstance(lines, LineReporter)
        assert beaten.wait(10)
    assert "dcvit-progress" not in {thread.name for thread in threading.enumerate()}


def test_quiet_and_verbose(tool: Tool, exported: Path) -> None:
    quiet, usual, verbose = (tool("verify", exported, *flags) for flags in (["--quiet"], [], ["-v"]))
    assert quiet.stderr == ""
    assert quiet.stdout == usual.stdout
    assert "checking ONNX files: 2" in usual.stderr
    assert len(usual.stdout.splitlines()) <= 10
    assert "static shapes" not in usual.stdout
    assert "static shapes" in verbose.stdout
    assert len(verbose.stdout.splitlines()) > 20
    both = tool("verify", exported, "--quiet", "--verbose")
    assert (both.status, both.error.split(" (")[0]) == (2, "--quiet and --verbose exclude each other; give one of them")
