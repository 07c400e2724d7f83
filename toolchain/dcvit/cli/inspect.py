"""`dcvit-tool inspect`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, ConfigDict, Field

from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.flags import Argument, Flag


class Options(BaseModel):
    """Which folder is shown, and what of it is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[Path, Argument()]
    pictures: Annotated[Path | None, Flag()] = Field(
        default=None,
        description="A folder to draw into: the token grid after each merge, and the channels that each block keeps.",
    )
    data: Annotated[str | None, Flag()] = Field(
        default=None,
        description="Images (a folder, a tar, 'digits', 'shapes' or 'thin-shapes') to draw the grids over the first "
        "one of.",
    )
    layers: Annotated[bool, Flag()] = Field(
        default=False, description="List the layers of the exported files, and what each computes in."
    )


@click.command("inspect", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Show what a model folder holds: plan, costs, origin, files. Checks the sha256 of every file."""
    from dcvit.inspection import inspect

    return inspect(given.folder, pictures=given.pictures, data=given.data, layers=given.layers)
