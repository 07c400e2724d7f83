"""Names of classes in the order of a model's outputs, as timm's `--class-map` files hold them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcvit.errors import InputError, first_line

_MOST_BYTES = 64 << 20
_INDEXED = re.compile(r"(.*\S)\s+(\d+)")


def read_class_map(given: str | Path | Mapping[str, int] | Sequence[str] | None) -> tuple[str, ...] | None:
    """The names by class index.

    A file has one name a line, which timm reads too, or a name and its index a line. Lines that all end in a number are
    of the second kind if the numbers are 0, 1, … each once, or a tab stands before them; else the number belongs to the
    name (`camera 7`).

    Args:
        given: A file; or in Python the names themselves, or the index of each name.

    Raises:
        InputError: If the file cannot be read, or names or indices are missing or there twice.
    """
    if given is None:
        return None
    if isinstance(given, (str, Path)):
        return _read(Path(given))
    if isinstance(given, Mapping):
        return _by_index([(str(name), index) for name, index in given.items()], "class_map")
    return _checked([str(name) for name in given], "class_map")


def _read(path: Path) -> tuple[str, ...]:
    if path.is_dir():
        raise InputError(f"--class-map: {path} is a folder; give a file with one class name a line")
    if not path.is_file():
        raise InputError(f"--class-map: there is no file {path}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"--class-map: {path} is far too large for one class name a line")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-map: {path} cannot be read: {first_line(error)}") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise InputError(f"--class-map: line {lines.index('') + 1} of {path} is empty; give one class name a line")
    found = [_INDEXED.fullmatch(line) for line in lines]
    pairs = [(match[1], int(match[2])) for match in found if match is not None]
    if pairs and len(pairs) == len(lines):
        tabs = all("\t" in line for line in lines)
        if tabs or sorted(index for _, index in pairs) == list(range(len(pairs))):
            return _by_index(pairs, str(path))
    return _checked(lines, str(path))


def _by_index(pairs: Sequence[tuple[str, int]], where: str) -> tuple[str, ...]:
    names = {index: name for name, index in pairs}
    if missing := [index for index in range(len(pairs)) if index not in names]:
        raise InputError(
            f"--class-map: {where} gives no class the index {missing[0]}; give each of 0 to {len(pairs) - 1} once"
        )
    return _checked([names[index] for index in range(len(pairs))], where)


def _checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    if len(names) < 2:
        raise InputError(f"--class-map: {where} holds {len(names)} names; give one a class, at least two")
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise InputError(f"--class-map: {where} names '{twice}' twice")
    return tuple(names)
