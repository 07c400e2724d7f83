"""`dcvit-tool`: the group that finds the commands and turns errors into one line and an exit status."""

import ast
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dcvit.errors import DcvitError

# Each command is the object `command` of the module of its name.
COMMANDS = (
    "plan", "compress", "frontier", "export", "verify", "evaluate", "bench", "inspect", "report", "doctor", "demo",
)  # fmt: skip


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
        try:
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
            _fail(arguments, "interrupted", 130)
        except Exception as error:
            # Not foreseen, so a defect: still one line, and where the rest is.
            _fail(arguments, f"internal error: {type(error).__name__}: {error} (--debug shows where)", 1)


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
    message = " ".join(message.split())
    click.echo(f"Error: {message}", err=True)
    if "--json" in arguments:
        click.echo(json.dumps({"error": message, "exit_status": status}))
    sys.exit(status)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dcvit-tool", message="%(prog)s %(version)s")
def cli() -> None:
    r"""Make a Vision Transformer faster with few or no labels, and ship it: PyTorch, ONNX, TensorRT.

    \b
    dcvit-tool demo                                        the whole path on bundled data
    dcvit-tool compress MODEL --data D --macs-reduction R -o OUT
    dcvit-tool export OUT --precision fp16 --trt
    dcvit-tool verify OUT --data D
    dcvit-tool bench OUT
    dcvit-tool report OUT

    Exit status: 0 done, 1 a check did not hold, 2 the input is wrong.
    """


if __name__ == "__main__":
    cli()
