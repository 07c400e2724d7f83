"""What the manifest notes about an exported file (under `exports`, by file name)."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

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


R = TypeVar("R", OnnxRecord, EngineRecord)


def onnx_records(folder: ModelFolder) -> dict[str, OnnxRecord]:
    """The folder's ONNX files by name, small batches first.

    Raises:
        InputError: If an entry of the manifest is not one of ours.
    """
    return _records(folder, "onnx", OnnxRecord)


def engine_records(folder: ModelFolder) -> dict[str, EngineRecord]:
    """The folder's engines by name, small batches first.

    Raises:
        InputError: If an entry of the manifest is not one of ours.
    """
    return _records(folder, "engine", EngineRecord)


def _records(folder: ModelFolder, kind: str, record: type[R]) -> dict[str, R]:
    found: dict[str, R] = {}
    for name, entry in folder.manifest.exports.items():
        if entry.get("kind") == kind and name in folder.manifest.files:
            try:
                found[name] = record.model_validate(entry)
            except ValidationError as error:
                raise InputError(
                    f"{folder.path}: the manifest's entry for {name} cannot be read; export again"
                ) from error
    return dict(sorted(found.items(), key=lambda item: (item[1].batch, item[0])))
