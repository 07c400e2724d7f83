"""PyTorch, eager and compiled: on the GPU where there is one."""

import logging
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dcvit.errors import InputError, first_line
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.layers.folding import fold_layer_scale, fold_patch_embedding
from dcvit.runtimes.base import Artifact, Runtime, Session, gpu_name
from dcvit.runtimes.cuda_graph import GraphedPass
from dcvit.types import TimmModule
from dcvit.variant import Precision, Variant

log = logging.getLogger(__name__)

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PyTorch(Runtime):
    """Runs the folder's weights; at fp16 and bf16 the whole module is cast, and images and logits stay fp32."""

    name = "torch"
    artifact: Artifact = "weights"
    precisions = tuple(_DTYPES)

    def unavailable(self) -> str | None:
        return None

    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        self.require(variant.precision)  # the weights serve every batch
        if variant.with_preprocessing:
            raise InputError(
                f"--with-preprocessing is about exported files, and runtime {self.name} runs {WEIGHTS}; "
                "choose another --runtime"
            )
        return folder.path / WEIGHTS

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        self.file(folder, variant)
        return TorchSession(folder.load(), variant.batch, variant.precision)


class GraphedPyTorch(PyTorch):
    """The same in a CUDA graph, not compiled."""

    name = "torch-graph"

    def unavailable(self) -> str | None:
        return _no_gpu()

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        self.file(folder, variant)
        return TorchSession(folder.load(), variant.batch, variant.precision, graph=True)


class CompiledPyTorch(PyTorch):
    """The same through `torch.compile`, which compiles when a session is opened; `graph` records it in a CUDA graph.

    The graph is ours, not that of `mode="reduce-overhead"`, which copies the images into its own memory at each pass.
    """

    def __init__(self, name: str = "torch-compile", mode: str | None = None, *, graph: bool = False) -> None:
        self.name, self._mode, self._graph = name, mode, graph

    def unavailable(self) -> str | None:
        if torch.cuda.is_available():
            return None  # Triton comes with torch
        if self._graph:
            return _no_gpu()
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler, and there is no {compiler}; install one, or name it in CXX"
        return None

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        self.file(folder, variant)
        session = TorchSession(
            folder.load(), variant.batch, variant.precision, compiled=True, mode=self._mode, graph=self._graph
        )
        session.load(torch.zeros(variant.batch, *folder.manifest.preprocessing.input_size))
        try:
            session.execute()
        except Exception as error:  # whatever the compiler chain throws
            raise InputError(f"torch.compile cannot compile {folder.path}: {first_line(error)}") from error
        return session


def _no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    return "there is no NVIDIA GPU that torch can use, and a CUDA graph needs one; --runtime torch runs on the CPU"


@cache
def _note_emulation() -> None:
    from dcvit.hardware import has_bf16  # imports Accelerate

    if not has_bf16():
        log.warning("this machine has no instructions for bf16: PyTorch emulates it, and takes longer than in fp32")


class TorchSession(Session):
    """A module in evaluation mode. On a GPU the module is changed."""

    def __init__(
        self,
        model: TimmModule,
        batch: int,
        precision: Precision = "fp32",
        device: str | None = None,
        *,
        compiled: bool = False,
        mode: str | None = None,
        graph: bool = False,
    ) -> None:
        """Prepares the module.

        Args:
            model: The module.
            batch: Images in every batch.
            precision: It is cast to.
            device: Where it runs; None takes the GPU where there is one.
            compiled: Run it through `torch.compile`.
            mode: Of `torch.compile`.
            graph: Record the pass in a CUDA graph when it first runs.
        """
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device == "cuda"
        super().__init__(batch, gpu_name() if on_gpu else "CPU", None if on_gpu else torch.get_num_threads())
        self._dtype = _DTYPES[precision]
        if precision == "bf16":
            _note_emulation()
        if on_gpu:  # where a convolution takes many times what the matrix product takes (docs/gpu.md)
            fold_patch_embedding(model)
            fold_layer_scale(model)
        self._model = model.eval().to(self._device, self._dtype)
        if compiled:
            self._model = torch.compile(self._model, dynamic=False, mode=mode)
        self._images: Tensor | None = None
        self._graphed = GraphedPass(self._forward) if graph else None

    def load(self, images: Tensor) -> None:
        if self._graphed is not None and self._images is not None:
            self._images.copy_(images)  # a graph reads where it read before
            torch.cuda.synchronize()
        else:
            self._images = images.to(self._device)

    @torch.inference_mode()
    def execute(self) -> None:
        if self._graphed is not None:
            self._logits = self._graphed()
            return
        self._logits = self._forward()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _forward(self) -> Tensor:
        assert self._images is not None
        return self._model(self._images.to(self._dtype)).float()

    def logits(self) -> Tensor:
        return self._logits.cpu()
