"""Running a TensorRT or TensorRT-RTX engine on the GPU."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcvit.artifacts import Flavor, Precision, engine_name, export_command
from dcvit.errors import InputError
from dcvit.folder import ModelFolder
from dcvit.runtimes import flavors
from dcvit.runtimes.base import Artifact, Runtime, Session, gpu_name


class TensorRT(Runtime):
    """One flavor of TensorRT."""

    artifact: Artifact = "engine"

    def __init__(self, flavor: Flavor) -> None:
        self.name = self.flavor = flavor

    def unavailable(self) -> str | None:
        if reason := flavors.not_installed(self.flavor):
            return reason
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU that torch can use; --runtime onnxruntime runs on the CPU"
        return None

    def file(self, folder: ModelFolder, batch: int, precision: Precision) -> Path:
        made_by = export_command(folder.path, batch, precision, self.flavor)
        return folder.file(engine_name(batch, precision, self.flavor), made_by=made_by)

    def open(self, folder: ModelFolder, batch: int, precision: Precision) -> Session:
        return EngineSession(self.file(folder, batch, precision), flavors.load(self.flavor))


class EngineSession(Session):
    """An engine of fixed shapes; torch holds its buffers and the stream.

    Attributes:
        engine: The `ICudaEngine`, to read inputs, outputs and dtypes from.
    """

    def __init__(self, path: Path, trt: Any) -> None:
        """Loads the file; `trt` is the flavor's package.

        Raises:
            InputError: If this GPU or this version cannot run it.
        """
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise InputError(
                f"{path} cannot run on {gpu_name()} with {trt.__name__} {trt.__version__}; build it here: "
                "`dcvit-tool export … --trt` (with --compute-capability for TensorRT-RTX)"
            )
        self._context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {self.engine.get_tensor_mode(name): name for name in names}
        self._images = self._bind(modes[trt.TensorIOMode.INPUT])
        self._logits = self._bind(modes[trt.TensorIOMode.OUTPUT])
        self._stream = torch.cuda.Stream()
        super().__init__(len(self._images), gpu_name(), None)

    def _bind(self, name: str) -> Tensor:
        buffer = torch.zeros(tuple(self.engine.get_tensor_shape(name)), device="cuda")
        self._context.set_tensor_address(name, buffer.data_ptr())
        return buffer

    def load(self, images: Tensor) -> None:
        self._images.copy_(images)
        torch.cuda.synchronize()

    def execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        self._stream.synchronize()

    def logits(self) -> Tensor:
        return self._logits.cpu()
