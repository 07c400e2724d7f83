"""Images with a mask each: a folder or a tar of `images/` and `masks/`."""

import io
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcvit.data.formats import is_picture
from dcvit.data.listing import described, listed, members
from dcvit.errors import InputError, first_line
from dcvit.files import printable

IMAGES, MASKS = "images", "masks"

IGNORE = 255
"""The class index of pixels that do not count."""


class PairSource:
    """A folder or a tar with `images/` and `masks/`: to each image the PNG mask of its name.

    A mask is a grey or palette picture of the image's size that holds class indices, or values that stand for them.

    Attributes:
        explicit: Whether the caller said what the values of masks mean.
        num_classes: As many as `mask_values`; None without these.
        left_out: How many files are not used, by what they are.
    """

    classes = [""]  # noqa: RUF012 (the protocol's field: an image as a whole has no class)

    def __init__(
        self, root: str | Path, *, mask_values: tuple[int, ...] | None = None, ignore_index: int | None = None
    ) -> None:
        """Lists the images and finds their masks.

        Args:
            root: The folder or tar.
            mask_values: What stands for class 0, 1, … in a mask; by default the indices themselves.
            ignore_index: What stands for pixels that do not count; by default 255, if that is no class.

        Raises:
            InputError: If there are no images, one has no mask or two have the same, or the values cannot be.
        """
        self.name = printable(str(root))
        self.explicit = mask_values is not None or ignore_index is not None
        self.num_classes = None if mask_values is None else len(mask_values)
        self._classes = _classes_of_values(mask_values, ignore_index)
        self._listing = listed(Path(root))
        self._paths = [
            PurePosixPath(place) if Path(root).is_dir() else _below_wrapper(place) for place in self._listing.places
        ]
        self.left_out = Counter(self._listing.left_out)
        images: dict[str, int] = {}
        masks: dict[str, int] = {}
        for index, name in enumerate(self._paths):
            if len(name.parts) == 1:  # it lies beside the two folders
                self.left_out[f"not in {IMAGES}/"] += 1
                continue
            stem, under = str(PurePosixPath(*name.parts[1:]).with_suffix("")), name.parts[0]
            if under == IMAGES:
                if stem in images:
                    raise InputError(
                        f"--data: {self.filename_of(images[stem])} and {self.filename_of(index)} of {self.name} "
                        "would have one mask; give them different names"
                    )
                images[stem] = index
            elif under == MASKS and name.suffix.lower() == ".png":
                masks[stem] = index
            else:
                self.left_out[f"not in {IMAGES}/" if under != MASKS else "masks that are no PNG"] += 1
        if not images:
            raise InputError(f"--data: there are no images in {self.name}/{IMAGES} (JPEG, PNG, …){self._besides()}")
        if missing := sorted(set(images) - set(masks)):
            image = self.filename_of(images[missing[0]])
            raise InputError(f"--data: {image} of {self.name} has no mask {MASKS}/{printable(missing[0])}.png")
        self.left_out["masks without an image"] += len(set(masks) - set(images))
        self._pairs = [(images[stem], masks[stem]) for stem in sorted(images)]

    @staticmethod
    def is_one(root: str | Path) -> bool:
        """Whether there are images and masks at the path, by the names of the two folders."""
        path = Path(root)
        if path.is_dir():
            return (path / IMAGES).is_dir() and (path / MASKS).is_dir()
        if path.suffix != ".tar" or not path.is_file():
            return False
        seen = set()
        try:
            for member in members(path):
                if is_picture(member.place):
                    seen.add(_below_wrapper(member.place).parts[0])
                if not seen <= {IMAGES, MASKS} or len(seen) == 2:
                    break
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"--data: {printable(str(root))} cannot be read: {first_line(error)}") from error
        return seen == {IMAGES, MASKS}

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image; the label says nothing."""
        return self._listing.read(self._pairs[index][0]), 0

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel, [H, W]."""
        number = self._pairs[index][1]
        where = f"the mask {self.filename_of(number)} of {self.name}"
        try:
            picture = Image.open(io.BytesIO(self._listing.read(number)), formats=("PNG",))
            picture.load()
        except Exception as error:  # Pillow's decoders raise whatever they like
            raise InputError(f"--data: {where} cannot be read: {first_line(error)}") from error
        if picture.mode not in ("1", "L", "P"):
            raise InputError(
                f"--data: {where} is a {picture.mode} picture; "
                "a mask is grey or has a palette, and holds one class index a pixel"
            )
        values = np.asarray(picture).astype(np.uint8)
        classes = self._classes[values]
        if (classes < 0).any():
            raise InputError(
                f"--data: {where} holds the value {int(values[classes < 0].min())}, "
                "which is none of --mask-values, nor --ignore-index"
            )
        return classes.astype(np.uint8)

    def filename(self, index: int) -> str:
        return self.filename_of(self._pairs[index][0])

    def filename_of(self, number: int) -> str:
        """A file's path from the folder that holds `images/`, for messages."""
        return printable(str(self._paths[number]))

    def _besides(self) -> str:
        found = described(self.left_out)
        return f"; found {found}" if found else ""


def _classes_of_values(values: tuple[int, ...] | None, ignored: int | None) -> NDArray[np.int16]:
    """The class of each value that a mask may hold, [256]; −1 where it has none."""
    for name, given in (("--mask-values", values or ()), ("--ignore-index", () if ignored is None else (ignored,))):
        if any(not 0 <= value <= 255 for value in given):
            raise InputError(f"{name} {','.join(map(str, given))}: a mask holds values from 0 to 255")
    if values is None:
        table = np.arange(256, dtype=np.int16)
    else:
        if len(set(values)) < len(values) or not 2 <= len(values) <= IGNORE:
            raise InputError(f"--mask-values {','.join(map(str, values))}: give 2 to {IGNORE} different values")
        if ignored in values:
            raise InputError(f"--ignore-index {ignored} is one of --mask-values; a pixel counts or does not")
        table = np.full(256, -1, dtype=np.int16)
        if ignored is None and IGNORE not in values:
            table[IGNORE] = IGNORE
        table[list(values)] = np.arange(len(values))
    if ignored is not None:
        table[ignored] = IGNORE
    return table


def _below_wrapper(place: str) -> PurePosixPath:
    """The path from the folder that holds `images` or `masks`."""
    parts = place.split("/")
    above = next((number for number, part in enumerate(parts) if part in (IMAGES, MASKS)), 0)
    return PurePosixPath(*parts[above:])
