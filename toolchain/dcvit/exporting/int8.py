"""int8 for ONNX Runtime's CPU kernels: static QDQ, calibrated on images, what is sensitive left in float.

Linear layers and convolutions get int8 weights, one scale a channel, and uint8 inputs, one scale a tensor, in the form
that ONNX Runtime fuses into integer kernels. Softmax, norms, GELU, the products within attention, additions to the
residual stream, and the first and the last layer stay float: together they are a few percent of the MACs, and the first
and the last touch pixels and logits directly. Of the rest, the layers that agree worst with fp32 on the calibration
images stay float too, as few as keep the whole in agreement.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from dcvit.agreement import cosine
from dcvit.errors import CheckFailedError
from dcvit.exporting.gemm import linears_to_gemm
from dcvit.exporting.quiet import quiet
from dcvit.folder.records import QuantizationRecord
from dcvit.progress import say, track
from dcvit.runtimes.onnx_runtime import OrtSession

AGREEMENT = 0.995
"""Least cosine between the logits of int8 and fp32: a noise of a tenth of the logits.

An 8-bit step over a range of 12 … 50 deviations is a noise of 1.4 … 5.7 % of the tensor. Each of the 4·D linear layers
adds one to its branch, of which a share of about 1/√(2·D) reaches the stream: √2 times one of them in the end, so 2 …
8 %, whatever the depth. Measured on a trained DeiT-Tiny: 1.4 %.
"""
_PRODUCTS = ("Gemm", "MatMul", "Conv")
_MOST_IN_FLOAT = 0.5  # more layers than this share in float, and int8 is hardly faster


@dataclass(frozen=True)
class Calibration:
    """Images to calibrate on.

    Attributes:
        images: [n, C, H, W], normalised. The last third is held out to measure the agreement on, if there are three.
        fingerprint: Of their source, for the manifest.
        search: Whether layers that agree badly are looked for, and left in float; not where latency is all.
    """

    images: Tensor
    fingerprint: dict[str, Any]
    search: bool = True

    def ranges(self) -> Tensor:
        """Those that set the ranges."""
        return self.images[: len(self.images) - len(self.images) // 3]

    def held_out(self) -> Tensor:
        """Those that the agreement is measured on."""
        return self.images[-(len(self.images) // 3) :] if len(self.images) >= 3 else self.images


def to_int8(model: ir.Model, calibration: Calibration) -> tuple[ir.Model, QuantizationRecord]:
    """Quantizes an fp32 graph of static shapes.

    Raises:
        CheckFailedError: If it does not agree with fp32 even with half of its layers in float.
    """
    linears_to_gemm(model)
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place, quiet():
        quantizer = _Quantizer(model, calibration, Path(place))
        in_float = quantizer.sensitive() if calibration.search else []
        layers = [name for name in quantizer.layers if name not in in_float]
        agreement = round(quantizer.agreement(layers), 6)
        graph = ir.from_proto(quantizer.quantized(layers))
        graph.opset_imports.pop("com.microsoft", None)
        return graph, QuantizationRecord(
            calibration=calibration.fingerprint,
            layers=tuple(layers),
            in_float=tuple(in_float),
            agreement=agreement,
        )


class _Quantizer:
    """One graph, its calibrated ranges, and how well its quantized forms agree with it.

    Attributes:
        layers: Names of the nodes that can be quantized.
    """

    def __init__(self, model: ir.Model, calibration: Calibration, place: Path) -> None:
        self._place = place
        self._fp32 = onnx.shape_inference.infer_shapes(ir.to_proto(model))
        onnx.save(self._fp32, place / "fp32.onnx")
        self._held_out = calibration.held_out()
        self.layers = _layers(self._fp32.graph)
        session = OrtSession(place / "fp32.onnx")
        self._expected = session.infer(self._held_out)
        self._ranges = self._calibrate(calibration.ranges(), session.batch)
        self._measured: dict[tuple[str, ...], float] = {}
        self._last: tuple[list[str], onnx.ModelProto] = ([], self._fp32)

    def quantized(self, layers: list[str]) -> onnx.ModelProto:
        """The graph with these layers in int8."""
        if self._last[0] != layers:
            self._last = layers, self._quantize(layers)
        return self._last[1]

    def _quantize(self, layers: list[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QDQQuantizer, QuantType

        model = onnx.ModelProto()
        model.CopyFrom(self._fp32)
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=layers,
            nodes_to_exclude=[],
            op_types_to_quantize=list(_PRODUCTS),
            # A convolution has no integer kernel with a float output; a linear layer has, which saves a rounding.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        proto: onnx.ModelProto = quantizer.model.model
        return proto

    def agreement(self, layers: list[str]) -> float:
        """Cosine between the logits of the graph with these layers in int8, and of fp32."""
        key = tuple(layers)
        if key not in self._measured:
            path = self._place / "int8.onnx"
            onnx.save(self.quantized(layers), path)
            self._measured[key] = cosine(OrtSession(path).infer(self._held_out), self._expected)
        return self._measured[key]

    def sensitive(self) -> list[str]:
        """The fewest layers to leave in float, the most sensitive first, so that the rest agrees with fp32."""
        every = self.agreement(self.layers)
        if every >= AGREEMENT:
            return []
        say(f"int8 agrees with fp32 to {every:.4f} only, so the most sensitive layers are looked for")
        alone = {name: self.agreement([name]) for name in track(self.layers, "one layer in int8")}
        ranked = sorted(self.layers, key=alone.__getitem__)
        most = int(_MOST_IN_FLOAT * len(ranked))
        if self._without(ranked[:most]) < AGREEMENT:
            raise CheckFailedError(
                f"int8 agrees with fp32 to a cosine of {every:.4f}, and {self._without(ranked[:most]):.4f} with the "
                f"{most} most sensitive of {len(ranked)} layers in float; it should be {AGREEMENT}: "
                "use --precision fp16 or bf16"
            )
        low, high = 0, most  # `high` agrees, `low` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._without(ranked[:middle]) >= AGREEMENT else (middle, high)
        return ranked[:high]

    def _without(self, in_float: list[str]) -> float:
        return self.agreement([name for name in self.layers if name not in in_float])

    def _calibrate(self, images: Tensor, batch: int) -> Any:
        """Least and largest value of every tensor that may be quantized."""
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        calibrator = create_calibrator(
            self._place / "fp32.onnx",
            op_types_to_calibrate=list(_PRODUCTS),
            augmented_model_path=str(self._place / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(self._fp32.graph.input[0].name, images, batch))
        return calibrator.compute_data()


class _Reader:
    """Hands out images as onnxruntime.quantization's `CalibrationDataReader` does."""

    def __init__(self, name: str, images: Tensor, batch: int) -> None:
        # The last batch is filled up with the first images again: zeros would be an image that nobody sent.
        count = -(-len(images) // batch) * batch
        filled = images[torch.arange(count) % len(images)]
        self._batches = ({name: part.numpy()} for part in filled.split(batch))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _layers(graph: onnx.GraphProto) -> list[str]:
    """Linear layers and convolutions with weights, but the first and the last."""
    weights = {weight.name for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type in _PRODUCTS and node.input[1] in weights]
    return [node.name for node in products[1:-1]]
