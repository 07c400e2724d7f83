"""`dcvit-tool export`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command


@click.command("export", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--batch", type=int, default=64, show_default=True, help="Images in every batch.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the graph; inputs, outputs, layer norms and softmax stay fp32.",
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
def command(
    folder: Path, batch: int, precision: Any, trt: bool, flavor: Any, compute_capabilities: tuple[str, ...]
) -> Any:
    """Write a model folder's model as static ONNX, and with --trt as an engine, into the folder.

    TensorRT-RTX builds without a GPU.
    """
    if not trt and (flavor or compute_capabilities):
        raise click.UsageError("--flavor and --compute-capability are about the engine; add --trt")
    from dcvit.exporting import export

    return export(folder, batch, precision, trt=trt, flavor=flavor, compute_capabilities=compute_capabilities or None)
