"""A few images, drawn at random."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dcvit.data.protocols import ImageSource
from dcvit.data.randomness import seeded
from dcvit.data.reading import CorruptImages, check_channels, decode, prepared
from dcvit.data.transforms import Transform, evaluation_transform, normalised, training_transform
from dcvit.errors import InputError
from dcvit.files import base_name
from dcvit.preprocessing import Preprocessing

MAX_DECODED_BYTES = 512 << 20
"""Images that decoded take more are decoded whenever they are needed."""

_AHEAD = 2
"""Images that are decoded while one is augmented."""


@dataclass(frozen=True)
class FewShot:
    """A few images drawn at random from a source, without their labels.

    An image that cannot be read any more or cannot be augmented is named, and replaced by the next one.

    Attributes:
        source: Where they come from.
        indices: Which of its images they are.
        channels: 3, or 1 for grey.
        fingerprint: Name of the source, number of images, and sha256 over their pixels: equal for equal images.
        decoded: The images at their own sizes, where all fit into memory.
    """

    source: ImageSource
    indices: tuple[int, ...]
    channels: int
    fingerprint: dict[str, Any]
    decoded: tuple[Image.Image, ...] | None = field(default=None, repr=False)
    _corrupt: CorruptImages = field(default_factory=CorruptImages, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.indices)

    def without_last(self, count: int) -> "FewShot":
        """The same images but the last so many; its fingerprint is that of all."""
        stay = len(self) - count
        decoded = None if self.decoded is None else self.decoded[:stay]
        return replace(self, indices=self.indices[:stay], decoded=decoded)

    def tensor(self, preprocessing: Preprocessing) -> Tensor:
        """All images, prepared as for evaluation: [n, C, H, W]."""
        return self._prepared(evaluation_transform(preprocessing))

    def augmented(self, preprocessing: Preprocessing, seed: int) -> Tensor:
        """One augmented view of every image, [n, C, H, W]; the same for the same seed."""
        return normalised(self.augmented_pixels(preprocessing, seed), preprocessing)

    def augmented_pixels(self, preprocessing: Preprocessing, seed: int) -> Tensor:
        """The same before they are normalised: uint8 from 0 to 255."""
        transform = training_transform(preprocessing)
        with seeded(seed):
            return self._prepared(transform)

    def _prepared(self, transform: Transform) -> Tensor:
        """The transform of each image in turn, [n, …]: for the random choices no order but this one will do."""
        found: Tensor | None = None
        lacking: list[int] = []
        for place, image in enumerate(self._images()):
            try:
                one = prepared(transform, image.result())
            except OSError as error:
                self._corrupt.add_once(self.source.filename(self.indices[place]), error)
                lacking.append(place)
                continue
            if found is None:
                found = one.new_empty((len(self), *one.shape))
            found[place] = one
        if found is None:
            raise InputError(f"--data: none of the {len(self)} images of {self.source.name} can be prepared")
        for place in reversed(lacking):
            after = (place + 1) % len(self)
            while after in lacking:
                after = (after + 1) % len(self)
            found[place] = found[after]
        return found

    def _images(self) -> Iterator["Future[Image.Image]"]:
        with ThreadPoolExecutor(_AHEAD) as pool:
            under_way: deque[Future[Image.Image]] = deque()
            for place in range(len(self)):
                under_way.append(self._image(place, pool))
                if len(under_way) > _AHEAD:
                    yield under_way.popleft()
            yield from under_way

    def _image(self, place: int, pool: ThreadPoolExecutor) -> "Future[Image.Image]":
        future: Future[Image.Image] = Future()
        if self.decoded is not None:
            future.set_result(self.decoded[place])
            return future
        try:
            return pool.submit(decode, self.source.read(self.indices[place])[0], self.channels)
        except OSError as error:
            future.set_exception(error)
            return future


def draw_few_shot(source: ImageSource, samples: int, seed: int, channels: int = 3, *, at_most: bool = False) -> FewShot:
    """Draws images at random; a corrupt one is skipped, named and replaced by another.

    Raises:
        InputError: If the source has fewer images (that can be decoded) than asked for; with `at_most`, if it has none;
            if images cannot have as many channels.
    """
    check_channels(channels)
    if samples > len(source) and not at_most:
        raise InputError(f"--samples {samples}: {source.name} has {len(source)} images; ask for at most as many")
    corrupt = CorruptImages()
    chosen: list[int] = []
    decoded: list[Image.Image] = []
    size = 0
    digest = hashlib.sha256()
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        if len(chosen) == samples:
            break
        try:
            image = decode(source.read(index)[0], channels)
        except OSError as error:
            corrupt.add(source.filename(index), error)
            continue
        digest.update(repr(image.size).encode() + image.tobytes())
        chosen.append(index)
        size += image.width * image.height * (1 if channels == 1 else 4)  # Pillow keeps four bytes of RGB
        if size <= MAX_DECODED_BYTES:
            decoded.append(image)
        else:
            decoded.clear()
    if at_most and not chosen:
        raise InputError(f"--data: none of the {len(source)} images of {source.name} can be decoded")
    if len(chosen) < samples and not at_most:
        raise InputError(
            f"--samples {samples}: only {len(chosen)} images of {source.name} can be decoded "
            f"({len(corrupt.names)} are corrupt)"
        )
    fingerprint = {
        "source": base_name(source.name),
        "images": len(chosen),
        "corrupt": len(corrupt.names),
        "sha256": digest.hexdigest(),
    }
    return FewShot(source, tuple(chosen), channels, fingerprint, tuple(decoded) if decoded else None)
