"""Triton Inference Server's configuration of a model, as protobuf text."""

from dcvit.exporting.onnx import INPUT, OUTPUT
from dcvit.packaging.packed import Packed

MAX_BATCH = 64
"""Images that the server may join into one batch, where the file takes any number."""
QUEUE_MICROSECONDS = 2000
"""How long a request may wait for others to be joined with."""


def config_of(packed: Packed) -> str:
    """`config.pbtxt`.

    Where the file takes any number of images, the server joins requests (dynamic batching), and no dimension of the
    batch is named. A file of a fixed batch is served as it is: `max_batch_size: 0`, and the batch among its dimensions.
    """
    dynamic = packed.record.dynamic
    batch = () if dynamic else (packed.record.batch,)
    pixels = "TYPE_UINT8" if packed.record.with_preprocessing else "TYPE_FP32"
    lines = [
        f'name: "{packed.name}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH if dynamic else 0}",
        *_tensor("input", INPUT, pixels, (*batch, *packed.image)),
        *_tensor("output", OUTPUT, "TYPE_FP32", (*batch, *packed.classes), labels=bool(packed.labels)),
    ]
    if dynamic:
        lines += ["dynamic_batching {", f"  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}", "}"]
    return "\n".join([*lines, "instance_group [ { kind: KIND_AUTO count: 1 } ]", ""])


def _tensor(kind: str, name: str, dtype: str, dims: tuple[int, ...], *, labels: bool = False) -> list[str]:
    lines = [f'    name: "{name}"', f"    data_type: {dtype}", f"    dims: [ {', '.join(map(str, dims))} ]"]
    if labels:
        lines.append('    label_filename: "labels.txt"')
    return [f"{kind} [", "  {", *lines, "  }", "]"]
