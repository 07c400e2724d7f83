"""Which of a model folder's exported files is meant, and what such files are called."""

import shlex
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dcvit.errors import InputError
from dcvit.flags import Flag

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""All of them; which of them a runtime has, `Runtime.precisions` says."""

QUANTIZED: frozenset[Precision] = frozenset({"int8", "fp8"})
"""Those that are calibrated on images."""

FUSED_HEAD_DIM = 16
"""Channels of the narrowest heads that TensorRT-RTX 1.7 has fused attention kernels for (docs/gpu.md)."""

DEFAULT_BATCH = 64
"""Images in a batch: the papers' protocol, and the default of every command."""

Batch = int | Literal["dynamic"]
"""Of an exported file: so many images, or any number."""

BENCH = "bench.json"


def argument(path: object) -> str:
    """A path as an argument that a shell hands on as it is, and no command takes for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


class Variant(BaseModel):
    """How a model is exported and run: every ONNX file of a folder is one variant, and so is the engine made from it.

    One that cannot be raises InputError, whichever way it is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: Annotated[int, Flag()] = Field(default=DEFAULT_BATCH, description="Images in every batch.")
    precision: Annotated[Precision, Flag()] = Field(default="fp32", description="Of the computation.")
    with_preprocessing: Annotated[bool, Flag()] = Field(
        default=False, description="Run the exported file that takes pixels."
    )
    dynamic: bool = False
    """Whether the file takes any number of images; `batch` is then the one that an engine is tuned for."""
    for_engine: bool = False
    """Whether an int8 file has the form that TensorRT takes, not that of ONNX Runtime's integer kernels on the CPU."""

    @classmethod
    def of(cls, batch: int, precision: Precision = "fp32", *, with_preprocessing: bool = False) -> Self:
        """The variant of a batch and a precision.

        Args:
            batch: Images in every batch.
            precision: Of the computation.
            with_preprocessing: The file that takes pixels, uint8 [B, H, W, C], and normalises them itself.

        Raises:
            InputError: If the batch holds no image, or the precision is none that is exported.
        """
        return cls(batch=batch, precision=precision, with_preprocessing=with_preprocessing)

    @classmethod
    def of_file(cls, batch: Batch, precision: Precision = "fp32", *, with_preprocessing: bool = False) -> Self:
        """The variant of a file of a batch, or of any.

        Raises:
            InputError: As `of`.
        """
        size = DEFAULT_BATCH if batch == "dynamic" else batch
        variant = cls.of(size, precision, with_preprocessing=with_preprocessing)
        return variant.of_any_batch() if batch == "dynamic" else variant

    @field_validator("batch")
    @classmethod
    def _holds_an_image(cls, batch: int) -> int:
        if batch < 1:
            raise InputError(f"--batch {batch}: a batch holds at least one image")
        return batch

    @field_validator("precision", mode="before")
    @classmethod
    def _is_exported(cls, precision: str) -> str:
        if precision not in PRECISIONS:
            raise InputError(f"--precision {precision}: choose {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
        return precision

    def at(self, precision: Precision) -> Self:
        """The same at another precision.

        Raises:
            InputError: If it is none that is exported.
        """
        return self.model_validate(dict(self) | {"precision": precision, "for_engine": False})

    def of_engine(self) -> Self:
        """The same as the file that an engine is built from: int8 has one of its own."""
        return self.model_copy(update={"for_engine": self.precision == "int8"})

    def of_any_batch(self) -> Self:
        """The same as a file that takes any number of images."""
        return self.model_copy(update={"dynamic": True})

    @property
    def explicit(self) -> bool:
        """Whether its quantization is written out as TensorRT takes it, around products that compute in fp16."""
        return self.precision == "fp8" or self.for_engine

    @property
    def onnx_name(self) -> str:
        """The ONNX file; `.u8` marks one that takes pixels, `.trt` an int8 one that engines are built from."""
        return f"{self._stem}{'.trt' if self.for_engine else ''}.onnx"

    def engine_name(self, flavor: Flavor) -> str:
        """The engine built from that ONNX file."""
        return f"{self._stem}.{flavor}.engine"

    @property
    def _stem(self) -> str:
        batch = "dynamic" if self.dynamic else f"b{self.batch}"
        return f"model.{batch}.{self.precision}{'.u8' if self.with_preprocessing else ''}"

    def export_command(self, folder: object, flavor: Flavor | None = None) -> str:
        """The command that makes the ONNX file, or with a flavor its engine."""
        command = f"dcvit-tool export {argument(folder)}"
        if self.dynamic:
            command += " --batch dynamic"
        elif self.batch != DEFAULT_BATCH:
            command += f" --batch {self.batch}"
        if self.precision != "fp32":
            command += f" --precision {self.precision}"
        if self.precision in QUANTIZED:
            command += " --data IMAGES"
        if self.with_preprocessing:
            command += " --with-preprocessing"
        return command if flavor is None else f"{command} --trt --flavor {flavor}"


class WantedVariant(Variant):
    """A variant whose fields a file of the folder may decide, where they are not given."""

    batch: Annotated[int, Flag(default=f"{DEFAULT_BATCH}, or what is exported")] = Field(
        default=DEFAULT_BATCH, description="Images in every batch."
    )
    precision: Annotated[Precision, Flag(default="fp32, or what is exported")] = Field(
        default="fp32", description="Of the computation."
    )

    def wish(self, name: str) -> Any:
        """A field that was given; None where it was not."""
        return getattr(self, name) if name in self.model_fields_set else None
