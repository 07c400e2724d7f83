"""`dcvit-tool plan`."""

from typing import Annotated, Any

import click
from pydantic import BaseModel

from dcvit.cli.fields import takes
from dcvit.cli.method_command import MethodCommand
from dcvit.cli.methods import method_options, read
from dcvit.flags import Argument, flags_of
from dcvit.settings import RunSettings

_OF_A_RUN = {field.name for field in flags_of(RunSettings)} - {"model_kwargs"}


class Options(BaseModel):
    """What is to be compressed."""

    model: Annotated[str, Argument()]


@click.command("plan", cls=MethodCommand)
@takes(Options)
@method_options(without=_OF_A_RUN)
def command(given: Options, **flags: Any) -> Any:
    """Show what would be cut, and MACs, parameters and tokens before and after.

    MODEL is a timm name or a model folder. Needs no data and no weights.
    """
    asked = read(given.model, flags, without=_OF_A_RUN)
    from dcvit.compression import check_known
    from dcvit.subject import open_shapes

    check_known(asked.method, asked.target, asked.run)
    return asked.method.summarize(open_shapes(given.model, asked.run.model_kwargs), asked.target, asked.settings)
