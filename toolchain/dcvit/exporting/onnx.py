"""From a module to an ONNX file of fixed shapes."""

from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dcvit.cost import count_params
from dcvit.errors import InputError
from dcvit.exporting.bias import spread_biases
from dcvit.exporting.half import to_half
from dcvit.exporting.int8 import Calibration, to_int8
from dcvit.exporting.pixels import take_pixels
from dcvit.exporting.quiet import quiet
from dcvit.folder.records import QuantizationRecord
from dcvit.preprocessing import Preprocessing
from dcvit.types import TimmModule
from dcvit.variant import Precision, Variant

OPSETS: dict[Precision, int] = {"fp32": 20, "fp16": 20, "bf16": 22, "int8": 20}
"""20 is the first with a Gelu operator; TensorRT ≥ 10 and ONNX Runtime ≥ 1.17 read it. 22 is the first whose
convolution may be bf16; TensorRT ≥ 10.7 and ONNX Runtime ≥ 1.20 read it."""

INPUT, OUTPUT = "images", "logits"
_LIMIT = 2**31 - 2**20  # a protobuf message holds less than 2 GiB; the rest is for the graph


def write_onnx(
    model: TimmModule,
    path: Path,
    preprocessing: Preprocessing,
    variant: Variant,
    metadata: dict[str, str],
    calibration: Calibration | None = None,
) -> QuantizationRecord | None:
    """Writes a module in evaluation mode as one ONNX file: input `images`, normalised [B, C, H, W], output `logits`.

    Args:
        model: On the CPU.
        path: The file to write.
        preprocessing: Of the images; their size is that of the input.
        variant: Its precision is that of the graph (see `half.py` and `int8.py`); images and logits are fp32. With
            preprocessing `images` are pixels instead, uint8 [B, H, W, C], and the graph normalises them.
        metadata: For the file's `metadata_props`.
        calibration: The images that int8 is calibrated on.

    Returns:
        What int8 became of the layers; None at another precision.

    Raises:
        InputError: If the file would be larger than an ONNX file can be, or a weight does not fit fp16.
        CheckFailedError: If too little of the model can be int8.
    """
    precision = variant.precision
    # int8 is made from fp32, in a file too.
    bytes_each = 2 if precision in ("fp16", "bf16") else 4
    size = count_params(model) * bytes_each
    if size > _LIMIT:
        hint = "; --precision fp16 halves it" if precision == "fp32" and size // 2 <= _LIMIT else ""
        raise InputError(f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2{hint}")
    graph = _trace(model, torch.zeros(variant.batch, *preprocessing.input_size), OPSETS[precision])
    spread_biases(graph)
    quantization = None
    if precision == "fp16" or precision == "bf16":
        to_half(graph, precision)
    elif precision == "int8":
        assert calibration is not None
        graph, quantization = to_int8(graph, calibration)
    if variant.with_preprocessing:
        take_pixels(graph, preprocessing)
    RemoveUnusedNodesPass()(graph)
    _clean(graph)
    graph.metadata_props.update(metadata)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return quantization


def _trace(model: TimmModule, images: torch.Tensor, opset: int) -> ir.Model:
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
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
