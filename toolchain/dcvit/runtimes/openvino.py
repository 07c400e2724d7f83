"""OpenVINO on the CPU: fp32 and int8 from the files of that precision, bf16 from the fp32 file."""

import sys
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcvit.errors import InputError, first_line
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes.base import Session, available_cores, pixels_of
from dcvit.runtimes.onnx_file import OnnxFileRuntime, check_interface, put
from dcvit.variant import DEFAULT_BATCH, Precision

# What the floating-point part is computed in; int8 is in the file.
_HINTS: dict[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "INT8"}


def imported() -> Any:
    """OpenVINO, imported without the package that reports each import to its maker and leaves an id in the home folder.

    OpenVINO has an empty stand-in of its own for where that package is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVino(OnnxFileRuntime):
    """OpenVINO's CPU plugin.

    The bf16 file is for strongly typed TensorRT: its casts around norms and softmax would only get into the way of
    the plugin, which rounds the fp32 file itself (a third faster, measured).
    """

    name, title = "openvino", "OpenVINO"

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:  # type: ignore[override]
        """Those that this processor has instructions for; without them OpenVINO would compute in fp32 in silence."""
        if self.unavailable():
            return tuple(_CAPABILITIES)
        here = imported().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(precision for precision, capability in _CAPABILITIES.items() if capability in here)

    def unavailable(self) -> str | None:
        return None if find_spec("openvino") else "openvino is not installed; `pip install 'dcvit-tool[openvino]'`"

    def source(self, precision: Precision) -> Precision:
        return "fp32" if precision == "bf16" else precision

    def open_file(
        self,
        path: Path,
        precision: Precision,
        preprocessing: Preprocessing | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Session:
        self.require(precision)
        return OpenVinoSession(path, precision, preprocessing, batch)


class OpenVinoSession(Session):
    """An ONNX file, compiled for this processor and one batch."""

    def __init__(
        self,
        path: Path,
        precision: Precision,
        preprocessing: Preprocessing | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        """Loads the file; `preprocessing` is needed for one that takes pixels, `batch` for one that takes any.

        Raises:
            InputError: If it cannot be loaded, or not in this precision.
        """
        openvino = imported()
        threads, hint = available_cores(), _HINTS[precision]
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            if model.is_dynamic():
                model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot load {path}: {first_line(error)}") from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint:
            raise InputError(f"OpenVINO computes {path.name} in {used} here, not in {hint}; choose another --precision")
        self._request = compiled.create_infer_request()
        ends = ([each.partial_shape for each in ends] for ends in (compiled.inputs, compiled.outputs))
        check_interface(path, *([_sizes(shape) for shape in shapes] for shapes in ends))
        images, self._path = compiled.input(0), path
        super().__init__(images.shape[0], "CPU", threads)
        self._preprocessing = preprocessing if images.element_type.get_type_name() == "u8" else None
        self._images = torch.zeros(tuple(images.shape), dtype=torch.uint8 if self._preprocessing else torch.float32)
        self._request.set_input_tensor(openvino.Tensor(self._images.numpy(), shared_memory=True))

    def load(self, images: Tensor) -> None:
        put(self._images, pixels_of(images, self._preprocessing) if self._preprocessing else images, self._path)

    def execute(self) -> None:
        try:
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot run {self._path}: {first_line(error)}") from error

    def logits(self) -> Tensor:
        return torch.from_numpy(self._request.get_output_tensor(0).data)


def _sizes(shape: Any) -> list[int | None]:
    if shape.rank.is_dynamic:
        return []
    return [None if size.is_dynamic else size.get_length() for size in shape]
