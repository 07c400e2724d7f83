"""Images to train on: decoded once where they fit into memory, augmented anew in every epoch."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcvit.data import CorruptImages, ImageSource, check_channels, decode, derived_seed, prepared, seeded
from dcvit.errors import InputError
from dcvit.files import base_name
from dcvit.hardware import accelerator
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track
from dcvit.training.augmentation import ShiftAndFlip, deit_transform, pixel_transform
from dcvit.training.order import Draw
from dcvit.training.recipe import Augmentation

MAX_CACHE_BYTES = 2 << 30
"""Prepared images beyond this are decoded whenever they are needed."""


class TrainingData(Protocol):
    """What a training draws its batches from."""

    @property
    def num_images(self) -> int:
        """Images of an epoch."""

    @property
    def labelled(self) -> bool:
        """Whether batches come with labels."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """For the manifest: equal for equal images."""

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor, Tensor | None]]:
        """The images [b, C, H, W] of each draw, augmented, on the device, and their labels."""


class TrainingImages:
    """Images of a source, with labels or without.

    What an image looks like in an epoch depends on (seed, epoch, image) alone. A corrupt image, or one that
    cannot be augmented, is named and skipped; where images are decoded as they are needed, it is replaced by the next.

    Args:
        source: Where they come from.
        preprocessing: Of the model.
        augmentation: How they vary.
        labelled: Whether to give labels.
        samples: How many to draw at random; None takes all.
        seed: Of the draw and of the augmentation.
        workers: Processes that decode; None goes by the machine.

    Raises:
        InputError: If there are fewer images than `samples`, or none that can be decoded, or images cannot be what the
            model takes.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        labelled: bool,
        samples: int | None = None,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        if samples is not None and samples > len(source):
            raise InputError(f"--samples {samples}: {source.name} has {len(source)} images; ask for at most as many")
        check_channels(preprocessing.input_size[0])
        self.labelled = labelled
        self._preprocessing, self._seed = preprocessing, seed
        self._workers = max(1, (os.cpu_count() or 1) // accelerator().num_processes) if workers is None else workers
        chosen = np.arange(len(source))
        if samples is not None:
            chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:samples])
        channels, height, width = preprocessing.input_size
        fits = len(chosen) * channels * height * width <= MAX_CACHE_BYTES
        self._pixels: Tensor | None = None
        if augmentation != "deit" and fits:
            self._pixels, self._labels, self.fingerprint = _decoded(source, chosen, preprocessing)
        else:
            transform = deit_transform(preprocessing) if augmentation == "deit" else pixel_transform(preprocessing)
            self._dataset = _Encoded(source, chosen, transform, channels, seed)
            self.fingerprint = _fingerprint_of_names(source, chosen)
        self.num_images: int = self.fingerprint["images"]
        self._vary = ShiftAndFlip(self.num_images, (height, width), seed) if augmentation == "crop" else None

    def batches(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor, Tensor | None]]:
        """The images [b, C, H, W] of each draw, augmented, on the device, and their labels [b]."""
        device = accelerator().device
        for draw, images, labels in self._from_memory(draws) if self._pixels is not None else self._loaded(draws):
            images = images.to(device, non_blocking=True)
            if images.dtype == torch.uint8:
                if self._vary is not None:
                    images = self._vary(images, draw.epochs, draw.indices)
                images = self._normalised(images)
            yield draw, images, labels.to(device) if self.labelled else None

    def _from_memory(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor, Tensor]]:
        assert self._pixels is not None
        for draw in draws:
            yield draw, self._pixels[draw.indices], self._labels[draw.indices]

    def _loaded(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor, Tensor]]:
        under_way: deque[Draw] = deque()
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=_Drawn(draws, under_way),
            num_workers=self._workers,
            pin_memory=accelerator().device.type == "cuda",
        )
        for images, labels in loader:
            yield under_way.popleft(), images, labels

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (
            255 * torch.tensor(figures, device=pixels.device)[:, None, None]
            for figures in (self._preprocessing.mean, self._preprocessing.std)
        )
        return (pixels.float() - mean) / std


class _Drawn:
    """(epoch, image) pairs of each draw, and the draws that were handed out."""

    def __init__(self, draws: Iterable[Draw], under_way: deque[Draw]) -> None:
        self._draws, self._under_way = draws, under_way

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for draw in self._draws:
            self._under_way.append(draw)
            yield list(zip(draw.epochs.tolist(), draw.indices.tolist(), strict=True))


class _Encoded(Dataset[tuple[Any, int]]):
    """Decodes and augments when asked, by (epoch, image)."""

    def __init__(
        self,
        source: ImageSource,
        chosen: np.ndarray[Any, Any],
        transform: Callable[[Any], Any],
        channels: int,
        seed: int,
    ) -> None:
        self.source, self._chosen, self._transform = source, chosen, transform
        self._channels, self._seed = channels, seed
        self._corrupt = CorruptImages()

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        epoch, index = key
        for following in range(len(self._chosen)):
            number = int(self._chosen[(index + following) % len(self._chosen)])
            try:
                data, label = self.source.read(number)
                image = decode(data, self._channels)
                with seeded(derived_seed(self._seed, epoch, index)):
                    return prepared(self._transform, image), label
            except OSError as error:
                self._corrupt.add_once(self.source.filename(number), error)
        raise InputError(f"--data: none of the {len(self._chosen)} images of {self.source.name} can be decoded")


def _decoded(
    source: ImageSource, chosen: np.ndarray[Any, Any], preprocessing: Preprocessing
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Pixels [n, C, H, W] at the model's input size, labels [n], and a fingerprint of both."""
    transform, corrupt = pixel_transform(preprocessing), CorruptImages()

    def read(number: int) -> tuple[bytes, int] | None:
        try:
            return source.read(number)
        except OSError as error:
            corrupt.add(source.filename(number), error)
            return None

    def load(number: int, found: tuple[bytes, int] | None) -> tuple[np.ndarray[Any, Any], int] | None:
        if found is None:
            return None
        try:
            return prepared(transform, decode(found[0], preprocessing.input_size[0])), found[1]
        except OSError as error:
            corrupt.add(source.filename(number), error)
            return None

    pixels = np.empty((len(chosen), *preprocessing.input_size), dtype=np.uint8)
    labels: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        for numbers in track(np.array_split(chosen, -(-len(chosen) // 256)), "reading images"):
            # Only decoding is shared out: a source need not stand being read by two threads.
            for pair in pool.map(load, numbers.tolist(), [read(number) for number in numbers.tolist()]):
                if pair is not None:
                    pixels[len(labels)] = pair[0]
                    labels.append(pair[1])
    if not labels:
        raise InputError(f"--data: none of the {len(chosen)} images of {source.name} can be decoded")
    kept = torch.from_numpy(pixels[: len(labels)])
    digest = hashlib.sha256(pixels[: len(labels)].tobytes() + repr(labels).encode())
    fingerprint = {
        "source": base_name(source.name),
        "images": len(labels),
        "corrupt": len(corrupt.names),
        "sha256": digest.hexdigest(),
    }
    return kept, torch.tensor(labels), fingerprint


def _fingerprint_of_names(source: ImageSource, chosen: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Of names alone: to read all the images of a large set only to tell it from another would take an epoch."""
    digest = hashlib.sha256()
    for number in chosen.tolist():
        digest.update(source.filename(number).encode() + b"\0")
    found = {"source": base_name(source.name), "images": len(chosen), "sha256_of_names": digest.hexdigest()}
    if (content := getattr(source, "content", None)) is not None:  # images in memory have no names of their own
        found["sha256_of_some"] = content(chosen.tolist())
    return found
