"""PyTorch, ONNX Runtime, OpenVINO and TensorRT behind one small interface."""

from dcvit.errors import InputError
from dcvit.runtimes.base import Runtime, Session, available_cores, limited_to
from dcvit.runtimes.onnx_file import OnnxFileRuntime
from dcvit.runtimes.onnx_runtime import CPU, CUDA, TENSORRT, OnnxRuntime
from dcvit.runtimes.openvino import OpenVino
from dcvit.runtimes.pytorch import CompiledPyTorch, GraphedPyTorch, PyTorch
from dcvit.runtimes.tensorrt import TensorRT

__all__ = [
    "RUNTIMES",
    "Runtime",
    "Session",
    "available_cores",
    "limited_to",
    "onnx_runtimes",
    "runtime_named",
]

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        PyTorch(),
        CompiledPyTorch(),
        GraphedPyTorch(),
        CompiledPyTorch("torch-compile-graph", graph=True),
        # The graph is ours here too.
        CompiledPyTorch("torch-max-autotune", "max-autotune-no-cudagraphs", graph=True),
        OnnxRuntime("onnxruntime", CPU),
        OnnxRuntime("onnxruntime-cuda", CUDA),
        OnnxRuntime("onnxruntime-cuda-graph", CUDA, graph=True),
        OnnxRuntime("onnxruntime-tensorrt", TENSORRT),
        OpenVino(),
        TensorRT("tensorrt"),
        TensorRT("tensorrt-rtx"),
    )
}


def runtime_named(name: str) -> Runtime:
    """The runtime of a name, if it can run on this machine.

    Raises:
        InputError: If there is none of that name, or it lacks a package or a GPU here.
    """
    if name not in RUNTIMES:
        raise InputError(f"there is no runtime '{name}'; choose one of {', '.join(RUNTIMES)}")
    runtime = RUNTIMES[name]
    if reason := runtime.unavailable():
        raise InputError(f"runtime {name} cannot run here: {reason}")
    return runtime


def onnx_runtimes() -> list[OnnxFileRuntime]:
    """The runtimes of ONNX files that can run on this machine."""
    return [
        runtime
        for runtime in RUNTIMES.values()
        if isinstance(runtime, OnnxFileRuntime) and runtime.unavailable() is None
    ]
