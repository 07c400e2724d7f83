"""What the manifest notes about an exported file (under `exports`, by file name)."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from dcvit.artifacts import Flavor, Precision
from dcvit.errors import InputError
from dcvit.folder import ModelFolder


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OnnxRecord(_Record):
    """An ONNX file.

    Attributes:
        weights_sha256: Of the weights that it was made from.
    """

    kind: str = "onnx"
    batch: int
    precision: Precision
    opset: int
    weights_sha256: str


class TensorRecord(_Record):
    """One input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class NetworkRecord(_Record):
    """What TensorRT makes of an ONNX file, before it chooses kernels.

    TensorRT builds strongly typed networks, so the types of the layers here are those that the engine computes in.

    Attributes:
        layers: How many layers of each kind compute in each type: {"MATRIX_MULTIPLY": {"HALF": 73}}.
    """

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    layers: dict[str, dict[str, int]]


class EngineRecord(_Record):
    """An engine, and how it was built.

    Attributes:
        onnx: The ONNX file that it was built from.
        onnx_sha256: Of that file then.
        compute_capabilities: Those that a TensorRT-RTX engine is for; None for TensorRT, which builds for one GPU.
        tf32: Whether fp32 matrix products may be rounded to TF32.
    """

    kind: str = "engine"
    batch: int
    precision: Precision
    onnx: str
    onnx_sha256: str
    flavor: Flavor
    version: str
    compute_capabilities: tuple[str, ...] | None
    tf32: bool
    network: NetworkRecord


def onnx_records(folder: ModelFolder) -> dict[str, OnnxRecord]:
    """The folder's ONNX files by name, small batches first.

    Raises:
        InputError: If an entry of the manifest is not one of ours.
    """
    return {name: _read(OnnxRecord, folder, name) for name in _names(folder, "onnx")}


def engine_records(folder: ModelFolder) -> dict[str, EngineRecord]:
    """The folder's engines by name.

    Raises:
        InputError: If an entry of the manifest is not one of ours.
    """
    return {name: _read(EngineRecord, folder, name) for name in _names(folder, "engine")}


def _names(folder: ModelFolder, kind: str) -> list[str]:
    entries = folder.manifest.exports
    return sorted(
        (name for name, entry in entries.items() if entry.get("kind") == kind and name in folder.manifest.files),
        key=lambda name: (entries[name].get("batch", 0), name),
    )


def _read(record: type[Any], folder: ModelFolder, name: str) -> Any:
    try:
        return record.model_validate(folder.manifest.exports[name])
    except ValueError as error:
        raise InputError(f"{folder.path}: the manifest's entry for {name} cannot be read; export again") from error
