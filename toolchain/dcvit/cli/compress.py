"""`dcvit-tool compress`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.methods import method_options, read


@click.command("compress", cls=Command)
@click.argument("model")
@click.option(
    "--data", help="A folder of images, a tar of one, or 'digits'. Labels are used where a method learns from them."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The model folder to write.")
@method_options
def command(model: str, data: str | None, out: Path, **flags: Any) -> Any:
    """Make a model smaller: find a plan, recover accuracy, write a model folder.

    The default method needs a few unlabelled images. MODEL is a timm name or a model folder.
    """
    asked = read(model, flags)
    from dcvit.compression import compress

    return compress(model, data, out=out, target=asked.target, settings=asked.settings, **dict(asked.run))
