"""`dcvit-tool evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import Field

from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.cli.task import TaskOption, check_task
from dcvit.flags import Argument, Flag
from dcvit.settings import LabelSettings, MaskSettings, WeightSettings
from dcvit.variant import WantedVariant


class Options(TaskOption, WeightSettings, MaskSettings, LabelSettings, WantedVariant):
    """Which model, on which images, and how it is run."""

    model: Annotated[str, Argument()]
    data: Annotated[str, Flag()] = Field(
        description="A folder of class folders, a tar of one, or 'digits'; for segmentation one of images/ and masks/, "
        "'shapes' or 'thin-shapes'."
    )
    runtime: Annotated[str, Flag()] = Field(default="torch", description="A runtime that `dcvit-tool doctor` lists.")
    as_original_of: Annotated[Path | None, Flag(metavar="FOLDER")] = Field(
        default=None,
        description="A model folder made from MODEL: its report shows this accuracy as the one before.",
    )


@click.command("evaluate", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Measure top-1 and top-5 accuracy on labelled images, or mIoU on masks, through any runtime.

    MODEL is a timm name or a model folder.
    """
    check_task(given.model, given.task)
    from dcvit.evaluation import evaluate
    from dcvit.folder.findings import check_original, note_evaluation

    compressed = None if given.as_original_of is None else check_original(given.as_original_of, given.model)
    result = evaluate(
        given.model,
        given.data,
        runtime=given.runtime,
        precision=given.wish("precision"),
        with_preprocessing=given.wish("with_preprocessing"),
        batch=given.wish("batch"),
        model_kwargs=given.model_kwargs,
        checkpoint=given.checkpoint,
        weights=given.weights,
        mask_values=given.mask_values,
        ignore_index=given.ignore_index,
        class_map=given.class_map,
    )
    if compressed is not None:
        note_evaluation(compressed, result.to_record(), batch=result.batch, file=None)
    return result
