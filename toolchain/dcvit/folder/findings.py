"""What verify and evaluate found, kept in the model folder for the report: `verify.json` and `evaluations.json`."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcvit.errors import InputError, first_line
from dcvit.files import base_name, json_text
from dcvit.folder.model_folder import ModelFolder

VERIFY, EVALUATIONS = "verify.json", "evaluations.json"

_KEY = ("original", "data", "runtime", "precision", "batch", "file")

log = logging.getLogger(__name__)


def note_checks(folder: ModelFolder, found: dict[str, Any]) -> None:
    """Keeps the checks of a verification, and the sha256 that the checked files had."""
    names = {name for check in found["checks"] if (name := checked_file(check["name"])) in folder.manifest.files}
    files = {name: folder.manifest.files[name].sha256 for name in sorted(names)}
    kept = {key: value for key, value in found.items() if key != "folder"}
    keep(folder, VERIFY, lambda: _named(kept) | {"files": files})


def checked_file(name: str) -> str:
    """The file that a check is about, by the check's name."""
    return name.split(":")[0]


def note_evaluation(folder: ModelFolder, found: dict[str, Any], *, batch: int, file: str | None) -> None:
    """Keeps an accuracy; one of data of the same name, runtime, precision and file replaces the earlier one.

    Args:
        folder: The model folder.
        found: What `EvaluateResult.to_json` gives.
        batch: Images in every batch.
        file: Of the folder, that ran; None for the model that the folder was made from.
    """
    row = _named({key: value for key, value in found.items() if key not in ("model", "iou")})
    row |= {"original": file is None, "batch": batch}
    if file is not None:
        row |= {"file": file, "sha256": folder.manifest.files[file].sha256}
    keep(
        folder,
        EVALUATIONS,
        lambda: {"results": [*(each for each in evaluations(folder) if _key(each) != _key(row)), row]},
    )


def check_original(folder: Path, model: str) -> ModelFolder:
    """A model folder that was made from a model, whose accuracy `note_evaluation` may then keep as the original's.

    Raises:
        InputError: If there is no model folder, or it was made from a model of another name.
    """
    opened = ModelFolder(folder)
    name = ModelFolder(model).plan.model if ModelFolder.is_one(model) else model
    if name != opened.plan.model:
        raise InputError(f"--as-original-of: {folder} was made from {opened.plan.model}, not from {name}")
    return opened


def evaluations(folder: ModelFolder) -> list[dict[str, Any]]:
    """The accuracies that still hold: those of files that are as they were, and those of the original.

    Raises:
        InputError: If the file is none of ours.
    """
    with _ours(folder, EVALUATIONS):
        rows: list[dict[str, Any]] = read(folder, EVALUATIONS).get("results", [])
        return [row for row in rows if row["original"] or _current(folder, row["file"], row["sha256"])]


def checks(folder: ModelFolder) -> list[dict[str, Any]]:
    """The checks that still hold: those of files that are as they were.

    Raises:
        InputError: If the file is none of ours.
    """
    with _ours(folder, VERIFY):
        found = read(folder, VERIFY)
        current = {name for name, digest in found.get("files", {}).items() if _current(folder, name, digest)}
        return [check for check in found.get("checks", []) if checked_file(check["name"]) in current]


def read(folder: ModelFolder, name: str) -> dict[str, Any]:
    """A JSON file of the folder; empty where there is none.

    Raises:
        InputError: If it holds no JSON object.
    """
    if name not in folder.manifest.files:
        return {}
    with _ours(folder, name):
        return dict[str, Any](json.loads((folder.path / name).read_text(encoding="utf-8")))


@contextmanager
def _ours(folder: ModelFolder, name: str) -> Iterator[None]:
    """Around the reading of a file that anybody may have written."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder.path / name} is none of ours ({first_line(error)}); take it out") from error


def keep(folder: ModelFolder, name: str, content: Callable[[], dict[str, Any]]) -> None:
    """Writes a JSON file of what was found into the folder; where that cannot be, there is a warning.

    Args:
        folder: The model folder.
        name: The file's.
        content: Called while no other process changes the folder, so that nothing that others kept is lost.
    """
    try:
        folder.add(name, lambda path: _put(path, content()))
    except InputError as error:  # what was found is found all the same
        log.warning("%s is not kept for the report: %s", name, error)


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, with the images' name in place of their path."""
    return found | {"data": base_name(found["data"])} if found["data"] else found


def _current(folder: ModelFolder, name: str, sha256: str) -> bool:
    entry = folder.manifest.files.get(name)
    return entry is not None and entry.sha256 == sha256


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _KEY)


def _put(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json_text(content, indent=2) + "\n", encoding="utf-8")
