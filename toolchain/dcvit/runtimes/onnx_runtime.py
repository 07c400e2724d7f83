"""ONNX Runtime: on the CPU, through CUDA, or through its TensorRT provider."""

import platform
import sys
from importlib import import_module, metadata
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
from dcvit.variant import DEFAULT_BATCH, Precision

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    # It has next to no kernels for bf16.
    # In fp8 it computes what the file says, to know its accuracy; there is no speed to be had.
    CPU: ("fp32", "fp16", "int8", "fp8"),
    CUDA: ("fp32", "fp16"),
    # It has no switch for TF32, which would round fp32 in silence.
    TENSORRT: ("fp16", "bf16"),
}
_TITLES = {CPU: "ONNX Runtime", CUDA: "ONNX Runtime, CUDA", TENSORRT: "ONNX Runtime, TensorRT"}


GPU_PACKAGE = "onnxruntime-gpu"
PACKAGE = GPU_PACKAGE if (sys.platform, platform.machine()) == ("linux", "x86_64") else "onnxruntime"
"""What pyproject.toml installs here; the GPU's package has the CPU provider too."""


def installed_twice() -> str | None:
    """What to do where both packages are installed: they write the same files, and the later one wins; else None."""
    try:
        for name in ("onnxruntime", GPU_PACKAGE):
            metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    both = f"onnxruntime {GPU_PACKAGE}"
    return f"both are installed and overwrite each other: `pip uninstall -y {both} && pip install {PACKAGE}`"


class OnnxRuntime(OnnxFileRuntime):
    """One execution provider of ONNX Runtime; never falls back to another one in silence."""

    def __init__(self, name: str, provider: str, *, graph: bool = False) -> None:
        self.name, self._provider, self._graph = name, provider, graph
        self.title = _TITLES[provider] + (" in a CUDA graph" if graph else "")
        self.fixed_batch = graph  # shapes that are computed, are so on the CPU, and no graph holds that
        self.precisions = _PRECISIONS[provider]

    def unavailable(self) -> str | None:
        if find_spec("onnxruntime") is None:
            return f"ONNX Runtime is not installed; `pip install {PACKAGE}`"
        if self._provider != CPU and not torch.cuda.is_available():
            return "there is no NVIDIA GPU that torch can use; --runtime onnxruntime runs on the CPU"
        import onnxruntime

        if self._provider not in onnxruntime.get_available_providers():
            return (
                f"this onnxruntime has no {self._provider}; `pip uninstall -y onnxruntime && pip install {GPU_PACKAGE}`"
            )
        if self._provider == TENSORRT:
            return flavors.not_installed("tensorrt")
        return None

    def open_file(
        self,
        path: Path,
        precision: Precision,
        preprocessing: Preprocessing | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Session:
        self.require(precision)
        return OrtSession(path, self._provider, preprocessing, batch=batch, as_written=precision == "fp8",
                          graph=self._graph)  # fmt: skip


class OrtSession(Session):
    """An ONNX file, its input and output bound to two buffers of one batch once and for all."""

    def __init__(
        self,
        path: Path,
        provider: str = CPU,
        preprocessing: Preprocessing | None = None,
        *,
        batch: int = DEFAULT_BATCH,
        as_written: bool = False,
        graph: bool = False,
    ) -> None:
        """Loads the file.

        Args:
            path: The ONNX file.
            provider: What computes.
            preprocessing: Needed for a file that takes pixels.
            batch: Images at once, for a file that leaves it open.
            as_written: Compute each operator as it stands: for files with TensorRT's quantization, of which the
                optimizer makes integer kernels that are not theirs, or nothing that loads.
            graph: Record the pass in a CUDA graph when it first runs. All of it must be on the GPU.

        Raises:
            InputError: If it cannot be loaded, or not by this provider.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if as_written else levels.ORT_ENABLE_ALL
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
            chosen = [(provider, _settings(provider) | ({"enable_cuda_graph": "1"} if graph else {}))]
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
        batch = batch if isinstance(images.shape[0], str) else images.shape[0]
        super().__init__(batch, gpu_name() if on_gpu else "CPU", None if on_gpu else available_cores())
        device = "cuda" if on_gpu else "cpu"
        self._preprocessing = preprocessing if images.type == "tensor(uint8)" else None
        pixels = torch.uint8 if self._preprocessing else torch.float32
        self._images = torch.zeros(batch, *images.shape[1:], device=device, dtype=pixels)
        self._logits = torch.zeros(batch, *logits.shape[1:], device=device)
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
