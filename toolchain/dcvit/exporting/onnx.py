"""From a module to an ONNX file of fixed shapes."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from dcvit.artifacts import Precision
from dcvit.cost import count_params
from dcvit.errors import InputError
from dcvit.exporting.half import to_half
from dcvit.types import TimmModule

OPSET = 20
"""The first with a Gelu operator; TensorRT ≥ 10 and ONNX Runtime ≥ 1.17 read it."""

INPUT, OUTPUT = "images", "logits"
_LIMIT = 2**31 - 2**20  # a protobuf message holds less than 2 GiB; the rest is for the graph


def write_onnx(
    model: TimmModule,
    path: Path,
    input_size: tuple[int, int, int],
    batch: int,
    precision: Precision,
    metadata: dict[str, str],
) -> None:
    """Writes a module in evaluation mode as one ONNX file: input `images` [B, C, H, W], output `logits`, both fp32.

    Args:
        model: On the CPU.
        path: The file to write.
        input_size: (channels, height, width).
        batch: Images in every batch.
        precision: fp16 converts the graph (see `half.py`).
        metadata: For the file's `metadata_props`.

    Raises:
        InputError: If the file would be larger than an ONNX file can be, or a weight does not fit fp16.
    """
    size = count_params(model) * (2 if precision == "fp16" else 4)
    if size > _LIMIT:
        hint = "; --precision fp16 halves it" if precision == "fp32" and size // 2 <= _LIMIT else ""
        raise InputError(f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2{hint}")
    graph = _trace(model, torch.zeros(batch, *input_size))
    if precision == "fp16":
        to_half(graph)
    _clean(graph)
    graph.metadata_props.update(metadata)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _trace(model: TimmModule, images: torch.Tensor) -> ir.Model:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.optimize()
    return program.model


def _clean(graph: ir.Model) -> None:
    """Takes out the exporter's notes: stack traces with the paths of this machine, names of torch's own nodes."""
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for node in graph.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.producer_name, graph.producer_version = "dcvit-tool", None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's prints and warnings off the user's terminal, and off the JSON on stdout."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
