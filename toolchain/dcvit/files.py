"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dcvit.errors import InputError, WriteError
from dcvit.exchange import exchange
from dcvit.locks import LOCK, exclusive, is_gone, is_of_this_machine, this_process

_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.(?P<kind>partial|old)")

_REFUSED = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place, or get the permission",
    errno.EPERM: "choose another place, or get the permission",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose another place: a file stands where a folder is needed",
    errno.EISDIR: "choose another place: a folder stands where a file is needed",
    errno.ELOOP: "choose another place: its links lead in a circle",
    errno.EIO: "see to the disk",
}
"""What a machine answers that is no fault of the program, and what to do about it."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""What Python has in a name for a byte that is not UTF-8, and what JSON may say in place of a letter."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust, such as safetensors, tell theirs


def base_name(path: str | Path) -> str:
    """The last part of a path: where something lies on the machine that made a file is nobody's business."""
    name = Path(path).name
    return printable(name if name not in ("", "..") else Path(path).resolve().name)


MAX_NAME_BYTES = 255


def plain_name(name: Any) -> str:
    """A name that a file gives for another one beside it, as it is.

    Raises:
        InputError: If it could lead out of the folder, hides, or is longer than file systems take.
    """
    if not isinstance(name, str) or not name or name.startswith("."):
        leads_out = True
    else:
        leads_out = any(letter in "/\\:" or ord(letter) < ord(" ") for letter in name)
    if not leads_out and len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise InputError(f"{name[:20]!r}… is too long a name of a file ({len(name)} letters)")
    if leads_out:
        raise InputError(f"{name!r} is no name of a file in the folder itself")
    return name


def printable(text: str) -> str:
    """The text with an escape for each byte that is not UTF-8: so it can be printed, hashed and kept in JSON."""
    return _SURROGATE.sub(_escape, text)


def require_utf8(path: str | Path) -> None:
    """Checks a path that libraries are to be given: safetensors and the runtimes know no other names.

    Raises:
        InputError: If a part of it is not UTF-8.
    """
    if _SURROGATE.search(str(path)):
        raise InputError(
            f"{printable(str(path))} is no name in UTF-8, and those that read and write models take no other; rename it"
        )


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON, which has no NaN and no infinity: null stands for a number that is not finite; UTF-8."""
    return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key) if isinstance(key, str) else key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner) for inner in value]
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; the file takes its place at `path` only when the block ends without an error.

    Raises:
        WriteError: If the disk is full, or the place may not be written to; what was there is as it was.
    """
    with writing(path), aside(path) as place:
        new = place / path.name
        yield new
        finish(new)
        new.replace(path)
        sync(path.parent)


@contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a folder to fill; it takes its place at `path`, complete, only when the block ends without an error.

    What stood at `path` goes away in the same moment, and only where `overwrite` allows it. Where the system cannot
    exchange two folders in one step, a run that is killed between the two steps leaves the old one aside, and `restore`
    puts it back.

    Raises:
        InputError: If it may not be replaced, and another run has put one there in the meantime.
        WriteError: If the place may not be written to, or the disk is full; what was there is as it was.
    """
    path = path.resolve() if path.is_symlink() else path
    with ExitStack() as stack:
        with writing(path):
            restore(path)
            new = stack.enter_context(aside(path))
        try:
            yield new
        except OSError as error:  # what fails in the block may be no writing, or of another place
            if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(new):
                raise
            with writing(path):
                raise
        with writing(path):
            new.chmod(0o777 & ~_umask())
            for file in new.rglob("*"):
                sync(file)
            sync(new)
            _put(new, path, overwrite=overwrite)
            sync(path.parent)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a new folder beside a path, for what is to be there; it goes away with all that libraries left in it."""
    make_parents(path)
    clear(path.parent, path.name)
    place = _beside(path, "partial")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to a path: turns what the machine refuses into one line.

    Raises:
        WriteError: For an error that is the disk's or the permissions'.
    """
    try:
        yield
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        raise WriteError(f"{path} cannot be written: {reason}") from error


def refusal(error: Exception) -> str | None:
    """What the machine refused and what to do, in words; None for an error that may be a fault of the program."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _OS_ERROR.search(str(error))):
        number = int(found[1])
    return None if number not in _REFUSED else f"{os.strerror(number).lower()}; {_REFUSED[number]}"


def make_parents(path: Path) -> list[Path]:
    """Makes the folders that a path lies in; gives those that were not there, outermost first.

    Raises:
        InputError: If one of them is a file.
    """
    missing = [parent for parent in path.parents if not parent.exists()][::-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be made: {error.filename} is a file, or lies below one") from error
    return missing


def restore(path: Path) -> None:
    """Puts back the folder that a run was about to replace when it was killed."""
    if path.exists() or not path.parent.is_dir():
        return
    for found in path.parent.iterdir():
        match = _ASIDE.fullmatch(found.name)
        if match and match["name"] == path.name and match["kind"] == "old" and is_gone(match["process"]):
            with suppress(FileNotFoundError):
                found.rename(path)
            return


def clear(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Removes what killed runs left in a folder, of a file or folder to be, or of all.

    Args:
        folder: Where to look; not in the folders inside it.
        name: Of the file or folder to be.
        alone: Whether a lock says that none of another machine is at work there either.
    """
    try:
        found = list(folder.iterdir())
    except OSError:
        return
    for aside in found:
        match = _ASIDE.fullmatch(aside.name)
        if match is None or name not in (None, match["name"]):
            continue
        if match["kind"] == "old" and not (folder / match["name"]).exists():
            continue  # it is all there is
        if is_gone(match["process"]) or (alone and not is_of_this_machine(match["process"])):
            shutil.rmtree(aside, ignore_errors=True)


def finish(aside: Path) -> None:
    """Gives a new file the permissions that the user's files have, and forces it to the disk."""
    aside.chmod(0o666 & ~_umask())
    sync(aside)


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Forces a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(new: Path, path: Path, *, overwrite: bool) -> None:
    """Gives a new folder its place."""
    if not overwrite or not path.exists():
        try:
            new.rename(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not overwrite:
                raise InputError(f"{path} was written by another run in the meantime, and stays as it is") from error
    _replace(path, new)


def _replace(path: Path, new: Path) -> None:
    """Puts a new folder in the place of an old one, which goes away."""
    with ExitStack() as stack:
        # A file that is being added to the old folder, or to one of the models in it, must be in it before it goes.
        for folder in (path, *sorted(each for each in path.iterdir() if each.is_dir())):
            stack.enter_context(exclusive(folder / LOCK, wait=True))
        if not exchange(new, path):
            old = _beside(path, "old")
            path.rename(old)
            new.rename(path)
            shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{this_process()}-{os.urandom(4).hex()}.{kind}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
