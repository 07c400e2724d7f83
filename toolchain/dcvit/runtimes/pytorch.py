"""PyTorch as it is: eager, on the GPU where there is one."""

from pathlib import Path

import torch
from torch import Tensor

from dcvit.artifacts import Precision
from dcvit.folder import WEIGHTS, ModelFolder
from dcvit.runtimes.base import Artifact, Runtime, Session, gpu_name
from dcvit.types import TimmModule


class PyTorch(Runtime):
    """Runs the folder's weights; at fp16 the whole module is cast, and images and logits stay fp32."""

    name = "torch"
    artifact: Artifact = "weights"

    def unavailable(self) -> str | None:
        return None

    def file(self, folder: ModelFolder, batch: int, precision: Precision) -> Path:  # noqa: ARG002
        return folder.path / WEIGHTS

    def open(self, folder: ModelFolder, batch: int, precision: Precision) -> Session:
        return TorchSession(folder.load(), batch, precision)


class TorchSession(Session):
    """A module in evaluation mode; `device` overrides the choice of where it runs."""

    def __init__(self, model: TimmModule, batch: int, precision: Precision = "fp32", device: str | None = None) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device == "cuda"
        super().__init__(batch, gpu_name() if on_gpu else "CPU", None if on_gpu else torch.get_num_threads())
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        self._model = model.eval().to(self._device, self._dtype)

    def load(self, images: Tensor) -> None:
        self._images = images.to(self._device)

    @torch.inference_mode()
    def execute(self) -> None:
        self._logits = self._model(self._images.to(self._dtype)).float()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def logits(self) -> Tensor:
        return self._logits.cpu()
