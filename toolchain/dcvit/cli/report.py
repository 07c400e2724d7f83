"""`dcvit-tool report`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command


@click.command("report", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> Any:
    """Write an HTML report and a model card into a model folder, or into a frontier and its folders.

    Nothing is measured: it shows what compress, export, verify, evaluate and bench left there.
    """
    from dcvit.report import report

    return report(folder)
