"""What the exported files of a model folder are called."""

from typing import Literal, get_args

from dcvit.errors import InputError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""All of them; which of them a runtime has, `Runtime.precisions` says."""

DEFAULT_BATCH = 64
"""Images in a batch: the papers' protocol, and the default of every command."""

BENCH = "bench.json"


def onnx_name(batch: int, precision: Precision, *, with_preprocessing: bool = False) -> str:
    """The ONNX file for batches of `batch` images; `.u8` marks one that takes pixels (uint8) and normalises them."""
    return f"model.b{batch}.{precision}{'.u8' if with_preprocessing else ''}.onnx"


def engine_name(batch: int, precision: Precision, flavor: Flavor, *, with_preprocessing: bool = False) -> str:
    """The engine built from that ONNX file."""
    return f"model.b{batch}.{precision}{'.u8' if with_preprocessing else ''}.{flavor}.engine"


def export_command(
    folder: object, batch: int, precision: Precision, flavor: Flavor | None = None, *, with_preprocessing: bool = False
) -> str:
    """The command that makes an ONNX file, or with a flavor its engine."""
    command = f"dcvit-tool export {folder}"
    if batch != DEFAULT_BATCH:
        command += f" --batch {batch}"
    if precision != "fp32":
        command += f" --precision {precision}"
    if precision == "int8":
        command += " --data IMAGES"
    if with_preprocessing:
        command += " --with-preprocessing"
    return command if flavor is None else f"{command} --trt --flavor {flavor}"


def check_batch(batch: int) -> None:
    """Raises InputError unless the batch holds an image."""
    if batch < 1:
        raise InputError(f"--batch {batch}: a batch holds at least one image")


def check_precision(precision: str) -> None:
    """Raises InputError unless the precision is one that is exported."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: choose {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
