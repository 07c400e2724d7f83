"""Where images come from: a folder, tars, or what is bundled."""

import io
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from timm.data.readers import create_reader

from dcvit.data.pairs import PairSource
from dcvit.data.protocols import ImageSource
from dcvit.data.shapes import SHAPES, ShapesSource
from dcvit.errors import InputError, first_line
from dcvit.files import base_name

DIGITS = "digits"


class FileSource:
    """Images in a folder (of class folders, or flat) or in a tar of class folders."""

    def __init__(self, root: str | Path) -> None:
        """Lists the images.

        Raises:
            InputError: If there is nothing at the path, it is not a folder or a tar, or it holds no images.
        """
        self.name = str(root)
        path = Path(root)
        if not path.exists():
            raise InputError(f"--data: there is nothing at {root}; give a folder of images, a tar of one, or 'digits'")
        if path.is_file() and path.suffix != ".tar":
            raise InputError(f"--data: {root} is neither a folder nor a .tar file")
        try:
            self._reader = create_reader("", root=str(root))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(f"--data: there are no images in {root} (JPEG, PNG, …): {first_line(error)}") from error
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"--data: {root} cannot be read: {first_line(error)}") from error
        labels: dict[str, int] = getattr(self._reader, "class_to_idx", None) or self._reader.class_name_to_idx
        self.classes = sorted(labels, key=labels.__getitem__)

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, index: int) -> tuple[bytes, int]:
        file, label = self._reader[index]
        with file:
            return file.read(), int(label)

    def filename(self, index: int) -> str:
        return self._reader.filename(index)

    def reopen(self) -> None:
        """Opens a tar anew before it is read again: a forked process must not share its parent's file position."""
        state = getattr(self._reader, "tar_state", None)
        for opened in state.values() if isinstance(state, dict) else filter(None, [state]):
            opened.reset()


class JoinedSource:
    """Several sources of the same classes, one after the other: the shards of one set.

    Raises:
        InputError: If their classes differ.
    """

    def __init__(self, name: str, parts: Sequence[ImageSource]) -> None:
        self.name, self._parts = name, parts
        self.classes = parts[0].classes
        for part in parts:
            if part.classes != self.classes:
                raise InputError(f"--data: {part.name} has other classes than {parts[0].name}; give shards of one set")
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> tuple[bytes, int]:
        part, local = self._locate(index)
        return part.read(local)

    def filename(self, index: int) -> str:
        part, local = self._locate(index)
        return f"{base_name(part.name)}: {part.filename(local)}"

    def reopen(self) -> None:
        """The same for all parts."""
        for part in self._parts:
            if isinstance(part, FileSource | JoinedSource):
                part.reopen()

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


class DigitsSource:
    """scikit-learn's handwritten digits: 8×8 grey images, 1297 to train and 500 to test, split once and for all."""

    name = DIGITS
    classes = [str(digit) for digit in range(10)]  # noqa: RUF012 (the protocol's field, never changed)

    def __init__(self, split: Literal["train", "test"]) -> None:
        """Loads one of the two splits."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.images))
        chosen = order[:1297] if split == "train" else order[1297:]
        self._images = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        Image.fromarray(self._images[index]).save(buffer, format="PNG")
        return buffer.getvalue(), int(self._labels[index])

    def filename(self, index: int) -> str:
        return f"digit {index}"


def open_source(data: str | Path | ImageSource, split: Literal["train", "test"]) -> ImageSource:
    """Opens what `--data` names; the split matters only for what is bundled: `digits`, and `shapes` with their masks.

    A folder or tar of `images/` and `masks/` is a source with masks. A pattern such as `shards/train-*.tar` names
    several folders or tars of one set.

    Raises:
        InputError: If no images can be found there.
    """
    if not isinstance(data, (str, Path)):
        return data
    name = str(data)
    if name == DIGITS:
        return DigitsSource(split)
    if name == SHAPES:
        return ShapesSource(split)
    if PairSource.is_one(name):
        return PairSource(name)
    if any(sign in name for sign in "*?[") and not Path(name).exists() and (paths := sorted(glob(name))):
        return JoinedSource(name, [FileSource(path) for path in paths])
    return FileSource(data)
