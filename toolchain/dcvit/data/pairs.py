"""Images with a mask each: a folder or a tar of `images/` and `masks/`."""

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from dcvit.errors import InputError, first_line

IMAGES, MASKS = "images", "masks"


class PairSource:
    """A folder or a tar with `images/` and `masks/`: to each image the PNG mask of its name.

    A mask is a grey or palette picture of the image's size that holds class indices.
    """

    classes = [""]  # noqa: RUF012 (the protocol's field: an image as a whole has no class)

    def __init__(self, root: str | Path) -> None:
        """Lists the images and finds their masks.

        Raises:
            InputError: If there are no images, or one has no mask.
        """
        self.name = str(root)
        self._files = _listing(Path(root))
        images = {_stem(file): file for file in self._files if _under(file, IMAGES)}
        masks = {_stem(file): file for file in self._files if _under(file, MASKS) and file.suffix.lower() == ".png"}
        if not images:
            raise InputError(f"--data: there are no images in {root}/{IMAGES} (JPEG, PNG, …)")
        if missing := sorted(set(images) - set(masks)):
            raise InputError(f"--data: {images[missing[0]]} of {root} has no mask {MASKS}/{missing[0]}.png")
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
        for file, _ in _members(path):
            seen.add(_top(file))
            if not seen <= {IMAGES, MASKS} or len(seen) == 2:
                break
        return seen == {IMAGES, MASKS}

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image; the label says nothing."""
        return self._files[self._pairs[index][0]](), 0

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel, [H, W]."""
        file = self._pairs[index][1]
        try:
            picture = Image.open(io.BytesIO(self._files[file]()))
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"--data: the mask {file} of {self.name} cannot be read: {first_line(error)}") from error
        if picture.mode not in ("1", "L", "P"):
            raise InputError(
                f"--data: the mask {file} of {self.name} is a {picture.mode} picture; "
                "a mask is grey or has a palette, and holds one class index a pixel"
            )
        return np.asarray(picture).astype(np.uint8)

    def filename(self, index: int) -> str:
        return str(self._pairs[index][0])


def _listing(root: Path) -> dict[PurePosixPath, Callable[[], bytes]]:
    """Every picture of a folder or a tar by its path from the one that holds `images/`, and how to read it."""
    if root.is_dir():
        files = [file for file in sorted(root.rglob("*")) if _is_picture(PurePosixPath(file.name))]
        return {PurePosixPath(file.relative_to(root).as_posix()): file.read_bytes for file in files}
    return {file: partial(_part_of, root, member.offset_data, member.size) for file, member in _members(root)}


def _members(tar: Path) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """The pictures of a tar, by their paths without the folders above `images` or `masks`."""
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isfile() and _is_picture(path):
                    above = next((number for number, part in enumerate(path.parts) if part in (IMAGES, MASKS)), 0)
                    yield PurePosixPath(*path.parts[above:]), member
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"--data: {tar} cannot be read: {first_line(error)}") from error


def _part_of(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)


def _is_picture(file: PurePosixPath) -> bool:
    return file.suffix.lower() in get_img_extensions(as_set=True)


def _top(file: PurePosixPath) -> str:
    return file.parts[0]


def _under(file: PurePosixPath, folder: str) -> bool:
    return _top(file) == folder and len(file.parts) > 1


def _stem(file: PurePosixPath) -> str:
    return str(PurePosixPath(*file.parts[1:]).with_suffix(""))
