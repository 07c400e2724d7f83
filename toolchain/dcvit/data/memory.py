"""Images and labels that are in memory already, or that something gives one by one, as a source."""

import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcvit.data.listing import natural_key, printable
from dcvit.data.pixels import as_picture, layout_of
from dcvit.errors import InputError
from dcvit.progress import track

WORKS = (
    "a folder of class folders or a tar of one, 'digits', a torch Dataset or DataLoader, a Hugging Face dataset, "
    "an array or tensor of images, a list of PIL images, arrays, tensors or paths, or (images, labels)"
)
"""All that images may be given as."""

_SAMPLED = 256
"""Images that tell one set from another, at most."""


class MemorySource:
    """Images and labels by their number; an image is a PIL image, an array, a tensor, or the path of a file.

    Attributes:
        name: What kind of object it is, for messages and the manifest.
        named: Whether classes have names, rather than numbers alone.
    """

    def __init__(
        self,
        name: str,
        length: int,
        image: Callable[[int], Any],
        label: Callable[[int], Any] | None,
        names: Sequence[str] | None = None,
        *,
        files: Sequence[str | Path] | None = None,
    ) -> None:
        """Looks at the first image.

        Args:
            name: For messages.
            length: How many there are.
            image: Gives one.
            label: Gives its class, by number or name; None where images have none.
            names: Of the classes; None where they have numbers alone.
            files: Where images are files, their paths.

        Raises:
            InputError: If there are no images, or the first cannot be one of a model's images.
        """
        self.name, self._length, self._image, self._label = name, length, image, label
        self._names, self._files = None if names is None else [str(each) for each in names], files
        if not length:
            raise InputError(f"--data: {name} is empty; give {WORKS}")
        with suppress(OSError):  # a file that cannot be read is skipped like any other
            self._encoded(0)

    def __len__(self) -> int:
        return self._length

    @property
    def named(self) -> bool:
        """Whether classes have names."""
        return self._names is not None or bool(self._words)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, or their numbers; one without a name where images have no labels.

        Raises:
            InputError: If a label is neither a number from 0 on nor a name.
        """
        if self._label is None:
            return [""]
        if self._names is not None:
            return self._names
        return self._words or [str(number) for number in range(max(2, 1 + max(map(int, self._labels))))]

    @cached_property
    def _labels(self) -> list[int | str]:
        """Every label, read once."""
        found = [self._checked_label(index) for index in track(range(self._length), "reading labels")]
        if other := next((label for label in found if type(label) is not type(found[0])), None):
            raise InputError(f"--data: labels of {self.name} are numbers and names ({found[0]!r}, {other!r}); give one")
        return found

    @cached_property
    def _words(self) -> list[str]:
        """Labels that are names, in the order of folders called so; none where labels are numbers."""
        if self._label is None or self._names is not None or isinstance(self._checked_label(0), int):
            return []
        return sorted({str(label) for label in self._labels}, key=natural_key)

    def read(self, index: int) -> tuple[bytes, int]:
        """The image as a file of its pixels, and its label; 0 where there is none.

        Raises:
            OSError: If a file cannot be read.
            InputError: If it is no image, or its label no class.
        """
        if self._label is None:
            return self._encoded(index), 0
        label = self._checked_label(index)
        return self._encoded(index), self.classes.index(label) if isinstance(label, str) else label

    def filename(self, index: int) -> str:
        return f"image {index} of {self.name}" if self._files is None else printable(str(self._files[index]))

    def content(self, indices: Sequence[int]) -> str:
        """A digest of some of the images and their labels, evenly spread: these have no names to be told apart by."""
        digest = hashlib.sha256()
        for place in np.unique(np.linspace(0, len(indices) - 1, min(len(indices), _SAMPLED)).astype(int)):
            data, label = self.read(int(indices[place]))
            digest.update(data + repr(label).encode())
        return digest.hexdigest()

    def _checked_label(self, index: int) -> int | str:
        assert self._label is not None
        label = self._label(index)
        if isinstance(label, str):
            if self._names is None or label in self._names:
                return label
        elif np.ndim(label) == 0 and not isinstance(label, (bool, float)):
            number = label.item() if hasattr(label, "item") else label
            if isinstance(number, int) and number >= 0 and (self._names is None or number < len(self._names)):
                return number
        what = f"of shape {tuple(np.shape(label))}" if np.ndim(label) else repr(label)
        known = "" if self._names is None else f", of which there are {len(self._names)}"
        raise InputError(
            f"--data: the label of image {index} of {self.name} is {what}; a label is the number of a class, from 0 on"
            f"{known}, or its name (masks are read from folders)"
        )

    def _encoded(self, index: int) -> bytes:
        image = self._image(index)
        if isinstance(image, (str, Path)):
            return Path(image).read_bytes()
        where = f"image {index} of {self.name}"
        if not isinstance(image, Image.Image):
            if not isinstance(image, (np.ndarray, torch.Tensor)):
                raise InputError(f"--data: {where} is of the type {type(image).__name__}; give {WORKS}")
            image = as_picture(image, layout_of(image, where), where)
        return encoded(image)


def encoded(picture: Image.Image) -> bytes:
    """A picture as a file that loses nothing: of plain pixels, which takes no time, where it has no more than these."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format="PPM" if picture.mode in ("L", "RGB") else "PNG")
    except (OSError, KeyError, ValueError):  # modes of few users, such as CMYK
        buffer = io.BytesIO()
        picture.save(buffer, format="TIFF")
    return buffer.getvalue()
