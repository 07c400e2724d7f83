"""From a module to an ONNX file of fixed shapes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dcvit.errors import InputError
from dcvit.exporting.attention import name_attentions
from dcvit.exporting.bias import spread_biases
from dcvit.exporting.explicit import to_explicit
from dcvit.exporting.folding import FUSED_ATTENTION, NORMALISATION, fold
from dcvit.exporting.half import to_half
from dcvit.exporting.int8 import to_int8
from dcvit.exporting.noops import remove_noops
from dcvit.exporting.pixels import take_pixels
from dcvit.exporting.quantization import Calibration
from dcvit.exporting.quiet import quiet
from dcvit.exporting.storage import release, save, seal
from dcvit.folder.records import QuantizationRecord
from dcvit.hardware import give_memory_back
from dcvit.preprocessing import Preprocessing
from dcvit.types import TimmModule
from dcvit.variant import QUANTIZED, Precision, Variant

OPSETS: dict[Precision, range] = {
    "fp32": range(20, 23),
    "fp16": range(20, FUSED_ATTENTION + 1),
    "bf16": range(22, FUSED_ATTENTION + 1),
    "int8": range(20, 21),
    "fp8": range(FUSED_ATTENTION, FUSED_ATTENTION + 1),
}
"""The opsets that each precision can be exported with.

20 is the first with a Gelu operator; TensorRT ≥ 10 and ONNX Runtime ≥ 1.17 read it. 22 is the first whose convolution
may be bf16; TensorRT ≥ 10.7 and ONNX Runtime ≥ 1.20 read it. 23 is the first with an operator for attention as a whole,
for which there are fused kernels in half precision alone.
"""

INPUT, OUTPUT = "images", "logits"
_MOST_IMAGES = 2**16


def opset_for(variant: Variant, opset: int | None) -> int:
    """The opset of a file: half precision has the newest, whose attention is one operator, the others the oldest.

    Raises:
        InputError: If the variant cannot be exported with the one that is asked for.
    """
    precision = variant.precision
    known = OPSETS["fp8" if variant.explicit else precision]
    if opset is None:
        return known[-1] if FUSED_ATTENTION in known else known[0]
    if opset not in known:
        choices = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
        raise InputError(f"--opset {opset}: {precision} is exported with {choices}")
    return opset


@dataclass(frozen=True)
class Written:
    """What was done to the model on its way into a file.

    Attributes:
        folds: What of its computation went into the weights (see `folding.py`).
        quantization: What int8 or fp8 became of the layers; None at another precision.
    """

    folds: tuple[str, ...]
    quantization: QuantizationRecord | None


def write_onnx(
    model: TimmModule,
    path: Path,
    preprocessing: Preprocessing,
    variant: Variant,
    metadata: dict[str, str],
    calibration: Calibration | None = None,
    opset: int | None = None,
) -> Written:
    """Writes a module in evaluation mode as ONNX: input `images`, normalised [B, C, H, W], output `logits`.

    From 2 GiB on the weights are in a second file beside it (see `storage.py`).

    Args:
        model: On the CPU.
        path: The file to write.
        preprocessing: Of the images; their size is that of the input.
        variant: Its precision is that of the graph (see `half.py`, `int8.py` and `explicit.py`); images and logits are
            fp32. With preprocessing `images` are pixels instead, uint8 [B, H, W, C], and the graph normalises them.
        metadata: For the file's `metadata_props`.
        calibration: The images that int8 and fp8 are calibrated on.
        opset: Of the file; None takes the precision's own.

    Raises:
        InputError: If a weight does not fit fp16, or the precision cannot be exported with the opset.
        CheckFailedError: If too little of the model can be int8 or fp8.
    """
    precision = variant.precision
    opset = opset_for(variant, opset)
    model, folds = fold(model, variant, opset, preprocessing)
    # A dimension of one would be taken for a fixed one.
    images = torch.zeros(2 if variant.dynamic else variant.batch, *preprocessing.input_size)
    pixels = NORMALISATION in folds
    images = images.permute(0, 2, 3, 1).to(torch.uint8) if pixels else images
    graph = trace(model, images, opset, dynamic=variant.dynamic)
    del model
    give_memory_back()  # what the exporter leaves holds the weights in a cycle
    name_attentions(graph)
    spread_biases(graph)
    quantization = None
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place:  # weights may be read from there until the end
        if precision == "fp16" or precision == "bf16":
            to_half(graph, precision)
        elif precision in QUANTIZED:
            assert calibration is not None
            if variant.explicit:
                graph, quantization = to_explicit(graph, precision, calibration, variant.batch, Path(place))
            else:
                graph, quantization = to_int8(graph, calibration, variant.batch, Path(place))
        if variant.with_preprocessing and not pixels:
            take_pixels(graph, preprocessing)
        remove_noops(graph)
        RemoveUnusedNodesPass()(graph)
        _clean(graph)
        graph.metadata_props.update(metadata)
        save(graph, path)
        seal(path)
    onnx.checker.check_model(str(path), full_check=True)
    return Written(folds, quantization)


def trace(model: TimmModule, images: torch.Tensor, opset: int, *, dynamic: bool = False) -> ir.Model:
    """The graph of a module, with the input `images` and the output `logits`, as the exporter optimises it.

    Args:
        model: The module.
        images: Of the shape that the graph takes.
        opset: Of the graph.
        dynamic: Leave the number of images open; its dimension is called `batch`.
    """
    shapes = ({0: torch.export.Dim("batch", min=1, max=_MOST_IMAGES)},) if dynamic else None
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        traced = list(program.model.graph.initializers.values())
        program.optimize()
        program.optimize()  # what the first time leaves
        # onnxscript's rewriter keeps the last graph that it went over, for good: it may keep one without weights.
        graph = program.model.clone()
        release(program.model, traced)
    return graph


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
