"""ONNX Runtime: on the CPU, through CUDA, or through its TensorRT provider."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcvit.errors import InputError, first_line
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes import flavors
from dcvit.runtimes.base import Session, available_cores, gpu_name, pixels_of
from dcvit.runtimes.caches import cache_folder
from dcvit.runtimes.onnx_file import OnnxFileRuntime, check_interface, put
from dcvit.variant import Precision

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    # It has next to no kernels for bf16.
    CPU: ("fp32", "fp16", "int8"),
    CUDA: ("fp32", "fp16"),
    # It has no switch for TF32, which would round fp32 in silence.
    TENSORRT: ("fp16", "bf16"),
}
_TITLES = {CPU: "ONNX Runtime", CUDA: "ONNX Runtime, CUDA", TENSORRT: "ONNX Runtime, TensorRT"}


class OnnxRuntime(OnnxFileRuntime):
    """One execution provider of ONNX Runtime; never falls back to another one in silence."""

    def __init__(self, name: str, provider: str) -> None:
        self.name, self._provider, self.title = name, provider, _TITLES[provider]
        self.precisions = _PRECISIONS[provider]

    def unavailable(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed; `pip install onnxruntime`"
        if self._provider != CPU and not torch.cuda.is_available():
            return "there is no NVIDIA GPU that torch can use; --runtime onnxruntime runs on the CPU"
        import onnxruntime

        if self._provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {self._provider}; `pip install onnxruntime-gpu` in place of onnxruntime"
        if self._provider == TENSORRT:
            return flavors.not_installed("tensorrt")
        return None

    def open_file(self, path: Path, precision: Precision, preprocessing: Preprocessing | None = None) -> Session:
        self.require(precision)
        return OrtSession(path, self._provider, preprocessing)


class OrtSession(Session):
    """An ONNX file of fixed shapes, its input and output bound to two buffers once and for all."""

    def __init__(self, path: Path, provider: str = CPU, preprocessing: Preprocessing | None = None) -> None:
        """Loads the file; `preprocessing` is needed for one that takes pixels.

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
        # int8: processors without VNNI add products in 16 bits, which overflow; this takes a slower way there.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if provider == TENSORRT:
            import_module("tensorrt")  # loads the libraries that the provider looks for
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            chosen = [(provider, _settings(provider))]
            self._session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # its exceptions share no base of their own
            raise InputError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        if provider not in self._session.get_providers():
            raise InputError(f"ONNX Runtime cannot use {provider} here; see `dcvit-tool doctor`")
        check_interface(path, *([each.shape for each in ends] for ends in
                                (self._session.get_inputs(), self._session.get_outputs())))  # fmt: skip
        (images,), (logits,) = self._session.get_inputs(), self._session.get_outputs()
        self._path = path
        on_gpu = provider != CPU
        super().__init__(images.shape[0], gpu_name() if on_gpu else "CPU", None if on_gpu else available_cores())
        device = "cuda" if on_gpu else "cpu"
        self._preprocessing = preprocessing if images.type == "tensor(uint8)" else None
        pixels = torch.uint8 if self._preprocessing else torch.float32
        self._images = torch.zeros(images.shape, device=device, dtype=pixels)
        self._logits = torch.zeros(logits.shape, device=device)
        self._binding = self._session.io_binding()
        self._binding.bind_input(images.name, **_buffer(self._images))
        self._binding.bind_output(logits.name, **_buffer(self._logits))

    def load(self, images: Tensor) -> None:
        put(self._images, pixels_of(images, self._preprocessing) if self._preprocessing else images, self._path)
        if self._images.is_cuda:
            torch.cuda.synchronize()

    def execute(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its exceptions share no base of their own
            raise InputError(f"ONNX Runtime cannot run {self._path}: {first_line(error)}") from error
        self._binding.synchronize_outputs()

    def logits(self) -> Tensor:
        return self._logits.cpu()


def _settings(provider: str) -> dict[str, str]:
    if provider == CUDA:  # fp32 is fp32: by default CUDA rounds matrix products to TF32
        return {"use_tf32": "0"}
    if provider == TENSORRT:
        # No flag for fp16 or bf16, which would let TensorRT choose: the types are those of the graph.
        cache = str(cache_folder("onnxruntime-tensorrt"))
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": cache,
        }
    return {}


def _buffer(tensor: Tensor) -> dict[str, Any]:
    return {
        "device_type": tensor.device.type,
        "device_id": tensor.device.index or 0,
        "element_type": np.uint8 if tensor.dtype == torch.uint8 else np.float32,
        "shape": tuple(tensor.shape),
        "buffer_ptr": tensor.data_ptr(),
    }
