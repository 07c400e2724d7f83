"""The interface that every runtime is used through."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.preprocessing import Preprocessing
from dcvit.variant import Precision, Variant

Artifact = Literal["weights", "onnx", "engine"]


class Session(ABC):
    """A model loaded in a runtime, for batches of one size; `load`, `execute` and `logits` are the steps of `infer`.

    They are apart so that a benchmark can time `execute` alone, with the images on the device already.

    Attributes:
        batch: Images in every batch.
        device: What computes, in words.
        threads: CPU threads that compute; None on a GPU.
    """

    def __init__(self, batch: int, device: str, threads: int | None) -> None:
        self.batch, self.device, self.threads = batch, device, threads

    @abstractmethod
    def load(self, images: Tensor) -> None:
        """Puts images [batch, C, H, W] (fp32, on the CPU) where the runtime reads them."""

    @abstractmethod
    def execute(self) -> None:
        """One forward pass over the loaded images; returns when it is finished."""

    @abstractmethod
    def logits(self) -> Tensor:
        """What the last pass made: [batch, classes], fp32, on the CPU; the next pass may overwrite it."""

    def infer(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, C, H, W], batch by batch; the last batch is filled up with zeros."""
        return torch.cat([self._infer_batch(batch) for batch in images.split(self.batch)])

    def _infer_batch(self, images: Tensor) -> Tensor:
        missing = self.batch - len(images)
        padded = images if missing == 0 else torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        self.load(padded)
        self.execute()
        return self.logits()[: len(images)].clone()


class Runtime(ABC):
    """Something that can run a model.

    Attributes:
        name: As on the command line.
        artifact: What of a model folder it runs: the weights themselves, an ONNX file, or an engine.
        precisions: What it can compute in.
    """

    name: str
    artifact: Artifact
    precisions: tuple[Precision, ...]

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this machine cannot use it, and what to do about it; None where it can."""

    @abstractmethod
    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        """The file of the folder that it runs.

        Args:
            folder: A model folder.
            variant: Batch and precision of the computation, and whether the file takes pixels.

        Raises:
            InputError: If the runtime does not compute in this precision, or the folder has no such file; the message
                says how to make it.
        """

    @abstractmethod
    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        """Loads a model; the arguments are those of `file`. Every session takes normalised images.

        Raises:
            InputError: If its file is not there, or cannot be loaded.
        """

    def source(self, precision: Precision) -> Precision:
        """The precision of the exported file from which it computes in `precision`."""
        return precision

    def require(self, precision: Precision) -> None:
        """Raises InputError unless it computes in this precision."""
        if precision not in self.precisions:
            raise InputError(f"--precision {precision}: runtime {self.name} has {', '.join(self.precisions)} here")


def pixels_of(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The pixels, uint8 [B, H, W, C], that were normalised to images [B, C, H, W]: exact, but for clipping."""
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocessing.mean, preprocessing.std))
    return (255 * (images * std + mean)).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_threads: ContextVar[int | None] = ContextVar("threads", default=None)


def available_cores() -> int:
    """CPU cores that this process may use, or fewer within `limited_to`; each session takes as many threads."""
    limit = _threads.get()
    if limit is not None:
        return limit
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Gives every runtime this many CPU threads inside the block, PyTorch included; None gives it all cores.

    Raises:
        InputError: If there are not as many cores.
    """
    cores = available_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise InputError(f"--threads {threads}: this process may use {cores} cores, so choose 1 to {cores}")
    token, before = _threads.set(threads or cores), torch.get_num_threads()
    torch.set_num_threads(threads or cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(token)


def gpu_name() -> str:
    """Name of the GPU that torch, ONNX Runtime and TensorRT use: the first visible one."""
    return torch.cuda.get_device_name(0)
