"""Decoding images, and reading a source in batches for evaluation."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from dcvit.data.formats import max_pixels, opened, with_eight_bits
from dcvit.data.protocols import ImageSource
from dcvit.data.transforms import evaluation_transform
from dcvit.errors import InputError, first_line
from dcvit.preprocessing import Preprocessing

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Some images of a source.

    Attributes:
        images: [B, C, H, W], normalised.
        labels: [B].
    """

    images: Tensor
    labels: Tensor


class CorruptImages:
    """Counts the images that could not be used, and names each in a warning."""

    def __init__(self) -> None:
        """Starts at none."""
        self.names: list[str] = []

    def add(self, name: str, error: Exception) -> None:
        """Notes one."""
        self.names.append(name)
        log.warning("skipped %s: %s", name, first_line(error))

    def add_once(self, name: str, error: Exception) -> None:
        """Notes one that may be met in every epoch."""
        if name not in self.names:
            self.add(name, error)


def check_channels(channels: int) -> None:
    """Whether images can be what a model takes.

    Raises:
        InputError: If it takes neither grey nor RGB.
    """
    if channels not in (1, 3):
        raise InputError(f"--data: images have 1 or 3 channels, and the model takes {channels}; it cannot see images")


def decode(data: bytes, channels: int) -> Image.Image:
    """Decodes an image to RGB, or to grey for a model of one channel; see `with_eight_bits` for deeper ones.

    Raises:
        OSError: If it cannot be decoded, whatever the decoder raised, or has more pixels than `max_pixels`.
        InputError: If the model has other channels.
    """
    check_channels(channels)
    limit = max_pixels()
    try:
        return with_eight_bits(opened(data, limit)).convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise whatever they like
        raise OSError(f"it cannot be decoded: {first_line(error)}") from error


def prepared(transform: Callable[[Image.Image], T], image: Image.Image) -> T:
    """The transform of an image. Raises OSError, as for a corrupt image, whatever the transform raised."""
    try:
        return transform(image)
    except Exception as error:  # one image in a hundred thousand must not end the run
        raise OSError(f"it cannot be prepared: {type(error).__name__}: {first_line(error)}") from error


def batches(
    source: ImageSource,
    preprocessing: Preprocessing,
    batch_size: int,
    corrupt: CorruptImages,
    *,
    threads: int = 2,
) -> Iterator[Batch]:
    """Reads a source in order, in batches for evaluation; the last may be smaller. Corrupt images are skipped.

    Raises:
        InputError: If no image can be decoded.
    """
    check_channels(preprocessing.input_size[0])
    transform = evaluation_transform(preprocessing)

    def read(index: int) -> tuple[bytes, int] | None:
        try:
            return source.read(index)
        except OSError as error:
            corrupt.add(source.filename(index), error)
            return None

    def load(index: int, found: tuple[bytes, int] | None) -> tuple[Tensor, int] | None:
        if found is None:
            return None
        try:
            return prepared(transform, decode(found[0], preprocessing.input_size[0])), found[1]
        except OSError as error:
            corrupt.add(source.filename(index), error)
            return None

    some = False
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), batch_size):
            indices = range(start, min(start + batch_size, len(source)))
            # Only decoding is shared out: a source need not stand being read by two threads.
            loaded = [pair for pair in pool.map(load, indices, [read(index) for index in indices]) if pair is not None]
            if loaded:
                some = True
                images, labels = zip(*loaded, strict=True)
                yield Batch(torch.stack(images), torch.tensor(labels))
    if not some:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")
