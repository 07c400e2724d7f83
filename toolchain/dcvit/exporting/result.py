"""What export reports."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcvit.folder.records import OnnxRecord


@dataclass(frozen=True)
class ExportedFile:
    """One file that export wrote.

    Attributes:
        bytes: Its size, with that of the weights beside it where there are any.
        about: Flavor and compute capabilities of an engine, opset of an ONNX file.
    """

    path: Path
    bytes: int
    seconds: float
    about: str


@dataclass(frozen=True)
class ExportResult:
    """The ONNX file and, where one was asked for, the engine.

    Attributes:
        record: What the manifest notes about the ONNX file.
    """

    onnx: ExportedFile
    record: OnnxRecord
    engine: ExportedFile | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        quantization, evaluation = self.record.quantization, self.record.evaluation
        return {
            "batch": "dynamic" if self.record.dynamic else self.record.batch,
            "precision": self.record.precision,
            "onnx": str(self.onnx.path),
            "onnx_bytes": self.onnx.bytes,
            "engine": str(self.engine.path) if self.engine else None,
            "engine_bytes": self.engine.bytes if self.engine else None,
            "with_preprocessing": self.record.with_preprocessing,
            "opset": self.record.opset,
            "folds": list(self.record.folds),
            "quantization": quantization.model_dump(mode="json") if quantization else None,
            "evaluation": evaluation.model_dump(mode="json") | {"drop": evaluation.drop} if evaluation else None,
        }

    def lines(self) -> Iterable[Any]:
        """Each file, and what is known of the ONNX file's accuracy."""
        for file in filter(None, (self.onnx, self.engine)):
            yield f"{file.path}  {file.bytes / 1e6:.1f} MB, {file.about}, in {file.seconds:.1f} s"
        if quantization := self.record.quantization:
            layers, in_float = len(quantization.layers), len(quantization.in_float)
            words = f"{layers} of {layers + in_float} layers in {self.record.precision}"
            if quantization.agreement is not None:
                images = quantization.calibration["images"]
                words += f", calibrated on {images} images; cosine {quantization.agreement:.4f} with fp32"
            yield words
        if self.record.evaluation:
            yield str(self.record.evaluation)


@dataclass(frozen=True)
class ExportResults:
    """What was written for each batch."""

    results: tuple[ExportResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read: those of the first batch, and under `files` those of each."""
        each = [result.to_json() for result in self.results]
        return each[0] | {"files": each}

    def lines(self) -> Iterable[Any]:
        """Those of each batch."""
        for result in self.results:
            yield from result.lines()
