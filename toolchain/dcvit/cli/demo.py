"""`dcvit-tool demo`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, ConfigDict, Field

from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.flags import Flag


class Options(BaseModel):
    """Where the demo goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Annotated[Path, Flag(short="-o")] = Field(default=Path("dcvit-demo"), description="The model folder to write.")
    overwrite: Annotated[bool, Flag()] = Field(default=False, description="Replace a model folder at OUT.")


@click.command("demo", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Run the whole path on bundled data: compress, export, engine, verify, evaluate, bench, report."""  # fmt: skip
    from dcvit.demo import run_demo

    return run_demo(given.out, overwrite=given.overwrite)
