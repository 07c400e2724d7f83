"""`dcvit-tool report`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, ConfigDict

from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.flags import Argument


class Options(BaseModel):
    """Which folder is reported on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[Path, Argument()]


@click.command("report", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Write an HTML report and a model card into a model folder, or into a frontier and its folders.

    Nothing is measured: it shows what compress, export, verify, evaluate and bench left there.
    """
    from dcvit.reporting import report

    return report(given.folder)
