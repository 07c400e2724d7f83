"""What a source of images has to offer."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class ImageSource(Protocol):
    """Where images come from. Reading one may raise OSError, if the image is corrupt."""

    @property
    def name(self) -> str:
        """What the user calls it: a path, or the name of what is bundled."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their labels."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""

    def filename(self, index: int) -> str:
        """A name for messages."""


def is_source(data: object) -> bool:
    """Whether something is a source of images already."""
    return all(hasattr(data, name) for name in ("name", "classes", "read", "filename", "__len__"))


@runtime_checkable
class MaskSource(ImageSource, Protocol):
    """Images that have a mask each; as wholes they have neither class nor label."""

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel, [H, W]; 255 does not count.

        Raises:
            InputError: If the mask cannot be read, or holds no class indices.
        """
