"""`dcvit-tool verify`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import Field

from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.cli.task import TaskOption, check_task
from dcvit.flags import Argument, Flag


class Options(TaskOption):
    """Which folder is checked, and on which images."""

    folder: Annotated[Path, Argument()]
    data: Annotated[str | None, Flag()] = Field(
        default=None, description="Real images to compare on: a folder, a tar of one, or 'digits'."
    )


@click.command("verify", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Check every ONNX file and engine of a model folder; exit status 1 if a check fails.

    Static shapes, core operators, types, and the same output as PyTorch. Engines run where their GPU is.
    """
    check_task(given.folder, given.task)
    from dcvit.verification import verify

    return verify(given.folder, given.data)
