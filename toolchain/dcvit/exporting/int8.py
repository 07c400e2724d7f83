"""int8 for ONNX Runtime's CPU kernels: static QDQ, calibrated on images, what is sensitive left in float.

Linear layers and convolutions get int8 weights, one scale a channel, and uint8 inputs, one scale a tensor, in the form
that ONNX Runtime fuses into integer kernels. Softmax, norms, GELU, the products within attention, additions to the
residual stream, and the first and the last layer stay float: together they are a few percent of the MACs, and the first
and the last touch pixels and logits directly. TensorRT takes another form (`explicit.py`).
"""

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from dcvit.exporting.gemm import linears_to_gemm
from dcvit.exporting.quantization import Calibration, Quantizer, expected_of
from dcvit.exporting.quiet import quiet
from dcvit.exporting.storage import release, save
from dcvit.folder.records import QuantizationRecord


def to_int8(model: ir.Model, calibration: Calibration, batch: int, place: Path) -> tuple[ir.Model, QuantizationRecord]:
    """Quantizes an fp32 graph; weights of the result may lie in files in `place`.

    Args:
        model: The graph, which is used up.
        calibration: The images.
        batch: Images that the graph takes at once.
        place: A folder for files on the way.

    Raises:
        CheckFailedError: If it does not agree with fp32 even with half of its layers in float.
    """
    linears_to_gemm(model)
    base = place / "fp32.onnx"
    with quiet():
        save(model, base)
        release(model)
        expected = expected_of(base, calibration, batch)
        path, record = _ForCpu(base, expected, calibration, batch).run()
        graph = ir.load(path)
        graph.opset_imports.pop("com.microsoft", None)
        return graph, record


class _ForCpu(Quantizer):
    precision = "int8"
    products = ("Gemm", "MatMul", "Conv")
    as_written = False

    def quantize(self, model: onnx.ModelProto, layers: list[str], ranges: Any) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=layers,
            nodes_to_exclude=[],
            op_types_to_quantize=list(self.products),
            # A convolution has no integer kernel with a float output; a linear layer has, which saves a rounding.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        proto: onnx.ModelProto = quantizer.model.model
        return proto
