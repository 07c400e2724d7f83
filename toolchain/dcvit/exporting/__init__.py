"""From a model folder to an ONNX file and an engine, which go into the folder."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcvit.artifacts import (
    DEFAULT_BATCH,
    Flavor,
    Precision,
    check_batch,
    check_precision,
    engine_name,
    onnx_name,
)
from dcvit.exporting.onnx import OPSET, write_onnx
from dcvit.exporting.records import EngineRecord, OnnxRecord
from dcvit.exporting.tensorrt import EngineTarget, build_engine, engine_target
from dcvit.folder import WEIGHTS, ModelFolder
from dcvit.progress import say

__all__ = ["METADATA", "ExportResult", "ExportedFile", "export", "metadata_of"]

METADATA = "dcvit."
"""What the keys of our metadata in an ONNX file start with."""


@dataclass(frozen=True)
class ExportedFile:
    """One file that export wrote.

    Attributes:
        bytes: Its size.
        about: Flavor and compute capabilities of an engine, opset of an ONNX file.
    """

    path: Path
    bytes: int
    seconds: float
    about: str


@dataclass(frozen=True)
class ExportResult:
    """The ONNX file and, where one was asked for, the engine."""

    batch: int
    precision: Precision
    onnx: ExportedFile
    engine: ExportedFile | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "precision": self.precision,
            "onnx": str(self.onnx.path),
            "onnx_bytes": self.onnx.bytes,
            "engine": str(self.engine.path) if self.engine else None,
            "engine_bytes": self.engine.bytes if self.engine else None,
        }

    def lines(self) -> Iterable[Any]:
        for file in filter(None, (self.onnx, self.engine)):
            yield f"{file.path}  {file.bytes / 1e6:.1f} MB, {file.about}, in {file.seconds:.1f} s"


def export(
    folder: ModelFolder | Path | str,
    batch: int = DEFAULT_BATCH,
    precision: Precision = "fp32",
    *,
    trt: bool = False,
    flavor: Flavor | None = None,
    compute_capabilities: tuple[str, ...] | None = None,
) -> ExportResult:
    """Writes the folder's model as ONNX, every dimension fixed, and with `trt` builds an engine from it.

    Args:
        folder: A model folder; the files are added to it.
        batch: Images in every batch.
        precision: fp16 is in the graph itself; images, logits, layer norms and softmax stay fp32.
        trt: Build an engine too.
        flavor: `tensorrt` or `tensorrt-rtx`; by default the one that is installed.
        compute_capabilities: Of the GPUs that a TensorRT-RTX engine is for, such as "8.9".

    Raises:
        InputError: If the batch is empty, the folder is not whole, or no engine can be built here.
    """
    check_batch(batch)
    check_precision(precision)
    # All that can be wrong is found before the first file is written.
    target = engine_target(flavor, compute_capabilities) if trt else None
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    onnx = _export_onnx(folder, batch, precision)
    return ExportResult(batch, precision, onnx, _export_engine(folder, batch, precision, target) if target else None)


def metadata_of(folder: ModelFolder, batch: int, precision: Precision) -> dict[str, str]:
    """What an ONNX file says about itself in `metadata_props`: plan, preprocessing, batch and precision."""
    return {
        METADATA + "plan_sha256": folder.plan.digest,
        METADATA + "model": folder.plan.model,
        METADATA + "preprocessing": json.dumps(folder.manifest.preprocessing.model_dump(mode="json")),
        METADATA + "batch": str(batch),
        METADATA + "precision": precision,
    }


def _export_onnx(folder: ModelFolder, batch: int, precision: Precision) -> ExportedFile:
    name = onnx_name(batch, precision)
    say(f"exporting {name}")
    started = time.perf_counter()
    input_size = folder.manifest.preprocessing.input_size
    record = OnnxRecord(
        batch=batch, precision=precision, opset=OPSET, weights_sha256=folder.manifest.files[WEIGHTS].sha256
    )
    path = folder.add(
        name,
        lambda aside: write_onnx(
            folder.load(), aside, input_size, batch, precision, metadata_of(folder, batch, precision)
        ),
        record.model_dump(mode="json"),
    )
    return _exported(path, started, f"opset {OPSET}, batch {batch}, {precision}")


def _export_engine(folder: ModelFolder, batch: int, precision: Precision, target: EngineTarget) -> ExportedFile:
    source = onnx_name(batch, precision)
    name = engine_name(batch, precision, target.flavor)
    say(f"building {name} with {target.flavor} {target.version}")
    started = time.perf_counter()
    engine, network = build_engine(folder.path / source, target)
    record = EngineRecord(
        batch=batch,
        precision=precision,
        onnx=source,
        onnx_sha256=folder.manifest.files[source].sha256,
        flavor=target.flavor,
        version=target.version,
        compute_capabilities=target.compute_capabilities,
        tf32=False,
        network=network,
    )
    path = folder.add(name, lambda aside: _write(aside, engine), record.model_dump(mode="json"))
    capabilities = target.compute_capabilities
    about = f"for {', '.join(capabilities)}" if capabilities else "for this machine's GPU"
    return _exported(path, started, f"{target.flavor} {target.version} {about}")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _exported(path: Path, started: float, about: str) -> ExportedFile:
    return ExportedFile(path, path.stat().st_size, time.perf_counter() - started, about)
