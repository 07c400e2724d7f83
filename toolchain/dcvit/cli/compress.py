"""`dcvit-tool compress`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.options import run_arguments, run_options, settings_from, target_from, target_options
from dcvit.cli.task import task_options
from dcvit.cli.training import joint_options, take_preset, training_options, was_given


@click.command("compress", cls=Command)
@click.argument("model")
@click.option("--data", help="A folder of images, a tar of one, or 'digits'. Only cait uses labels.")
@target_options
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The model folder to write.")
@click.option(
    "--recover",
    type=click.Choice(["mimic", "train", "none"]),
    help="'none' only cuts and merges, and needs no data. [default: mimic, or train with --method cait]",
)
@run_options
@joint_options
@training_options
@task_options
def command(
    model: str,
    data: str | None,
    out: Path,
    recover: str | None,
    task: Any,
    head: Any,
    **flags: Any,
) -> Any:
    """Make a model smaller: find a plan, recover accuracy, write a model folder.

    The default method needs a few unlabelled images; --method cait trains on many.
    MODEL is a timm name or a model folder.
    """
    from dcvit.compression import compress

    take_preset(model, flags)
    settings = settings_from(flags)
    arguments = run_arguments(flags)
    if settings.method == "cait" and not was_given("samples"):
        arguments["samples"] = None  # all
    minutes, tensorboard = flags.pop("checkpoint_every"), flags.pop("tensorboard")
    return compress(
        model,
        data,
        out=out,
        target=target_from(**flags),
        settings=settings,
        recover=recover,  # type: ignore[arg-type]
        checkpoint_minutes=10.0 if minutes is None else minutes,
        tensorboard=tensorboard,
        task=task,
        head=head,
        **arguments,
    )
