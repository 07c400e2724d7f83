"""`dcvit-tool compress`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.options import run_options, settings_from, target_from, target_options
from dcvit.cli.task import task_options


@click.command("compress", cls=Command)
@click.argument("model")
@click.option("--data", help="A folder of images, a tar of one, or 'digits'. Labels are not used.")
@target_options
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The model folder to write.")
@click.option(
    "--recover",
    type=click.Choice(["mimic", "none"]),
    default="mimic",
    show_default=True,
    help="'none' only cuts and merges, and needs no data.",
)
@run_options
@task_options
def command(
    model: str,
    data: str | None,
    out: Path,
    recover: str,
    samples: int,
    seed: int,
    checkpoint: Path | None,
    random_init: bool,
    model_kwargs: dict[str, Any] | None,
    cache: Path | None,
    resume: bool,
    overwrite: bool,
    task: Any,
    head: Any,
    **flags: Any,
) -> Any:
    """Make a model smaller: find a plan, recover accuracy on a few unlabelled images, write a model folder.

    MODEL is a timm name or a model folder.
    """
    from dcvit.compression import compress

    settings = settings_from(flags)
    return compress(
        model,
        data,
        out=out,
        target=target_from(**flags),
        settings=settings,
        recover=recover,  # type: ignore[arg-type]
        samples=samples,
        seed=seed,
        model_kwargs=model_kwargs,
        checkpoint=checkpoint,
        weights="random" if random_init else "pretrained",
        cache=cache,
        resume=resume,
        overwrite=overwrite,
        task=task,
        head=head,
    )
