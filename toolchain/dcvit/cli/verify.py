"""`dcvit-tool verify`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.task import checked_task_option


@click.command("verify", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", help="Real images to compare on: a folder, a tar of one, or 'digits'.")
@checked_task_option
def command(folder: Path, data: str | None) -> Any:
    """Check every ONNX file and engine of a model folder; exit status 1 if a check fails.

    Static shapes, core operators, types, and the same output as PyTorch. Engines run where their GPU is.
    """
    from dcvit.verification import verify

    return verify(folder, data)
