"""The picture files of a folder or a tar, in the order in which models trained with timm number them."""

import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from dcvit.data.formats import is_picture
from dcvit.errors import InputError, first_line
from dcvit.files import printable

HIDDEN, BROKEN_LINK = "hidden", "a link to nothing"


class Listing(Protocol):
    """Picture files, sorted.

    Attributes:
        names: As the folder or tar has them, for messages and for the order.
        places: Paths from the folder or tar, without what does not say where a file stands (`./`).
        left_out: How many files are not among them, by extension.
    """

    names: list[str]
    places: list[str]
    left_out: Counter[str]

    def read(self, index: int) -> bytes:
        """The bytes of a file. Raises OSError if it cannot be read."""


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names with numbers in them by the numbers' values, without regard to case, as timm does; else as text."""
    parts: list[str | int] = list(re.split(r"(\d+)", name.lower()))
    parts[1::2] = [int(part) for part in parts[1::2]]
    return parts, name


def listed(root: Path) -> Listing:
    """Lists a folder, or a tar if the path is a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return FolderListing(root) if root.is_dir() else TarListing(root)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"--data: {printable(str(root))} cannot be read: {printable(first_line(error))}") from error


class FolderListing:
    """The picture files of a folder and all below it; links are followed."""

    def __init__(self, root: Path) -> None:
        """Walks the folder."""
        self._root, self.left_out = str(root), Counter[str]()
        self.names = sorted(self._found("", ()), key=natural_key)
        self.places = self.names if os.sep == "/" else [name.replace(os.sep, "/") for name in self.names]

    def read(self, index: int) -> bytes:
        with open(os.path.join(self._root, self.names[index]), "rb") as file:
            return file.read()

    def _found(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        path = os.path.join(self._root, folder)
        status = os.stat(path)
        here = status.st_dev, status.st_ino
        if here in above:  # a link to a folder that this one lies in
            return
        with os.scandir(path) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                below = self._found(name, (*above, here)) if is_folder else iter(())
                if entry.name.startswith("."):
                    self.left_out[HIDDEN] += sum(1 for _ in below) if is_folder else is_picture(name)
                elif is_folder:
                    yield from below
                elif not is_picture(name):
                    self.left_out[_extension(name)] += 1
                elif not entry.is_file():
                    self.left_out[BROKEN_LINK] += 1
                else:
                    yield name


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        name: As the tar has it.
        place: Its path without `./`; of a file in a tar within the tar, from the inner one.
        offset: Of its first byte, from the start of the (outer) tar.
        size: Bytes.
        target: Of a link, the place that it names.
    """

    name: str
    place: str
    offset: int
    size: int
    target: str | None


def members(tar: Path) -> Iterator[Member]:
    """The files and links of a tar and of tars within it, one after the other.

    A tar in a tar that holds no folders is a class of its own, called like it.

    Raises:
        OSError, tarfile.TarError: If it cannot be read.
    """
    with tarfile.open(tar, "r:") as archive:
        yield from _members(archive, 0, "")


def _members(archive: tarfile.TarFile, start: int, label: str) -> Iterator[Member]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # a tar of a million files has little room for them
        path = posixpath.normpath(member.name).lstrip("/")
        if member.isreg() and path.endswith(".tar"):
            inner = archive.extractfile(member)
            assert inner is not None
            label_of_inner = posixpath.basename(path).removesuffix(".tar")
            with tarfile.open(fileobj=inner, mode="r:") as inside:
                yield from _members(inside, start + member.offset_data, label_of_inner)
        elif member.isreg() or member.islnk() or member.issym():
            target = None
            if not member.isreg():
                folder = posixpath.dirname(path) if member.issym() else ""
                target = _placed(posixpath.normpath(posixpath.join(folder, member.linkname)).lstrip("/"), label)
            yield Member(member.name, _placed(path, label), start + member.offset_data, member.size, target)


def _placed(path: str, label: str) -> str:
    return path if "/" in path or not label else f"{label}/{path}"


class TarListing:
    """The picture files of a tar; links in it are followed, and of files of one name the last counts."""

    def __init__(self, tar: Path) -> None:
        """Reads the tar from end to end, but for the files' bytes."""
        self._tar, self.left_out = str(tar), Counter[str]()
        by_place: dict[str, Member] = {}
        for member in members(tar):
            if any(part.startswith(".") and part != ".." for part in member.place.split("/")):
                self.left_out[HIDDEN] += is_picture(member.place)
            elif is_picture(member.place):
                by_place[member.place] = member
            else:
                self.left_out[_extension(member.place)] += 1
        found = []
        for place, member in by_place.items():
            file: Member | None = member
            for _ in range(len(by_place)):
                if file is None or file.target is None:
                    break
                file = by_place.get(file.target)
            if file is None or file.target is not None:
                self.left_out[BROKEN_LINK] += 1
            else:
                found.append((natural_key(member.name), place, file.offset, file.size))
        found.sort()
        self.names = [key[1] for key, *_ in found]
        self.places = [place for _, place, _, _ in found]
        self._parts = [(offset, size) for *_, offset, size in found]

    def read(self, index: int) -> bytes:
        offset, size = self._parts[index]
        # Opened for each file: threads and forked processes would share one file's position.
        with open(self._tar, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise OSError(f"{self._tar} ends within it")
        return data


def described(left_out: Counter[str]) -> str:
    """What was left out, such as `250 .heic, 2 .txt`."""
    return ", ".join(f"{count} {printable(kind)}" for kind, count in left_out.most_common() if count)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without extension"
