"""What the exported files of a model folder are called."""

from typing import Literal, get_args

from dcvit.errors import InputError

Precision = Literal["fp32", "fp16"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]

DEFAULT_BATCH = 64
"""Images in a batch: the papers' protocol, and the default of every command."""

BENCH = "bench.json"


def onnx_name(batch: int, precision: Precision) -> str:
    """The ONNX file for batches of `batch` images."""
    return f"model.b{batch}.{precision}.onnx"


def engine_name(batch: int, precision: Precision, flavor: Flavor) -> str:
    """The engine built from that ONNX file."""
    return f"model.b{batch}.{precision}.{flavor}.engine"


def export_command(folder: object, batch: int, precision: Precision, flavor: Flavor | None = None) -> str:
    """The command that makes an ONNX file, or with a flavor its engine."""
    command = f"dcvit-tool export {folder}"
    if batch != DEFAULT_BATCH:
        command += f" --batch {batch}"
    if precision != "fp32":
        command += f" --precision {precision}"
    return command if flavor is None else f"{command} --trt --flavor {flavor}"


def check_batch(batch: int) -> None:
    """Raises InputError unless the batch holds an image."""
    if batch < 1:
        raise InputError(f"--batch {batch}: a batch holds at least one image")


def check_precision(precision: str) -> None:
    """Raises InputError unless the precision is one that is exported."""
    if precision not in get_args(Precision):
        raise InputError(f"--precision {precision}: choose {' or '.join(get_args(Precision))}")
