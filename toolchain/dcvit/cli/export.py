"""`dcvit-tool export`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BeforeValidator, Field

from dcvit.cli.batches import batch_named
from dcvit.cli.command import Command
from dcvit.cli.fields import takes
from dcvit.cli.task import TaskOption, check_task
from dcvit.flags import Argument, Flag
from dcvit.settings import LabelSettings
from dcvit.variant import DEFAULT_BATCH, Flavor, Precision


def _numbers(value: Any) -> Any:
    """`1,64,256` as the command line has it, or numbers already."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _batches(words: Any) -> Any:
    return tuple(map(batch_named, words)) if isinstance(words, (tuple, list)) else words


class Options(TaskOption, LabelSettings):
    """What is exported, and what it is checked on."""

    folder: Annotated[Path, Argument()]
    batches: Annotated[tuple[str | int, ...], BeforeValidator(_batches), Flag("--batch", metavar="N|dynamic")] = Field(
        default=(DEFAULT_BATCH,),
        description="Images in every batch; repeatable, one file each. 'dynamic' leaves the number open.",
    )
    precision: Annotated[Precision, Flag()] = Field(
        default="fp32",
        description="Of the graph; images, logits and layer norms stay fp32. int8 is for the CPU, or with --trt for "
        "TensorRT; fp8 (compute capability 8.9 and later) and bf16 are for TensorRT (OpenVINO computes in bf16 from "
        "the fp32 file).",
    )
    with_preprocessing: Annotated[bool, Flag()] = Field(
        default=False,
        description="The graph takes pixels of the model's input size, uint8 [B, H, W, C], and normalises them.",
    )
    data: Annotated[str | None, Flag()] = Field(
        default=None,
        description="Images that int8 and fp8 are calibrated on: a folder, a tar of one, or 'digits'; no labels "
        "needed.",
    )
    evaluate: Annotated[str | None, Flag(metavar="IMAGES")] = Field(
        default=None, description="Compare the file with the fp32 model on these, by labels where they have some."
    )
    max_drop: Annotated[float | None, Flag(metavar="POINTS", default="1")] = Field(
        default=None,
        description="Of top-1 that the file may lose on --evaluate; one that loses more is not kept (exit status 1).",
    )
    opset: Annotated[int | None, Flag()] = Field(
        default=None,
        description="Of the ONNX file; default 23 for fp16 and bf16, where attention is one operator that TensorRT has "
        "fused kernels for, else 20. An older runtime may need 20 to 22.",
    )
    trt: Annotated[bool, Flag()] = Field(default=False, description="Build a TensorRT engine from the ONNX file too.")
    flavor: Annotated[Flavor | None, Flag()] = Field(
        default=None, description="Which TensorRT; default: what is installed."
    )
    compute_capabilities: Annotated[tuple[str, ...], Flag("--compute-capability", metavar="X.Y")] = Field(
        default=(),
        description="A GPU that the engine is for (TensorRT-RTX; repeatable; default 8.6, 8.9 and 12.0).",
    )
    profile: Annotated[
        tuple[int, int, int] | None,
        BeforeValidator(_numbers),
        Flag(metavar="MIN,OPT,MAX", separated=True, default="1,64,256"),
    ] = Field(
        default=None,
        description="Images that the engine of --batch dynamic takes at least, is tuned for, and takes at most.",
    )


@click.command("export", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Write a model folder's model as static ONNX, and with --trt as an engine, into the folder.

    TensorRT-RTX builds without a GPU. Without labels --max-drop is the share of the images whose class changes, in
    percent.
    """
    check_task(given.folder, given.task)
    if not given.trt and (given.flavor or given.compute_capabilities):
        raise click.UsageError("--flavor and --compute-capability are about the engine; add --trt")
    from dcvit.exporting import export_each

    return export_each(
        given.folder,
        [each if isinstance(each, int) else "dynamic" for each in given.batches],
        given.precision,
        with_preprocessing=given.with_preprocessing,
        data=given.data,
        evaluate=given.evaluate,
        max_drop=given.max_drop,
        class_map=given.class_map,
        trt=given.trt,
        flavor=given.flavor,
        compute_capabilities=given.compute_capabilities or None,
        profile=given.profile,
        opset=given.opset,
    )
