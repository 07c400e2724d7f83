"""Augmentation: timm's transforms for large inputs, shifts and flips of whole batches for small ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from dcvit.data import derived_seed
from dcvit.data.transforms import Transform, with_valid_bits
from dcvit.preprocessing import Preprocessing


def pixel_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], np.ndarray[Any, Any]]:
    """Resize and centre crop as for evaluation, to pixels [C, H, W] from 0 to 255."""
    return create_transform(**preprocessing.model_dump(), use_prefetcher=True)


def deit_transform(preprocessing: Preprocessing) -> Transform:
    """DeiT's augmentation of one image; random choices come from the global generators."""
    transform = create_transform(
        input_size=preprocessing.input_size,
        is_training=True,
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1" if preprocessing.input_size[0] == 3 else None,
        color_jitter=None,
        re_prob=0.25,
        re_mode="pixel",
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return with_valid_bits(transform)


def padding_of(side: int) -> int:
    """Pixels that a crop may shift an image: an eighth of its side, which is 4 for 32."""
    return max(1, side // 8)


class ShiftAndFlip:
    """Shifts images by up to an eighth of the side, filled with zeros, and flips half of them.

    What becomes of an image depends on (seed, epoch, index) alone.

    Args:
        images: How many images there are.
    """

    def __init__(self, images: int, size: tuple[int, int], seed: int) -> None:
        self._images, self._size, self._seed = images, size, seed
        self._padding = (padding_of(size[0]), padding_of(size[1]))
        self._tables: dict[int, Tensor] = {}

    def __call__(self, pixels: Tensor, epochs: Tensor, indices: Tensor) -> Tensor:
        """Maps pixels [b, C, H, W] of the images `indices` [b] to as many others."""
        choices = torch.empty(len(indices), 3, dtype=torch.long)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            choices[chosen] = self._table(epoch)[indices[chosen]]
        top, left, flip = choices.to(pixels.device).unbind(1)
        (height, width), (above, beside) = self._size, self._padding
        padded = torch.nn.functional.pad(pixels, (beside, beside, above, above))
        rows = top[:, None] + torch.arange(height, device=pixels.device)
        across = torch.arange(width, device=pixels.device).expand(len(indices), -1)
        columns = left[:, None] + torch.where(flip[:, None] == 1, width - 1 - across, across)
        batch = torch.arange(len(indices), device=pixels.device)[:, None, None, None]
        channels = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
        return padded[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]

    def _table(self, epoch: int) -> Tensor:
        """[images, 3]: the crop's top and left corner, and whether to flip."""
        if epoch not in self._tables:
            while len(self._tables) > 1:
                self._tables.pop(next(iter(self._tables)))
            generator = torch.Generator().manual_seed(derived_seed(self._seed, epoch, 1))
            limits = (2 * self._padding[0] + 1, 2 * self._padding[1] + 1, 2)
            drawn = [torch.randint(limit, (self._images,), generator=generator) for limit in limits]
            self._tables[epoch] = torch.stack(drawn, dim=1)
        return self._tables[epoch]
