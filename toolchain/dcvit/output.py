"""The folder that a run writes: whether it may be written, and what a run that is stopped leaves in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcvit import run_record
from dcvit.errors import InputError, TargetError
from dcvit.files import require_utf8
from dcvit.folder.model_folder import require_free

CHECKPOINTS = "checkpoints"


def check_cache(cache: Path | None, out: Path) -> Path:
    """Where stage results are kept: the given folder, or `checkpoints` in the output while a run is under way.

    Raises:
        InputError: If the folder cannot be, or would go away with the output.
    """
    if cache is None:
        return out / CHECKPOINTS
    require_utf8(cache)
    if cache.exists() and not cache.is_dir():
        raise InputError(f"--cache: {cache} is a file; give a folder")
    if cache.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--cache: {cache} is in the output folder, which is replaced at the end; choose another one")
    return cache


def check_output(out: Path, *, finished: bool, resume: bool, overwrite: bool) -> None:
    """Checks that an output folder may be written, and clears an unfinished run that is not to be continued.

    Args:
        out: The folder.
        finished: Whether it holds the result of a run like this one.
        resume: Continue an unfinished run.
        overwrite: Replace a result or an unfinished run.

    Raises:
        InputError: If it may not.
    """
    unfinished = (out / CHECKPOINTS).is_dir() and not finished
    if unfinished and resume:
        return
    if unfinished and not overwrite:
        raise InputError(f"{out} holds an unfinished run; continue it with --resume, or start anew with --overwrite")
    if unfinished:
        shutil.rmtree(out)
    elif not (finished and overwrite):
        require_free(out, overwrite=overwrite)


@contextmanager
def leaving_nothing_behind(out: Path) -> Iterator[None]:
    """A run that is stopped leaves what it has kept, unless that is nothing or the target turned out impossible."""
    place = out / CHECKPOINTS
    continued = _has_kept(place)
    try:
        yield
    except BaseException as error:
        if not _has_kept(place) or (isinstance(error, TargetError) and not continued):
            shutil.rmtree(place, ignore_errors=True)
        for folder in (place, out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _has_kept(place: Path) -> bool:
    """Whether an unfinished run has left more than what it was started with."""
    return place.is_dir() and any(path.name != run_record.RUN for path in place.iterdir())
