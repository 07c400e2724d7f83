"""ONNX Runtime, on the CPU or through CUDA."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcvit.artifacts import Precision, export_command, onnx_name
from dcvit.errors import InputError, first_line
from dcvit.folder import ModelFolder
from dcvit.runtimes.base import Artifact, Runtime, Session, available_cores, gpu_name

CUDA = "CUDAExecutionProvider"


class OnnxRuntime(Runtime):
    """One execution provider of ONNX Runtime; never falls back to another one in silence."""

    artifact: Artifact = "onnx"

    def __init__(self, name: str, provider: str) -> None:
        self.name, self._provider = name, provider

    def unavailable(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed; `pip install onnxruntime`"
        if self._provider == CUDA and not torch.cuda.is_available():
            return "there is no NVIDIA GPU that torch can use; --runtime onnxruntime runs on the CPU"
        import onnxruntime

        if self._provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {self._provider}; `pip install onnxruntime-gpu` in place of onnxruntime"
        return None

    def file(self, folder: ModelFolder, batch: int, precision: Precision) -> Path:
        return folder.file(onnx_name(batch, precision), made_by=export_command(folder.path, batch, precision))

    def open(self, folder: ModelFolder, batch: int, precision: Precision) -> Session:
        return OrtSession(self.file(folder, batch, precision), self._provider)


class OrtSession(Session):
    """An ONNX file of fixed shapes, its input and output bound to two buffers once and for all."""

    def __init__(self, path: Path, provider: str = "CPUExecutionProvider") -> None:
        """Loads the file.

        Raises:
            InputError: If it cannot be loaded, or not by this provider.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = available_cores()
        options.log_severity_level = 4
        # A session's threads go on spinning after a run; in an interleaved benchmark they would take the cores from
        # the other session.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        on_gpu = provider == CUDA
        # fp32 is fp32: by default CUDA rounds matrix products to TF32.
        settings = {"use_tf32": "0"} if on_gpu else {}
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
        except Exception as error:  # its exceptions share no base of their own
            raise InputError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        if provider not in self._session.get_providers():
            raise InputError(f"ONNX Runtime cannot use {provider} here; see `dcvit-tool doctor`")
        (images,), (logits,) = self._session.get_inputs(), self._session.get_outputs()
        super().__init__(images.shape[0], gpu_name() if on_gpu else "CPU", None if on_gpu else available_cores())
        device = "cuda" if on_gpu else "cpu"
        self._images = torch.zeros(images.shape, device=device)
        self._logits = torch.zeros(logits.shape, device=device)
        self._binding = self._session.io_binding()
        self._binding.bind_input(images.name, **_buffer(self._images))
        self._binding.bind_output(logits.name, **_buffer(self._logits))

    def load(self, images: Tensor) -> None:
        self._images.copy_(images)
        if self._images.is_cuda:
            torch.cuda.synchronize()

    def execute(self) -> None:
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def logits(self) -> Tensor:
        return self._logits.cpu()


def _buffer(tensor: Tensor) -> dict[str, Any]:
    return {
        "device_type": tensor.device.type,
        "device_id": tensor.device.index or 0,
        "element_type": np.float32,
        "shape": tuple(tensor.shape),
        "buffer_ptr": tensor.data_ptr(),
    }
