"""PyTorch, eager and compiled: on the GPU where there is one."""

import os
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from dcvit.errors import InputError, first_line
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.layers.folding import fold_layer_scale, fold_patch_embedding
from dcvit.runtimes.base import Artifact, Runtime, Session, gpu_name
from dcvit.types import TimmModule
from dcvit.variant import Precision, Variant

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


class CompiledPyTorch(PyTorch):
    """The same through `torch.compile`, which compiles when a session is opened."""

    name = "torch-compile"

    def unavailable(self) -> str | None:
        if torch.cuda.is_available():
            return None  # Triton comes with torch
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler, and there is no {compiler}; install one, or name it in CXX"
        return None

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        self.file(folder, variant)
        session = TorchSession(folder.load(), variant.batch, variant.precision, compiled=True)
        session.load(torch.zeros(variant.batch, *folder.manifest.preprocessing.input_size))
        try:
            session.execute()
        except Exception as error:  # whatever the compiler chain throws
            raise InputError(f"torch.compile cannot compile {folder.path}: {first_line(error)}") from error
        return session


class TorchSession(Session):
    """A module in evaluation mode; `device` overrides the choice of where it runs. On a GPU the module is changed."""

    def __init__(
        self,
        model: TimmModule,
        batch: int,
        precision: Precision = "fp32",
        device: str | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device == "cuda"
        super().__init__(batch, gpu_name() if on_gpu else "CPU", None if on_gpu else torch.get_num_threads())
        self._dtype = _DTYPES[precision]
        if on_gpu:  # where a convolution takes many times what the matrix product takes (docs/gpu.md)
            fold_patch_embedding(model)
            fold_layer_scale(model)
        self._model = model.eval().to(self._device, self._dtype)
        if compiled:
            self._model = torch.compile(self._model, dynamic=False)

    def load(self, images: Tensor) -> None:
        self._images = images.to(self._device)

    @torch.inference_mode()
    def execute(self) -> None:
        self._logits = self._model(self._images.to(self._dtype)).float()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def logits(self) -> Tensor:
        return self._logits.cpu()
