"""`dcvit-tool inspect`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command


@click.command("inspect", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> Any:
    """Show what a model folder holds: plan, costs, origin, files. Checks the sha256 of every file."""
    from dcvit.inspection import inspect

    return inspect(folder)
