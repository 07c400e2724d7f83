"""`dcvit-tool doctor`."""

from typing import Any

import click

from dcvit.cli.command import Command


@click.command("doctor", cls=Command)
def command() -> Any:
    """Show what is usable on this machine, and how to get the rest."""
    from dcvit.doctor import examine

    return examine()
