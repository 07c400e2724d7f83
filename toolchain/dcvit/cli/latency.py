"""`dcvit-tool latency`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, ConfigDict, Field

from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.flags import Argument, Flag
from dcvit.variant import DEFAULT_BATCH, Precision


class Options(BaseModel):
    """Which model, and where its blocks are timed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Annotated[str, Argument()]
    model_kwargs: Annotated[dict[str, Any] | None, Flag()] = Field(
        default=None, description="Arguments of timm.create_model, as JSON."
    )
    runtime: Annotated[str | None, Flag(default="onnxruntime")] = Field(
        default=None, description="A runtime that `dcvit-tool doctor` lists."
    )
    precision: Annotated[Precision, Flag()] = Field(default="fp32", description="Of the computation.")
    batch: Annotated[int, Flag()] = Field(default=DEFAULT_BATCH, ge=1, description="Images in every batch.")
    threads: Annotated[int | None, Flag(default="all cores")] = Field(default=None, ge=1, description="CPU threads.")
    merge: Annotated[str | None, Flag()] = Field(
        default=None, description="Time blocks behind these merges too: horizontal@4,vertical@8."
    )
    out: Annotated[Path | None, Flag(short="-o", path="file")] = Field(
        default=None, description="A JSON file to write, and beside it a plot (.png)."
    )
    again: Annotated[bool, Flag()] = Field(default=False, description="Measure anew, even if a table was kept.")
    probes: Annotated[Path | None, Flag("--write-probes", path="folder", metavar="DIR")] = Field(
        default=None, description="Write ONNX files and a script instead, to be timed on a device without this tool."
    )
    times: Annotated[Path | None, Flag(path="file")] = Field(
        default=None, description="Times that this script wrote: the table is made of them."
    )


@click.command("latency", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Show what each block costs at each width and number of tokens: milliseconds, on this machine or another.

    MODEL is a timm name or a model folder. Needs no data and no weights; a table is measured once and kept.
    """
    from dcvit.pricing import latency

    return latency(given.model, **{name: value for name, value in given if name != "model"})
