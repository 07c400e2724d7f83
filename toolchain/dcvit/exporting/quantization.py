"""What quantizing to int8 and to fp8 have in common: calibration on images, and what is left in float.

Of the layers that can be quantized, those that agree worst with fp32 on the calibration images stay in float, as few as
keep the whole in agreement. ONNX Runtime calibrates and quantizes; each form says in which types.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from dcvit.agreement import cosine
from dcvit.errors import CheckFailedError
from dcvit.exporting.storage import data_file, load_graph, save_proto
from dcvit.folder.records import QuantizationRecord
from dcvit.hardware import give_memory_back
from dcvit.progress import say, track
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.variant import Precision

AGREEMENT = 0.995
"""Least cosine between the logits of the quantized model and of fp32: a noise of a tenth of the logits.

An 8-bit step over a range of 12 … 50 deviations is a noise of 1.4 … 5.7 % of the tensor, and the three bits of an fp8
mantissa one of 2.6 %. Each of the 4·D linear layers adds one to its branch, of which a share of about 1/√(2·D) reaches
the stream: √2 times one of them in the end, so 2 … 8 %, whatever the depth. Measured on a trained DeiT-Tiny: 1.4 %.
"""
_MOST_IN_FLOAT = 0.5  # more layers than this share in float, and it is hardly faster


@dataclass(frozen=True)
class Calibration:
    """Images to calibrate on.

    Attributes:
        images: [n, C, H, W], normalised. The last third is held out to measure the agreement on, if there are three.
            Of none, the ranges are made up, and nothing is compared: for files whose latency is all.
        fingerprint: Of their source, for the manifest.
    """

    images: Tensor
    fingerprint: dict[str, Any]

    @classmethod
    def made_up(cls) -> "Calibration":
        """No images: nobody will look at the logits."""
        return cls(torch.empty(0), {"source": "made up", "images": 0})

    def ranges(self) -> Tensor:
        """Those that set the ranges."""
        return self.images[: len(self.images) - len(self.images) // 3]

    def held_out(self) -> Tensor:
        """Those that the agreement is measured on."""
        return self.images[-(len(self.images) // 3) :] if len(self.images) >= 3 else self.images


class Quantizer(ABC):
    """One graph, its calibrated ranges, and how well its quantized forms agree with fp32.

    Attributes:
        layers: Names of the nodes that can be quantized: products by weights, but the first and the last, which touch
            pixels and logits directly.
    """

    precision: Precision
    products: tuple[str, ...]
    as_written: bool
    """Whether the agreement is measured by the file as it stands, or by the integer kernels that it becomes."""

    def __init__(self, base: Path, expected: Tensor | None, calibration: Calibration, batch: int) -> None:
        """Calibrates.

        Args:
            base: The ONNX file to quantize; what is made is written beside it.
            expected: Logits of fp32 for the held-out images (`expected_of`).
            calibration: The images.
            batch: Images that the file takes at once.
        """
        self._base, self._expected = base, expected
        self._calibration, self._batch = calibration, batch
        give_memory_back()  # that of the weights that went into the file, and of what computed the expected logits
        graph = load_graph(base).graph
        self.layers = _layers(graph, self.products)
        images = len(calibration.images)
        self._ranges = self._calibrate(graph.input[0].name) if images else _made_up_ranges(graph, self.products)
        self._measured: dict[tuple[str, ...], float] = {}
        self._written: tuple[str, ...] | None = None

    @abstractmethod
    def quantize(self, model: onnx.ModelProto, layers: list[str], ranges: Any) -> onnx.ModelProto:
        """The model with these layers quantized; `ranges` has the least and largest value of each tensor."""

    def run(self) -> tuple[Path, QuantizationRecord]:
        """The file that agrees with fp32, with as few layers in float as possible, and what became of the layers.

        Raises:
            CheckFailedError: If it does not agree with fp32 even with half of its layers in float.
        """
        in_float = self._sensitive() if len(self._calibration.images) else []
        layers = [name for name in self.layers if name not in in_float]
        agreement = round(self._agreement(layers), 6) if len(self._calibration.images) else None
        return self._file(layers), QuantizationRecord(
            calibration=self._calibration.fingerprint,
            layers=tuple(layers),
            in_float=tuple(in_float),
            agreement=agreement,
        )

    def _file(self, layers: list[str]) -> Path:
        """The graph with these layers quantized, as a file; the next one is written over it."""
        from onnxruntime.quantization.quant_utils import add_infer_metadata

        path = self._base.with_name(f"{self.precision}.onnx")
        if self._written != tuple(layers):
            inferred = onnx.shape_inference.infer_shapes(load_graph(self._base))
            model = onnx.load(self._base)
            del model.graph.value_info[:]
            model.graph.value_info.extend(inferred.graph.value_info)
            add_infer_metadata(model)  # else it is copied twice, to infer its shapes once more
            save_proto(self.quantize(model, layers, self._ranges), path)
            self._written = tuple(layers)
        return path

    def _agreement(self, layers: list[str]) -> float:
        """Cosine between the logits of the graph with these layers quantized, and of fp32."""
        key = tuple(layers)
        if key not in self._measured:
            assert self._expected is not None
            session = OrtSession(self._file(layers), batch=self._batch, as_written=self.as_written)
            self._measured[key] = cosine(session.infer(self._calibration.held_out()), self._expected)
        return self._measured[key]

    def _sensitive(self) -> list[str]:
        """The fewest layers to leave in float, the most sensitive first, so that the rest agrees with fp32."""
        every = self._agreement(self.layers)
        if every >= AGREEMENT:
            return []
        what = self.precision
        say(f"{what} agrees with fp32 to {every:.4f} only, so the most sensitive layers are looked for")
        alone = {name: self._agreement([name]) for name in track(self.layers, f"one layer in {what}")}
        ranked = sorted(self.layers, key=alone.__getitem__)
        most = int(_MOST_IN_FLOAT * len(ranked))
        if self._without(ranked[:most]) < AGREEMENT:
            raise CheckFailedError(
                f"{what} agrees with fp32 to a cosine of {every:.4f}, and {self._without(ranked[:most]):.4f} with the "
                f"{most} most sensitive of {len(ranked)} layers in float; it should be {AGREEMENT}: "
                "use --precision fp16 or bf16"
            )
        low, high = 0, most  # `high` agrees, `low` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._without(ranked[:middle]) >= AGREEMENT else (middle, high)
        return ranked[:high]

    def _without(self, in_float: list[str]) -> float:
        return self._agreement([name for name in self.layers if name not in in_float])

    def _calibrate(self, name: str) -> Any:
        """Least and largest value of every tensor that may be quantized."""
        from onnxruntime.quantization.calibrate import MinMaxCalibrater

        augmented = self._base.with_name("augmented.onnx")
        calibrator = MinMaxCalibrater(
            self._base,
            op_types_to_calibrate=list(self.products),
            augmented_model_path=str(augmented),
            use_external_data_format=data_file(self._base).exists(),
        )
        calibrator.augment_graph()
        calibrator.model = load_graph(augmented)  # what a message has held, it frees with itself only
        give_memory_back()
        calibrator.infer_session = _frugal(augmented)
        calibrator.collect_data(_Reader(name, self._calibration.ranges(), self._batch))
        found = calibrator.compute_data()
        del calibrator
        augmented.unlink()
        data_file(augmented).unlink(missing_ok=True)
        give_memory_back()
        return found


def expected_of(base: Path, calibration: Calibration, batch: int) -> Tensor | None:
    """Logits of an fp32 file for the held-out images; None where there are none."""
    if not len(calibration.images):
        return None
    return OrtSession(base, batch=batch).infer(calibration.held_out())


def _made_up_ranges(graph: onnx.GraphProto, products: tuple[str, ...]) -> Any:
    """Ranges of all that goes into products and comes out of them: a file is as fast with any."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    weights = {weight.name for weight in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in products]
    names = {name for node in nodes for name in (*node.input, *node.output)} - weights
    return TensorsData(CalibrationMethod.MinMax, dict.fromkeys(names, (np.float32(-8), np.float32(8))))


class _Reader:
    """Hands out images as onnxruntime.quantization's `CalibrationDataReader` does."""

    def __init__(self, name: str, images: Tensor, batch: int) -> None:
        # The last batch is filled up with the first images again: zeros would be an image that nobody sent.
        count = -(-len(images) // batch) * batch
        filled = images[torch.arange(count) % len(images)]
        self._batches = ({name: part.numpy()} for part in filled.split(batch))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _frugal(path: Path) -> Any:
    """A session that computes a file as it stands and holds its weights once, not packed a second time for speed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False  # it grows by doubling
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _layers(graph: onnx.GraphProto, products: tuple[str, ...]) -> list[str]:
    weights = {weight.name for weight in graph.initializer}
    found = [node for node in graph.node if node.op_type in products and node.input[1] in weights]
    return [node.name for node in found[1:-1]]
