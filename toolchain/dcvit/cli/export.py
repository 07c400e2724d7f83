"""`dcvit-tool export`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.task import checked_task_option


@click.command("export", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--batch", type=int, default=64, show_default=True, help="Images in every batch.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the graph; images, logits, layer norms and softmax stay fp32. int8 is for the CPU, bf16 for TensorRT "
    "(OpenVINO computes in bf16 from the fp32 file).",
)
@click.option(
    "--data", help="Images that int8 is calibrated on: a folder, a tar of one, or 'digits'; no labels needed."
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="The graph takes pixels of the model's input size, uint8 [B, H, W, C], and normalises them.",
)
@click.option(
    "--evaluate",
    metavar="IMAGES",
    help="Compare the file with the fp32 model on these, by labels where they have some.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Of top-1 that the file may lose on --evaluate; one that loses more is not kept (exit status 1). [default: 1]",
)
@click.option("--trt", is_flag=True, help="Build a TensorRT engine from the ONNX file too.")
@click.option(
    "--flavor", type=click.Choice(["tensorrt", "tensorrt-rtx"]), help="Which TensorRT; default: what is installed."
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="A GPU that the engine is for (TensorRT-RTX; repeatable; default 8.6, 8.9 and 12.0).",
)
@checked_task_option
def command(
    folder: Path,
    batch: int,
    precision: Any,
    data: str | None,
    with_preprocessing: bool,
    evaluate: str | None,
    max_drop: float | None,
    trt: bool,
    flavor: Any,
    compute_capabilities: tuple[str, ...],
) -> Any:
    """Write a model folder's model as static ONNX, and with --trt as an engine, into the folder.

    TensorRT-RTX builds without a GPU. Without labels --max-drop is the share of the images whose class changes, in
    percent.
    """
    if not trt and (flavor or compute_capabilities):
        raise click.UsageError("--flavor and --compute-capability are about the engine; add --trt")
    from dcvit.exporting import export

    return export(
        folder,
        batch,
        precision,
        with_preprocessing=with_preprocessing,
        data=data,
        evaluate=evaluate,
        max_drop=max_drop,
        trt=trt,
        flavor=flavor,
        compute_capabilities=compute_capabilities or None,
    )
