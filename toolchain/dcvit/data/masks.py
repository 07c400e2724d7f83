"""Images with a class for every pixel, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcvit.data import CorruptImages, ImageSource, decode, evaluation_transform
from dcvit.data.pairs import IMAGES, MASKS
from dcvit.data.protocols import MaskSource
from dcvit.data.shapes import SHAPES, ShapesSource
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track

IGNORE = 255
"""The class index of pixels that do not count."""


def with_masks(source: ImageSource) -> MaskSource:
    """The source as one with masks.

    Raises:
        InputError: If it has none.
    """
    if not isinstance(source, MaskSource):
        raise InputError(
            f"--data: {source.name} has no masks; segmentation needs a folder (or a tar) with {IMAGES}/ and {MASKS}/, "
            f"or '{SHAPES}'"
        )
    return source


def count_classes(source: MaskSource) -> int:
    """The largest class index in any mask, plus one; at least 2.

    Raises:
        InputError: If a mask cannot be read.
    """
    if isinstance(source, ShapesSource):
        return source.num_classes
    masks = (source.mask(index) for index in track(range(len(source)), "reading masks"))
    return max(2, *(int(mask[mask != IGNORE].max(initial=0)) + 1 for mask in masks))


@dataclass(frozen=True)
class PairBatch:
    """Some images of a source with their masks.

    Attributes:
        images: [B, C, H, W], normalised.
        masks: Class of every pixel, [B, H, W].
    """

    images: Tensor
    masks: Tensor


def mask_batches(
    source: MaskSource,
    preprocessing: Preprocessing,
    num_classes: int,
    batch_size: int,
    corrupt: CorruptImages,
) -> Iterator[PairBatch]:
    """Reads a source in order, whole images resized to the model's input, masks by the nearest pixel.

    Images that cannot be decoded are skipped, with their masks.

    Raises:
        InputError: If no image can be decoded, or a mask cannot be used.
    """
    transform = evaluation_transform(preprocessing)
    some = False
    for start in range(0, len(source), batch_size):
        images, masks = [], []
        for index in range(start, min(start + batch_size, len(source))):
            try:
                image = decode(source.read(index)[0], preprocessing.input_size[0])
            except OSError as error:
                corrupt.add(source.filename(index), error)
                continue
            images.append(transform(image))
            mask = checked_mask(source, index, image.size, num_classes)
            masks.append(resized_mask(mask, preprocessing.input_size[1:]))
        if images:
            some = True
            yield PairBatch(torch.stack(images), torch.stack(masks))
    if not some:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")


def checked_mask(source: MaskSource, index: int, size: tuple[int, int], num_classes: int) -> NDArray[np.uint8]:
    """A mask of its image's size (width, height) that holds only classes that the model knows.

    Raises:
        InputError: If it is of another size, holds another class, or cannot be read.
    """
    mask = source.mask(index)
    height, width = mask.shape
    if (width, height) != size:
        raise InputError(
            f"--data: {source.filename(index)} has {size[0]}×{size[1]} pixels, and its mask {width}×{height}"
        )
    counted = mask[mask != IGNORE]
    if counted.size and int(counted.max()) >= num_classes:
        raise InputError(
            f"--data: the mask of {source.filename(index)} holds class {int(counted.max())}, and the model knows "
            f"{num_classes} (0 to {num_classes - 1}; {IGNORE} is ignored)"
        )
    return mask


def resized_mask(mask: NDArray[np.uint8], size: tuple[int, ...]) -> Tensor:
    """A mask [H, W] resized to (height, width) by the nearest pixel, as int64."""
    return F.interpolate(torch.from_numpy(mask)[None, None], size=size, mode="nearest-exact")[0, 0].long()
