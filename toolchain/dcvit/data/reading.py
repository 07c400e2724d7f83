"""Decoding images, and reading a source in batches for evaluation."""

import io
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dcvit.data.protocols import ImageSource
from dcvit.data.transforms import evaluation_transform
from dcvit.errors import InputError, first_line
from dcvit.preprocessing import Preprocessing

log = logging.getLogger(__name__)


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
    """Counts the images that could not be decoded, and names each in a warning."""

    def __init__(self) -> None:
        """Starts at none."""
        self.names: list[str] = []

    def add(self, name: str, error: Exception) -> None:
        """Notes one."""
        self.names.append(name)
        log.warning("skipped %s, which cannot be decoded: %s", name, first_line(error))


def decode(data: bytes, channels: int) -> Image.Image:
    """Decodes an image to RGB, or to grey for a model of one channel. Raises OSError if it cannot be."""
    try:
        return Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"not an image: {first_line(error)}") from error


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
    transform = evaluation_transform(preprocessing)

    def load(index: int, data: bytes) -> Tensor | None:
        try:
            return transform(decode(data, preprocessing.input_size[0]))
        except OSError as error:
            corrupt.add(source.filename(index), error)
            return None

    some = False
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), batch_size):
            indices = range(start, min(start + batch_size, len(source)))
            # Only decoding is shared out: a tar is read through one file handle.
            encoded, labels = zip(*(source.read(index) for index in indices), strict=True)
            loaded = list(pool.map(load, indices, encoded))
            images = [image for image in loaded if image is not None]
            if images:
                some = True
                kept = [label for label, image in zip(labels, loaded, strict=True) if image is not None]
                yield Batch(torch.stack(images), torch.tensor(kept))
    if not some:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")
