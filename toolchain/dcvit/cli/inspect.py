"""`dcvit-tool inspect`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command


@click.command("inspect", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    help="A folder to draw into: the token grid after each merge, and the channels that each block keeps.",
)
@click.option("--data", help="Images (a folder, a tar, 'digits' or 'shapes') to draw the grids over the first one of.")
@click.option("--layers", is_flag=True, help="List the layers of the exported files, and what each computes in.")
def command(folder: Path, pictures: Path | None, data: str | None, layers: bool) -> Any:
    """Show what a model folder holds: plan, costs, origin, files. Checks the sha256 of every file."""
    from dcvit.inspection import inspect

    return inspect(folder, pictures=pictures, data=data, layers=layers)
