"""Images with a class for every pixel, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcvit.data.pairs import IGNORE, IMAGES, MASKS, PairSource
from dcvit.data.protocols import ImageSource, MaskSource
from dcvit.data.reading import CorruptImages, check_channels, decode, prepared
from dcvit.data.shapes import SETS, ShapesSource
from dcvit.data.transforms import evaluation_transform
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track

MAX_LOOKED_AT = 300
"""Masks that are looked at before a source is taken for one with masks."""

MIN_SHARE = 0.25
"""Of the class indices up to the largest, how many have to occur somewhere: else the values are no indices."""


def with_masks(source: ImageSource) -> MaskSource:
    """The source as one with masks, once some of them were looked at.

    Raises:
        InputError: If it has none, or only such as hold no class but 0 where anything counts.
    """
    if not isinstance(source, MaskSource):
        raise InputError(
            f"--data: {source.name} has no masks; segmentation needs a folder (or a tar) with {IMAGES}/ and {MASKS}/, "
            f"or {' or '.join(map(repr, SETS))}"
        )
    check_mask_values(source)
    return source


def check_mask_values(source: MaskSource) -> None:
    """Looks at masks, evenly spread, until two classes were found.

    Raises:
        InputError: If no pixel of them counts; or none but those of class 0, and others are ignored, which is what
            masks of 0 and 255 look like. A mask may also be one that cannot be read.
    """
    found = np.zeros(256, dtype=bool)
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), MAX_LOOKED_AT)).astype(int)):
        found |= np.bincount(source.mask(int(index)).ravel(), minlength=256) > 0
        if found[:IGNORE].sum() > 1:
            return
    explicit = isinstance(source, PairSource) and source.explicit
    if not found[:IGNORE].any():
        raise InputError(
            f"--data: no pixel of the masks of {source.name} counts: all are {IGNORE}, or what --ignore-index says; "
            "--mask-values says which values stand for class 0, 1, …"
        )
    if found[IGNORE] and found[0] and not explicit:
        raise InputError(
            f"--data: the masks of {source.name} hold 0 and {IGNORE} alone, and {IGNORE} is ignored; if it is a class, "
            f"give --mask-values 0,{IGNORE}; if not, --ignore-index {IGNORE}"
        )


def count_classes(source: MaskSource) -> int:
    """The classes that the caller named, or the largest class index in any mask, plus one; at least 2.

    Raises:
        InputError: If a mask cannot be read, or the values that occur have gaps that class indices do not have.
    """
    if isinstance(source, ShapesSource | PairSource) and source.num_classes is not None:
        return source.num_classes
    found = np.zeros(256, dtype=bool)
    for index in track(range(len(source)), "reading masks"):
        found |= np.bincount(source.mask(index).ravel(), minlength=256) > 0
    values = np.flatnonzero(found[:IGNORE]).tolist()
    classes = max(values, default=0) + 1
    if len(values) < MIN_SHARE * classes:
        some = ",".join(map(str, values[:12])) + (",…" if len(values) > 12 else "")
        raise InputError(
            f"--data: the masks of {source.name} hold the values {some}: as class indices these would be {classes} "
            f"classes; --mask-values {some} makes them class 0, 1, …"
        )
    return max(2, classes)


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

    Images that cannot be decoded or prepared are skipped, with their masks.

    Raises:
        InputError: If no image can be decoded, or a mask cannot be used.
    """
    check_channels(preprocessing.input_size[0])
    transform = evaluation_transform(preprocessing)
    some = False
    for start in range(0, len(source), batch_size):
        images, masks = [], []
        for index in range(start, min(start + batch_size, len(source))):
            try:
                image = decode(source.read(index)[0], preprocessing.input_size[0])
                pixels = prepared(transform, image)
            except OSError as error:
                corrupt.add(source.filename(index), error)
                continue
            images.append(pixels)
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
            f"{num_classes} (0 to {num_classes - 1}; {IGNORE} is ignored); --mask-values says which values stand for "
            "class 0, 1, …"
        )
    return mask


def resized_mask(mask: NDArray[np.uint8], size: tuple[int, ...]) -> Tensor:
    """A mask [H, W] resized to (height, width) by the nearest pixel, as int64."""
    return F.interpolate(torch.from_numpy(mask)[None, None], size=size, mode="nearest-exact")[0, 0].long()
