"""One run at a time on an output, and one change at a time of a folder's files."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dcvit.errors import InputError
from dcvit.files import clear, make_parents, require_utf8, restore, writing
from dcvit.locks import LOCK, HeldError, exclusive


@contextmanager
def running(out: Path) -> Iterator[None]:
    """Keeps an output for a run as long as the block lasts, and first clears up after runs that were killed.

    The lock is a hidden file beside the output, which need not exist yet. Of several processes that torchrun started,
    the first holds it for all.

    Raises:
        InputError: If another run is at work on it, or its name is not UTF-8.
        WriteError: If nothing can be written there.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    require_utf8(out)
    place = out.resolve()
    with ExitStack() as stack:
        with writing(out):
            stack.callback(_remove_empty, make_parents(place))
            try:
                stack.enter_context(exclusive(place.with_name(f".{place.name}{LOCK}"), wait=False))
            except HeldError as error:
                raise InputError(
                    f"{out} is being written by {error}; wait until it is done, or choose another output folder"
                ) from None
        restore(place)
        clear(place.parent, place.name, alone=True)
        for folder in (place, *place.rglob("*/")):
            clear(folder, alone=True)
        yield


@contextmanager
def adding(folder: Path) -> Iterator[None]:
    """Keeps a folder for a change of its files; waits until others have made theirs.

    Raises:
        WriteError: If nothing can be written there.
    """
    with ExitStack() as stack:
        with writing(folder):
            stack.enter_context(exclusive(folder / LOCK, wait=True))
        clear(folder, alone=True)
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):  # something is in it now
            folder.rmdir()
