"""What the manifest notes about an exported file (under `exports`, by file name)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcvit.errors import InputError
from dcvit.folder.manifest import FileName
from dcvit.folder.model_folder import ModelFolder
from dcvit.variant import Flavor, Precision, Variant


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuantizationRecord(_Record):
    """What int8 or fp8 became of a model.

    Attributes:
        calibration: Fingerprint of the images that set the ranges.
        layers: Names of the nodes that are quantized.
        in_float: Those that could be, and were left in float because they agreed worst.
        agreement: Cosine between its logits and those of fp32 on held-out images; None where the ranges are made up.
    """

    calibration: dict[str, Any]
    layers: tuple[str, ...]
    in_float: tuple[str, ...]
    agreement: float | None


class EvaluationRecord(_Record):
    """What a precision loses against the fp32 model in PyTorch.

    Attributes:
        runtime: What ran the file.
        top1: Of the file, in percent; None where the images have no labels of this model.
        top1_fp32: Of the fp32 model in PyTorch.
        agreement: Images on which both choose the same class, in percent.
        max_drop: What the drop might be, in points.
    """

    data: str
    images: int
    runtime: str
    top1: float | None
    top1_fp32: float | None
    agreement: float
    max_drop: float

    @property
    def drop(self) -> float:
        """Points of top-1 that are lost; without labels, percent of the images whose class changed."""
        if self.top1 is None or self.top1_fp32 is None:
            return 100 - self.agreement
        return self.top1_fp32 - self.top1

    def __str__(self) -> str:
        """The figures, in words."""
        found = f"{self.agreement:.2f} % of the classes are those of fp32"
        if self.top1 is not None and self.top1_fp32 is not None:
            found = f"top-1 {self.top1:.2f} %, fp32 {self.top1_fp32:.2f} %, {found}"
        return f"{found} ({self.images} images of {self.data}, {self.runtime})"


class OnnxRecord(_Record):
    """An ONNX file.

    Attributes:
        batch: Images in every batch; of a file that takes any number, the one that an engine is tuned for.
        weights_sha256: Of the weights that it was made from.
        with_preprocessing: Whether its input is pixels, uint8 [B, H, W, C].
        folds: What of the model's computation was folded into the weights; empty in folders of an older version.
        dynamic: Whether it takes any number of images.
        for_engine: Whether an int8 file has the form that TensorRT takes.
        quantization: What int8 or fp8 became of the layers; None at another precision.
        evaluation: What it lost against fp32, where that was measured.
    """

    kind: str = "onnx"
    batch: int
    precision: Precision
    opset: int
    weights_sha256: str
    with_preprocessing: bool = False
    folds: tuple[str, ...] = ()
    dynamic: bool = False
    for_engine: bool = False
    quantization: QuantizationRecord | None = None
    evaluation: EvaluationRecord | None = None

    @property
    def variant(self) -> Variant:
        """Batch, precision and input, as the file's name says them."""
        variant = Variant.of(self.batch, self.precision, with_preprocessing=self.with_preprocessing)
        return variant.model_copy(update={"dynamic": self.dynamic, "for_engine": self.for_engine})


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


class BuilderRecord(_Record):
    """The settings that an engine was built with, read back from the builder.

    Attributes:
        optimization_level: 0 … 5; more tries more kernels.
        workspace_bytes: GPU memory that a layer may use for itself.
        flags: Names of the `BuilderFlag`s that were set.
        profiling_verbosity: How much the engine tells of its layers.
        timing_cache: Whether the timings of earlier builds on this machine were used (TensorRT; TensorRT-RTX times
            no kernels when it builds).
    """

    optimization_level: int
    workspace_bytes: int
    flags: tuple[str, ...]
    profiling_verbosity: str
    timing_cache: bool


class EngineRecord(_Record):
    """An engine, and how it was built.

    Attributes:
        onnx: The ONNX file that it was built from.
        onnx_sha256: Of that file then.
        profile: Least number of images, the one it is tuned for, and most, where it takes any number between.
        compute_capabilities: Those that a TensorRT-RTX engine is for; None for TensorRT, which builds for one GPU.
        compute_capability: Of the GPU that a TensorRT engine was built on, and for.
        tf32: Whether fp32 matrix products may be rounded to TF32.
        builder: None in folders of an older version.
    """

    kind: str = "engine"
    batch: int
    precision: Precision
    onnx: FileName
    onnx_sha256: str
    profile: tuple[int, int, int] | None = None
    flavor: Flavor
    version: str
    compute_capabilities: tuple[str, ...] | None
    compute_capability: str | None = None
    tf32: bool
    network: NetworkRecord
    builder: BuilderRecord | None = None

    @property
    def variant(self) -> Variant:
        """That of the ONNX file that it was built from, whose name alone says here what its input is."""
        variant = Variant.of(self.batch, self.precision).of_engine()
        variant = variant.of_any_batch() if self.profile is not None else variant
        pixels = variant.model_copy(update={"with_preprocessing": True})
        return pixels if self.onnx == pixels.onnx_name else variant


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
            except (ValidationError, InputError) as error:
                raise InputError(
                    f"{folder.path}: the manifest's entry for {name} cannot be read; export again"
                ) from error
    return dict(sorted(found.items(), key=lambda item: (item[1].batch, item[0])))


class TrialRecord(_Record):
    """One trial of cutting some blocks alone.

    Attributes:
        blocks: Their numbers.
        seconds: Of the training.
        kl: Mean KL(original ‖ compressed) that it left, in nats; None where trials are scored otherwise.
        feature_error: The same error of the centred features, for a model without a head.
        mse: Mean squared error of the features.
        saved_percent: Of the latency, by these blocks.
        score: What trials are ranked by where that is not the KL; the lower, the better.
    """

    blocks: tuple[int, ...]
    seconds: float
    kl: float | None = None
    feature_error: float | None = None
    mse: float | None = None
    saved_percent: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class ErrorMeasure:
    """How far a compressed model's outputs are from the original's, in words.

    Attributes:
        key: Its name in metrics.
        name: For a sentence or a column.
        unit: With the space before it; empty where it has none.
        title: For an axis.
    """

    key: Literal["kl", "feature_error"]
    name: str
    unit: str
    title: str

    @property
    def column(self) -> str:
        """Head of a column."""
        return f"{self.name} ({self.unit.strip()})" if self.unit else self.name

    def of(self, figures: Mapping[str, Any]) -> float:
        """This error in metrics."""
        return float(figures[self.key])


KL = ErrorMeasure("kl", "KL", " nats", "mean KL to the original, nats")
FEATURE_ERROR = ErrorMeasure("feature_error", "feature error", "", "error of the centred features, as a share")


def error_measure(figures: Mapping[str, Any]) -> ErrorMeasure:
    """The one that metrics, or a point of a frontier, have."""
    return FEATURE_ERROR if FEATURE_ERROR.key in figures else KL


class BlockDamage(_Record):
    """What compressing one block alone does to the outputs: mean KL(original ‖ compressed), in nats, or the error of
    the features of a model without a head.

    Attributes:
        attention: Without its attention; None where it must stay.
        mlp: By MLP width M', for some widths below the original.
        heads: By the channels d' that every head keeps, for some below the original; empty where they all stay.
        block: Without the block; None where it must stay, or was not tried.
    """

    attention: float | None
    mlp: dict[int, float]
    heads: dict[int, float] = Field(default_factory=dict)
    block: float | None = None
