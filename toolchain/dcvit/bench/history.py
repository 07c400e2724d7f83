"""`bench.json`: what was measured of a folder's files, by this run and by earlier ones."""

from typing import Any

from dcvit.bench.result import BenchResult
from dcvit.files import base_name
from dcvit.folder.findings import keep, read
from dcvit.folder.model_folder import ModelFolder
from dcvit.variant import BENCH

_KEY = ("runtime", "file", "batch", "precision", "against", "baseline_precision", "protocol", "threads")

_NAMES = ("folder", "against")
"""Where models lie on this machine is said on screen alone."""


def write_history(folder: ModelFolder, result: BenchResult) -> None:
    """Writes the result, and keeps the rows of earlier runs that still hold.

    A row stays until the same comparison is measured again, or the file that it was measured with is another one. Where
    the folder cannot be written to there is a warning.
    """
    report = result.to_json()
    report |= {name: base_name(report[name]) for name in _NAMES}
    rows = [row | ({"against": base_name(row["against"])} if "against" in row else {}) for row in report["results"]]
    new = {_key(row) for row in rows}
    keep(
        folder,
        BENCH,
        lambda: report | {"results": [row for row in _earlier(folder) if _key(row) not in new] + rows},
    )


def _earlier(folder: ModelFolder) -> list[dict[str, Any]]:
    return [row for row in read(folder, BENCH).get("results", []) if _current(folder, row)]


def _current(folder: ModelFolder, row: dict[str, Any]) -> bool:
    entry = folder.manifest.files.get(row.get("file", ""))
    return entry is not None and entry.sha256 == row["sha256"]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _KEY)
