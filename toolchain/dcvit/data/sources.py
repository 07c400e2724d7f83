"""Where images come from: a folder, tars, or what is bundled."""

import logging
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cache
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from dcvit.data.classes import MappedSource, some
from dcvit.data.digits import DIGITS, DigitsSource
from dcvit.data.listing import described, listed, natural_key
from dcvit.data.objects import source_in_memory
from dcvit.data.pairs import PairSource
from dcvit.data.protocols import ImageSource, is_source
from dcvit.data.shapes import SETS, ShapesSource
from dcvit.errors import InputError
from dcvit.files import base_name, printable

Images = Any
"""What images may be given as: a path or a name, a source, or what `memory.WORKS` lists. Checked when it is opened."""

BUNDLED = (DIGITS, *SETS)
"""Sets that `--data` names: digits with labels, and shapes with masks."""

log = logging.getLogger(__name__)

_SPLIT = re.compile(r"(train(ing)?|val(id|idation)?|test(ing)?|dev|eval)[-_ ]?\d*")
"""What parts of a set are called: no classes, but a folder of class folders each."""


class FileSource:
    """Images in a folder (of class folders, or flat) or in a tar of class folders.

    A class is a folder below the root, whatever folders it holds. Where all images lie in one folder that holds
    folders, as `tar -cf set.tar set/` makes it, that folder is the root.

    Attributes:
        classes: Their names, in timm's order: numbers in them count by value, and case does not.
        left_out: How many files are not used, by extension.
    """

    def __init__(self, root: str | Path) -> None:
        """Lists the images.

        Raises:
            InputError: If there is nothing at the path, it is not a folder or a tar, or it holds no images, or splits
                of a set instead of classes.
        """
        self.name = printable(str(root))
        path = Path(root)
        if not path.exists():
            raise InputError(
                f"--data: there is nothing at {self.name}; give a folder of images, a tar of one, or 'digits'"
            )
        if path.is_file() and path.suffix != ".tar":
            raise InputError(f"--data: {self.name} is neither a folder nor a .tar file")
        self._listing = listed(path)
        self.left_out = self._listing.left_out
        if not self._listing.names:
            found = f"; found {described(self.left_out)}" if self.left_out.total() else ""
            raise InputError(f"--data: there are no images in {self.name} (JPEG, PNG, …){found}")
        wrapper, folders = _class_folders(self._listing.places)
        names = sorted(set(folders), key=natural_key)
        labels = {name: label for label, name in enumerate(names)}
        self._labels = array("l", (labels[folder] for folder in folders))
        self.classes = [printable(name) for name in names]
        splits = [name for name in self.classes if name]
        if len(splits) > 1 and all(_SPLIT.fullmatch(name.lower()) for name in splits):
            inside = "/".join(filter(None, (wrapper, splits[0])))
            place = f"such as {self.name}/{inside}" if path.is_dir() else f"as a tar of {inside} alone"
            raise InputError(
                f"--data: {self.name} holds splits of a set ({', '.join(splits)}), not classes; "
                f"give one of them, {place}"
            )

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._listing.read(index), self._labels[index]

    def filename(self, index: int) -> str:
        return printable(self._listing.names[index])

    @property
    def unsorted(self) -> int:
        """Images that lie beside the class folders, and are a class of their own."""
        return self._labels.count(0) if self.classes[0] == "" and len(self.classes) > 1 else 0


def _class_folders(places: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that holds the class folders, and of each file its class folder; '' where it lies beside these."""
    folders = [place.split("/")[:-1] for place in places]
    depth = 0
    while len({tuple(above[: depth + 1]) for above in folders}) == 1 and all(
        len(above) > depth + 1 for above in folders
    ):
        depth += 1
    return "/".join(folders[0][:depth]), [above[depth] if len(above) > depth else "" for above in folders]


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

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


def open_source(
    data: Images,
    split: Literal["train", "test"],
    *,
    mask_values: tuple[int, ...] | None = None,
    ignore_index: int | None = None,
    class_map: Sequence[str] | None = None,
) -> ImageSource:
    """Opens what `--data` names; the split matters only for what is bundled (`BUNDLED`).

    A folder or tar of `images/` and `masks/` is a source with masks. A pattern such as `shards/train-*.tar` names
    several folders or tars of one set. What is not used of it, or may not be meant, is warned about once.

    Args:
        data: What `--data` names, or images in memory (docs/data.md); a source is returned as it is.
        split: Of what is bundled.
        mask_values: What stands for class 0, 1, … in a mask; by default the indices themselves.
        ignore_index: What stands for pixels that do not count in a mask; by default 255, if that is no class.
        class_map: Class names in the order of their labels; by default they are numbered by name.

    Raises:
        InputError: If no images can be found there, a class is not in the map, or values of masks are given and there
            are none.
    """
    if not isinstance(data, (str, Path)):
        if mask_values is not None or ignore_index is not None:
            raise InputError("--mask-values and --ignore-index say what masks of files hold; give a folder or a tar")
        given = data if is_source(data) else source_in_memory(data)
        return given if class_map is None else MappedSource(given, class_map)
    name = str(data)
    if name not in BUNDLED and PairSource.is_one(name):
        if class_map is not None:
            raise InputError(f"--class-map names classes of whole images, and {printable(name)} has masks")
        pairs = PairSource(name, mask_values=mask_values, ignore_index=ignore_index)
        _warn_of_left_out(pairs.name, pairs.left_out)
        return pairs
    if mask_values is not None or ignore_index is not None:
        raise InputError(
            f"--mask-values and --ignore-index say what masks of files hold, and {printable(name)} has none"
        )
    if name in BUNDLED:
        if Path(name).exists():
            _warn_once(f"--data {name} is the bundled set; ./{name} names the folder")
        if name in SETS:
            return ShapesSource(split, name)
        return DigitsSource(split) if class_map is None else MappedSource(DigitsSource(split), class_map)
    paths = [name]
    if any(sign in name for sign in "*?[") and not Path(name).exists():
        paths = sorted(glob(name)) or paths
    if len(paths) > 1 and (pairs_at := next(filter(PairSource.is_one, paths), None)):
        raise InputError(f"--data: {printable(pairs_at)} has masks; give one folder or tar of {name}, not several")
    parts = [FileSource(path) for path in paths]
    named: list[ImageSource] = [part if class_map is None else MappedSource(part, class_map) for part in parts]
    source = named[0] if paths == [name] else JoinedSource(printable(name), named)
    _warn_of_left_out(source.name, sum((part.left_out for part in parts), Counter[str]()))
    if beside := sum(part.unsorted for part in parts):
        _warn_once(
            f"{beside} images of {source.name} lie beside its class folders and are taken for a class of their own"
        )
    if class_map is None:
        _warn_of_order(source)
    return source


def _warn_of_left_out(name: str, left_out: Counter[str]) -> None:
    if left_out.total():
        _warn_once(f"left out {left_out.total()} files of {name}: {described(left_out)}")


def _warn_of_order(source: ImageSource) -> None:
    for label, (natural, text) in enumerate(zip(source.classes, sorted(source.classes), strict=True)):
        if natural != text:
            _warn_once(
                f"classes of {source.name} are numbered as timm does, by the values of numbers and without regard to "
                f"case: {some(source.classes)}; a model trained with torchvision's ImageFolder has them as text: "
                f"{some(sorted(source.classes))} (label {label} is the first that differs): then give --class-map FILE "
                "with the names in that order, one a line"
            )
            return


@cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
