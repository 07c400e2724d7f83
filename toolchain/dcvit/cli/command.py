"""What every command shares: --json, --quiet, --verbose, --debug, and how a result reaches the user."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

import click

from dcvit.cli.reporter import reporter
from dcvit.files import json_text
from dcvit.progress import reporting_to


class Result(Protocol):
    """What a command returns: data for scripts and lines for people; with `details()`, more of them for --verbose."""

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
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress: the result and warnings alone."),
            click.Option(["-v", "--verbose"], is_flag=True,
                         help="Everything that was found, more lines of progress, and notes of the libraries."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]  # fmt: skip

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
        as_json, debug, quiet, verbose = (ctx.params.pop(name) for name in ("as_json", "debug", "quiet", "verbose"))
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose exclude each other; give one of them")
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        if not (debug or verbose):
            # Notes to the developers of torch, timm and their like; ours are raised or logged under `dcvit`.
            warnings.simplefilter("ignore")
            logging.getLogger().setLevel(logging.ERROR)
            logging.getLogger("dcvit").setLevel(logging.WARNING)
            # It prints every retry of a download through a handler of its own; a failure is our error anyway.
            os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        # Of several processes that torchrun started, the first speaks for all.
        first = os.environ.get("RANK", "0") == "0"
        with reporter(quiet=quiet or not first, verbose=verbose) as shown, reporting_to(shown):
            result: Result = super().invoke(ctx)
        if first:
            _print(result, stderr=as_json, verbose=verbose)
        if first and as_json:
            click.echo(json_text(result.to_json()))
        if not getattr(result, "passed", True):
            ctx.exit(1)
        return result


def _print(result: Result, *, stderr: bool, verbose: bool) -> None:
    from rich.console import Console

    # Square brackets and colons in paths are no markup.
    plain: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    console = Console(**plain)
    if not console.is_terminal:
        # A pipe has no width: tables must not be folded to a guess.
        console = Console(**plain, width=160)
    details = getattr(result, "details", None) if verbose else None
    for line in result.lines() if details is None else details():
        console.print(line, soft_wrap=isinstance(line, str))  # a path is not cut in two
