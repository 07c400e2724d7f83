"""`dcvit-tool evaluate`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.options import weight_options
from dcvit.cli.task import checked_task_option


@click.command("evaluate", cls=Command)
@click.argument("model")
@click.option(
    "--data",
    required=True,
    help="A folder of class folders, a tar of one, or 'digits'; for segmentation one "
    "of images/ and masks/, or 'shapes'.",
)
@click.option(
    "--runtime",
    default="torch",
    show_default=True,
    help="A runtime that `dcvit-tool doctor` lists.",
)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16", "int8"]), default="fp32", show_default=True)
@click.option("--with-preprocessing", is_flag=True, help="Run the exported file that takes pixels.")
@click.option("--batch", type=int, default=64, show_default=True, help="Images in every batch.")
@click.option(
    "--as-original-of",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="A model folder made from MODEL: its report shows this accuracy as the one before.",
)
@weight_options
@checked_task_option
def command(
    model: str,
    data: str,
    runtime: str,
    precision: Any,
    with_preprocessing: bool,
    batch: int,
    as_original_of: Path | None,
    checkpoint: Path | None,
    random_init: bool,
    model_kwargs: dict[str, Any] | None,
) -> Any:
    """Measure top-1 and top-5 accuracy on labelled images, or mIoU on masks, through any runtime.

    MODEL is a timm name or a model folder.
    """
    from dcvit.evaluation import evaluate
    from dcvit.folder.findings import check_original, note_evaluation

    compressed = None if as_original_of is None else check_original(as_original_of, model)
    result = evaluate(
        model,
        data,
        runtime=runtime,
        precision=precision,
        with_preprocessing=with_preprocessing,
        batch=batch,
        model_kwargs=model_kwargs,
        checkpoint=checkpoint,
        weights="random" if random_init else "pretrained",
    )
    if compressed is not None:
        note_evaluation(compressed, result.to_json(), batch=batch, file=None)
    return result
