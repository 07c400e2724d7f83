"""`dcvit-tool compress`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.options import target_from, target_options, weight_options


@click.command("compress", cls=Command)
@click.argument("model")
@click.option("--data", help="A folder of images, a tar of one, or 'digits'. Labels are not used.")
@click.option("--method", type=click.Choice(["dcvit"]), default="dcvit", show_default=True)
@target_options
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The model folder to write.")
@click.option("--samples", type=click.IntRange(min=1), default=500, show_default=True, help="Images to use.")
@click.option(
    "--search",
    type=click.Choice(["solver", "trials"]),
    default="solver",
    show_default=True,
    help="Measure and solve, or train a trial of each block as DC-ViT does.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Training steps; with trials after each compressed block.",
)
@click.option("--trial-steps", type=click.IntRange(min=0), help="Training steps of a trial. [default: --steps]")
@click.option(
    "--nodes",
    type=click.Choice(["importance", "random"]),
    default="importance",
    show_default=True,
    help="How trials choose the MLP nodes that stay.",
)
@click.option(
    "--recover",
    type=click.Choice(["mimic", "none"]),
    default="mimic",
    show_default=True,
    help="'none' only cuts and merges, and needs no data.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@weight_options
@click.option("--resume", is_flag=True, help="Continue an unfinished run.")
@click.option("--overwrite", is_flag=True, help="Replace a model folder at OUT.")
def command(
    model: str,
    data: str | None,
    method: str,  # noqa: ARG001 (one so far)
    out: Path,
    samples: int,
    search: str,
    steps: int,
    trial_steps: int | None,
    nodes: str,
    recover: str,
    seed: int,
    checkpoint: Path | None,
    random_init: bool,
    model_kwargs: dict[str, Any] | None,
    resume: bool,
    overwrite: bool,
    **target: Any,
) -> Any:
    """Make a model smaller: find a plan, recover accuracy on a few unlabelled images, write a model folder.

    MODEL is a timm name or a model folder.
    """  # fmt: skip
    from dcvit.compression import compress
    from dcvit.methods.settings import DcvitSettings

    return compress(
        model,
        data,
        out=out,
        target=target_from(**target),
        settings=DcvitSettings.model_validate(
            {"search": search, "steps": steps, "trial_steps": trial_steps, "nodes": nodes}
        ),
        recover=recover,  # type: ignore[arg-type]
        samples=samples,
        seed=seed,
        model_kwargs=model_kwargs,
        checkpoint=checkpoint,
        weights="random" if random_init else "pretrained",
        resume=resume,
        overwrite=overwrite,
    )
