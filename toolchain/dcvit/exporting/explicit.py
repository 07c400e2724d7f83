"""int8 and fp8 for TensorRT: explicit Q/DQ around the linear layers of an fp16 graph, calibrated on images.

TensorRT takes symmetric quantization only (zero point 0), and no bias behind DequantizeLinear, which the form for ONNX
Runtime's CPU kernels has (`int8.py`); those in turn need that bias. So the two are two files. Around the products
everything is as in the fp16 file: attention is one operator, norms are fp32, and the first and the last layer are fp16.

A scale is the largest absolute value over the largest that the type holds, rounded up to fp16, which it is stored in.
ONNX Runtime's own rules do not serve: for fp8 it takes 4.5 standard deviations as the range, and transformers have
activations far beyond; for int8 it takes a scale that is subnormal in fp16, such as that of a channel whose layer scale
was folded into it, for 0, and the channel is gone. So it is handed the scales, and makes the graph.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dcvit.exporting.half import to_half
from dcvit.exporting.quantization import Calibration, Quantizer, expected_of
from dcvit.exporting.quiet import quiet
from dcvit.exporting.storage import release, save
from dcvit.folder.records import QuantizationRecord
from dcvit.variant import Precision

FP8_CAPABILITY = (8, 9)
"""Compute capability from which on GPUs have fp8 (Ada)."""


def to_explicit(
    model: ir.Model, precision: Precision, calibration: Calibration, batch: int, place: Path
) -> tuple[ir.Model, QuantizationRecord]:
    """Converts an fp32 graph to fp16 with its linear layers in int8 or fp8; weights may lie in files in `place`.

    Args:
        model: The graph, which is used up.
        precision: Either of the two.
        calibration: The images.
        batch: Images that the graph takes at once.
        place: A folder for files on the way.

    Raises:
        InputError: If a weight is too large for fp16.
        CheckFailedError: If it does not agree with fp32 even with half of its layers in fp16.
    """
    with quiet():
        save(model, place / "fp32.onnx")
        expected = expected_of(place / "fp32.onnx", calibration, batch)
        to_half(model, "fp16")
        RemoveUnusedNodesPass()(model)  # weights that are fp16 now
        save(model, place / "fp16.onnx")
        release(model)
        form = _Fp8 if precision == "fp8" else _Int8
        path, record = form(place / "fp16.onnx", expected, calibration, batch).run()
        graph = ir.load(path)
        graph.opset_imports.pop("com.microsoft", None)
        return graph, record


class _ForEngine(Quantizer):
    """Linear layers alone: a patch embedding that is a convolution is the first layer."""

    products = ("MatMul", "Gemm")
    as_written = True
    largest: float
    zero: NDArray[Any]

    def quantize(self, model: onnx.ModelProto, layers: list[str], ranges: Any) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer

        quantizer = QDQQuantizer(
            model,
            per_channel=self.precision == "int8",
            reduce_range=False,
            weight_qType=self._type(),
            activation_qType=self._type(),
            tensors_range=ranges,
            nodes_to_quantize=layers,
            nodes_to_exclude=[],
            op_types_to_quantize=list(self.products),
            extra_options={
                "OpTypesToExcludeOutputQuantization": list(self.products),
                "QuantizeBias": False,
                "TensorQuantOverrides": self._scales(model.graph, layers, ranges),
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        proto: onnx.ModelProto = quantizer.model.model
        return proto

    def _type(self) -> Any:
        from onnxruntime.quantization import QuantType

        return QuantType.QFLOAT8E4M3FN if self.precision == "fp8" else QuantType.QInt8

    def _scales(self, graph: onnx.GraphProto, layers: list[str], ranges: Any) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for name, data in ranges.items():
            found[name] = self._override(np.abs(np.stack(data.range_value)).max())
        weights = {weight.name: weight for weight in graph.initializer}
        for node in graph.node:
            if node.name in layers:
                numbers = np.abs(numpy_helper.to_array(weights[node.input[1]]).astype(np.float32))
                # Of a Gemm with a transposed weight the outputs are rows.
                axis = int(not any(each.name == "transB" and each.i for each in node.attribute))
                found[node.input[1]] = self._of_weight(numbers, axis)
        return found

    def _of_weight(self, numbers: NDArray[Any], axis: int) -> list[dict[str, Any]]:
        """One scale a tensor."""
        del axis
        return self._override(numbers.max())

    def _override(self, most: Any) -> list[dict[str, Any]]:
        return [{"quant_type": self._type(), "scale": _rounded_up(most / self.largest), "zero_point": self.zero}]


class _Int8(_ForEngine):
    precision = "int8"
    largest = 127
    zero = np.array(0, np.int8)

    def _of_weight(self, numbers: NDArray[Any], axis: int) -> list[dict[str, Any]]:
        """One scale a channel: eight bits have no range to spare for channels of other sizes."""
        each = [self._override(most)[0] for most in numbers.max(axis=1 - axis)]
        return [each[0] | {"axis": axis}, *each[1:]]


class _Fp8(_ForEngine):
    precision = "fp8"
    largest = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
    zero = np.array(0, ml_dtypes.float8_e4m3fn)


def _rounded_up(scale: Any) -> NDArray[np.float16]:
    """In fp16 and not below, so that the largest value is not cut off; of nothing but zeros any scale will do."""
    half = np.float16(scale)
    if half < scale or half == 0:
        half = np.nextafter(half, np.float16(np.inf))
    return np.array(half)
