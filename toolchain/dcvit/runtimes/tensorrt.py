"""Running a TensorRT or TensorRT-RTX engine on the GPU."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcvit.errors import InputError
from dcvit.files import sha256_of, whole_file
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EngineRecord, engine_records
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes import flavors
from dcvit.runtimes.base import Artifact, Runtime, Session, gpu_name, pixels_of
from dcvit.runtimes.caches import cache_folder
from dcvit.runtimes.cuda_graph import record_if_possible
from dcvit.variant import DEFAULT_BATCH, Flavor, Precision, Variant


class TensorRT(Runtime):
    """One flavor of TensorRT."""

    artifact: Artifact = "engine"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")

    def __init__(self, flavor: Flavor) -> None:
        self.name = self.flavor = flavor

    def unavailable(self) -> str | None:
        if reason := flavors.not_installed(self.flavor):
            return reason
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU that torch can use; --runtime onnxruntime runs on the CPU"
        return None

    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        self.require(variant.precision)
        made_by = variant.export_command(folder.path, self.flavor)
        names = [each.engine_name(self.flavor) for each in (variant, variant.of_any_batch())]
        return folder.file(next((each for each in names if each in folder.manifest.files), names[0]), made_by=made_by)

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        path = self.file(folder, variant)
        record, trt = engine_records(folder)[path.name], flavors.load(self.flavor)
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        if reason := stale(folder, record) or mismatch(record, trt.__version__, capability):
            made_by = variant.export_command(folder.path, self.flavor)
            more = f" --compute-capability {capability}" if self.flavor == "tensorrt-rtx" else ""
            raise InputError(f"{path} cannot be used: {reason}; build it here with `{made_by}{more}`")
        if record.profile is not None and not record.profile[0] <= variant.batch <= record.profile[-1]:
            least, _, most = record.profile
            raise InputError(f"--batch {variant.batch}: {path} takes {least} to {most} images; export with --profile")
        return EngineSession(path, trt, folder.manifest.preprocessing, variant.batch)


def stale(folder: ModelFolder, record: EngineRecord) -> str | None:
    """Why an engine is not that of the folder's ONNX file; None if it is."""
    source = folder.manifest.files.get(record.onnx)
    if source is None or source.sha256 != record.onnx_sha256:
        return f"{record.onnx} is gone or has changed since"
    return None


def mismatch(record: EngineRecord, version: str, capability: str) -> str | None:
    """Why an engine cannot run with a version of its flavor, on a GPU of a compute capability; None if it can."""
    if record.version != version:
        return f"it was built by {record.flavor} {record.version}, and {version} is installed"
    built_for = record.compute_capabilities or ((record.compute_capability,) if record.compute_capability else None)
    if built_for is not None and capability not in built_for:
        return f"it is for compute capability {', '.join(built_for)}, and this GPU has {capability}"
    return None


class EngineSession(Session):
    """An engine and one batch; torch holds its buffers and the stream. After its first pass it is a CUDA graph.

    TensorRT-RTX compiles kernels when an engine first runs. They are kept in the user's cache, and serve the next
    session of the same engine.

    Attributes:
        engine: The `ICudaEngine`, to read inputs, outputs, layers and dtypes from.
    """

    def __init__(
        self, path: Path, trt: Any, preprocessing: Preprocessing | None = None, batch: int = DEFAULT_BATCH
    ) -> None:
        """Loads the file.

        Args:
            path: The engine.
            trt: The flavor's package.
            preprocessing: Needed for an engine that takes pixels.
            batch: Images at once, for an engine that takes any number.

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
        self._kernels: Any = None
        if trt.__name__ == "tensorrt_rtx":
            self._kernels_file = cache_folder("tensorrt-rtx") / f"{sha256_of(path)[:32]}.kernels"
            self._context = self.engine.create_execution_context(self._compiled_before())
        else:
            self._context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {self.engine.get_tensor_mode(name): name for name in names}
        shape = tuple(self.engine.get_tensor_shape(modes[trt.TensorIOMode.INPUT]))
        if shape[0] == -1:
            self._context.set_input_shape(modes[trt.TensorIOMode.INPUT], (batch, *shape[1:]))
        self._images = self._bind(modes[trt.TensorIOMode.INPUT])
        self._logits = self._bind(modes[trt.TensorIOMode.OUTPUT])
        self._preprocessing = preprocessing if self._images.dtype == torch.uint8 else None
        self._stream = torch.cuda.Stream()
        self._name, self._has_run, self._graph = path.name, False, None
        super().__init__(len(self._images), gpu_name(), None)

    def _compiled_before(self) -> Any:
        """A configuration with the kernels of earlier sessions; those that do not fit this machine are passed over."""
        config = self.engine.create_runtime_config()
        self._kernels = config.create_runtime_cache()
        if self._kernels_file.is_file():
            self._kernels.deserialize(self._kernels_file.read_bytes())
        config.set_runtime_cache(self._kernels)
        return config

    def _bind(self, name: str) -> Tensor:
        dtype = torch.uint8 if self.engine.get_tensor_dtype(name).name == "UINT8" else torch.float32
        shape = tuple(self.engine.get_tensor_shape(name))
        if -1 in shape:  # the context knows it, once it knows the batch
            shape = tuple(self._context.get_tensor_shape(name))
        buffer = torch.zeros(shape, device="cuda", dtype=dtype)
        self._context.set_tensor_address(name, buffer.data_ptr())
        return buffer

    def load(self, images: Tensor) -> None:
        self._images.copy_(pixels_of(images, self._preprocessing) if self._preprocessing else images)
        torch.cuda.synchronize()

    def execute(self) -> None:
        if self._graph is not None:
            with torch.cuda.stream(self._stream):
                self._graph.replay()
        else:
            self._enqueue(self._stream)
        self._stream.synchronize()
        if not self._has_run:
            self._after_first_run()

    def _enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")

    def _after_first_run(self) -> None:
        """Keeps the kernels, all of which that run has compiled, and records the pass."""
        self._has_run = True
        if self._kernels is not None:
            with whole_file(self._kernels_file) as aside:
                aside.write_bytes(bytes(self._kernels.serialize()))
            self._kernels = None
        self._graph = record_if_possible(self._enqueue, self._stream, f"the engine {self._name}")

    def logits(self) -> Tensor:
        return self._logits.cpu()
