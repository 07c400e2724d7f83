"""A few images, drawn at random."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcvit.data.protocols import ImageSource
from dcvit.data.randomness import seeded
from dcvit.data.reading import CorruptImages, decode
from dcvit.data.transforms import evaluation_transform, training_transform
from dcvit.errors import InputError
from dcvit.files import base_name
from dcvit.preprocessing import Preprocessing


@dataclass(frozen=True)
class FewShot:
    """A few images drawn at random from a source, without their labels.

    Attributes:
        images: Decoded, at their own sizes.
        fingerprint: Name of the source, number of images, and sha256 over their pixels: equal for equal images.
    """

    images: list[Image.Image]
    fingerprint: dict[str, Any]

    def tensor(self, preprocessing: Preprocessing) -> Tensor:
        """All images, prepared as for evaluation: [n, C, H, W]."""
        transform = evaluation_transform(preprocessing)
        return torch.stack([transform(image) for image in self.images])

    def augmented(self, preprocessing: Preprocessing, seed: int) -> Tensor:
        """One augmented view of every image, [n, C, H, W]; the same for the same seed."""
        transform = training_transform(preprocessing)
        with seeded(seed):
            return torch.stack([transform(image) for image in self.images])


def draw_few_shot(source: ImageSource, samples: int, seed: int, channels: int = 3, *, at_most: bool = False) -> FewShot:
    """Draws images at random; a corrupt one is skipped, named and replaced by another.

    Raises:
        InputError: If the source has fewer images (that can be decoded) than asked for; with `at_most`, if it has none.
    """
    if samples > len(source) and not at_most:
        raise InputError(f"--samples {samples}: {source.name} has {len(source)} images; ask for at most as many")
    corrupt = CorruptImages()
    images: list[Image.Image] = []
    digest = hashlib.sha256()
    for index in np.random.default_rng(seed).permutation(len(source)):
        if len(images) == samples:
            break
        try:
            image = decode(source.read(int(index))[0], channels)
        except OSError as error:
            corrupt.add(source.filename(int(index)), error)
            continue
        digest.update(repr(image.size).encode() + image.tobytes())
        images.append(image)
    if at_most and not images:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")
    if len(images) < samples and not at_most:
        raise InputError(
            f"--samples {samples}: only {len(images)} images of {source.name} can be decoded "
            f"({len(corrupt.names)} are corrupt)"
        )
    fingerprint = {
        "source": base_name(source.name),
        "images": len(images),
        "corrupt": len(corrupt.names),
        "sha256": digest.hexdigest(),
    }
    return FewShot(images, fingerprint)
