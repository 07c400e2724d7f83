"""`dcvit-tool demo`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command


@click.command("demo", cls=Command)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("dcvit-demo"),
    show_default=True,
    help="The model folder to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model folder at OUT.")
def command(out: Path, overwrite: bool) -> Any:
    """Run the whole path on bundled data: compress, export, engine, verify, evaluate, bench, report."""  # fmt: skip
    from dcvit.demo import run_demo

    return run_demo(out, overwrite=overwrite)
