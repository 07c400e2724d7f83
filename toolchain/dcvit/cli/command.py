"""What every command shares: --json, --debug, progress on stderr, and how a result reaches the user."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import click

from dcvit.files import json_text
from dcvit.progress import reporting_to

T = TypeVar("T")


class Result(Protocol):
    """What a command returns: data for scripts and lines for people."""

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""

    def lines(self) -> Iterable[Any]:
        """What rich prints: strings and tables."""


class Command(click.Command):
    """A command whose function returns a `Result`; one with `passed` false ends with exit status 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON object on stdout; text goes to stderr."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and (args or not self.no_args_is_help):
            self._refuse_repeated(ctx, args)
        return super().parse_args(ctx, args)

    def _refuse_repeated(self, ctx: click.Context, args: list[str]) -> None:
        """An option of one value that is given twice is a mistake: click would silently keep the last one."""
        _, _, given = self.make_parser(ctx).parse_args([*args])
        for option in dict.fromkeys(given):
            if isinstance(option, click.Option) and not (option.multiple or option.count or option.is_eager):
                times = given.count(option)
                if times > 1:
                    raise click.UsageError(f"{option.opts[0]} is given {times} times, and takes one value", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        as_json, debug = ctx.params.pop("as_json"), ctx.params.pop("debug")
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        if not debug:
            # Notes to the developers of torch, timm and their like; ours are raised or logged under `dcvit`.
            warnings.simplefilter("ignore")
            logging.getLogger().setLevel(logging.ERROR)
            logging.getLogger("dcvit").setLevel(logging.WARNING)
            # It prints every retry of a download through a handler of its own; a failure is our error anyway.
            os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        # Of several processes that torchrun started, the first speaks for all.
        first = os.environ.get("RANK", "0") == "0"
        with reporting_to(_RichReporter()) if first else nullcontext():
            result: Result = super().invoke(ctx)
        if first:
            _print(result, stderr=as_json)
        if first and as_json:
            click.echo(json_text(result.to_json()))
        if not getattr(result, "passed", True):
            ctx.exit(1)
        return result


def _print(result: Result, *, stderr: bool) -> None:
    from rich.console import Console

    # Square brackets and colons in paths are no markup.
    plain: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    console = Console(**plain)
    if not console.is_terminal:
        # A pipe has no width: tables must not be folded to a guess.
        console = Console(**plain, width=160)
    for line in result.lines():
        console.print(line, soft_wrap=isinstance(line, str))  # a path is not cut in two


STATUS_SECONDS = 30.0
"""Between two lines about work under way, where no terminal shows it live."""


class _RichReporter:
    """A bar with the time left on stderr, and below it how the work stands; where that is no terminal, lines."""

    def __init__(self) -> None:
        self._live: Any = None
        self._told = 0.0

    def track(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        started, done = time.perf_counter(), 0
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
        console = Console(stderr=True, markup=False, emoji=False)
        self._told = started
        with _progress_with_status(*columns, console=console, transient=True, disable=not console.is_terminal) as live:
            outer, self._live = self._live, live if console.is_terminal else None
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
        elif time.perf_counter() - self._told >= STATUS_SECONDS:
            self._told = time.perf_counter()
            self.say(text)


def _progress_with_status(*columns: Any, **options: Any) -> Any:
    from rich.progress import Progress

    class WithStatus(Progress):
        status = ""

        def get_renderables(self) -> Iterable[Any]:
            yield from super().get_renderables()
            yield self.status

    return WithStatus(*columns, **options)
