"""`dcvit-tool package`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import BaseModel, ConfigDict, Field

from dcvit.cli.batches import batch_named
from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.flags import Argument, Flag
from dcvit.variant import Precision


class Options(BaseModel):
    """Which file is packed, and what for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Annotated[Path, Argument()]
    server: Annotated[Literal["triton", "onnxruntime", "tensorrt", "openvino"], Flag("--for")] = Field(
        description="What is to run it."
    )
    out: Annotated[Path, Flag(short="-o", path="folder")] = Field(description="The folder to write.")
    batch: Annotated[str | None, Flag(metavar="N|dynamic", default="dynamic, else the last exported")] = Field(
        default=None, description="Of the file to take."
    )
    precision: Annotated[Precision | None, Flag(default="that of the same file")] = Field(
        default=None, description="Of the file to take."
    )
    with_preprocessing: Annotated[bool, Flag()] = Field(default=False, description="Take a file of pixels.")
    overwrite: Annotated[bool, Flag()] = Field(default=False, description="Replace what stands at DIR.")


@click.command("package", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Write what a server needs: the exported file, its configuration, labels, and a client that prepares images.

    For Triton Inference Server a model repository, for OpenVINO its IR, for TensorRT the engines of the folder and the
    line that builds one; beside it the lines in C++.
    """
    batch = None if given.batch is None else batch_named(given.batch)
    from dcvit.packaging import package

    return package(
        given.folder,
        given.server,
        given.out,
        batch=batch,
        precision=given.precision,
        with_preprocessing=given.with_preprocessing,
        overwrite=given.overwrite,
    )
