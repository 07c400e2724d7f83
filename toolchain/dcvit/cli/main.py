"""`dcvit-tool`: the group that finds the commands and turns errors into one line and an exit status."""

import ast
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dcvit.errors import DcvitError
from dcvit.files import json_text, refusal

# Each command is the object `command` of the module of its name.
COMMANDS = (
    "plan", "compress", "frontier", "export", "verify", "evaluate", "bench", "latency", "package", "inspect", "report",
    "doctor", "demo",
)  # fmt: skip


INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit statuses, as a shell gives them."""


class _TerminatedError(BaseException):
    """SIGTERM came. Like an interrupt it goes through everything, so that what is to be cleared up is."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"dcvit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in COMMANDS])

    def main(self, args: Sequence[str] | None = None, *_args: Any, **_kwargs: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what a terminal has no letter for is shown as a question mark
                stream.reconfigure(errors="replace")
        try:
            with _terminable():
                ended = super().main(arguments, prog_name="dcvit-tool", standalone_mode=False)
            if isinstance(ended, int):  # the status of ctx.exit; else it is the command's result
                sys.exit(ended)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "dcvit-tool"
            _fail(arguments, f"{error.format_message().rstrip('.')} (see {path} --help)", 2)
        except click.ClickException as error:
            _fail(arguments, error.format_message(), 2)
        except DcvitError as error:
            _fail(arguments, str(error), error.exit_status)
        except (KeyboardInterrupt, click.Abort):
            _stop(arguments, f"interrupted: {self._how_to_go_on(arguments)}", INTERRUPTED)
        except _TerminatedError:
            _stop(arguments, f"terminated: {self._how_to_go_on(arguments)}", TERMINATED)
        except Exception as error:
            if (reason := refusal(error)) is not None:
                _fail(arguments, f"{_place(error)}{reason}", 2)
            # Not foreseen, so a defect: still one line, and where the rest is.
            _fail(arguments, f"internal error: {type(error).__name__}: {error} (--debug shows where)", 1)

    def _how_to_go_on(self, arguments: Sequence[str]) -> str:
        name = next((each for each in arguments if each in COMMANDS), None)
        command = None if name is None else self.get_command(click.Context(self), name)
        if command is not None and any(parameter.name == "resume" for parameter in command.params):
            return "what is done is kept; give the same command with --resume to go on"
        return "what was there before is as it was; give the same command to start again"


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM an exception, once: a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _place(error: Exception) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return "" if name is None else f"{os.fsdecode(name)}: "


def _summary(name: str) -> str:
    """The first sentence of a command's help, read without importing its options: the list must appear at once."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    text = next(ast.get_docstring(node) or "" for node in functions if node.name == "command")
    return text.split("\n\n")[0].replace("\n", " ").rstrip(".")


def _fail(arguments: Sequence[str], message: str, status: int) -> None:
    """Ends with one line on stderr; with --json an object on stdout too; with --debug the traceback."""
    if "--debug" in arguments:
        raise
    _end(arguments, message, status)


def _stop(arguments: Sequence[str], message: str, status: int) -> None:
    """The same where nothing is wrong, but the user or the system wants an end: the status stays what it is."""
    if "--debug" in arguments:
        traceback.print_exc()
    _end(arguments, message, status)


def _end(arguments: Sequence[str], message: str, status: int) -> None:
    message = " ".join(message.split())
    try:
        click.echo(f"Error: {message}", err=True)
        if "--json" in arguments:
            click.echo(json_text({"error": message, "exit_status": status}))
        sys.stdout.flush()
    except OSError:  # nothing can be said, such as to a full disk: the status says it, and Python's end must not try
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


HELP = """Make a Vision Transformer faster with few or no labels, and ship it: PyTorch, ONNX, TensorRT.

\b
dcvit-tool demo                                        the whole path on bundled data
dcvit-tool compress MODEL --data D --macs-reduction R -o OUT
dcvit-tool export OUT --precision fp16 --trt
dcvit-tool verify OUT --data D
dcvit-tool bench OUT
dcvit-tool report OUT

Exit status: 0 done, 1 a check did not hold, 2 the input is wrong.
"""


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}, help=HELP)
@click.version_option(package_name="dcvit-tool", message="%(prog)s %(version)s")
def cli() -> None:
    """The group of all commands."""


if __name__ == "__main__":
    cli()
