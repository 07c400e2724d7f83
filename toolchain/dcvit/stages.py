"""Results of long stages that are kept on disk by what they depend on: this is both resuming and reuse."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dcvit.files import clear
from dcvit.sealed import DamagedError, read_sealed, write_sealed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind.

    Attributes:
        tensors: Weights, by name.
        record: Figures, as JSON.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)


class StageStore:
    """Runs a stage, or gives what it left behind when it ran before with the same inputs.

    A stage is a pure function of its key: whoever makes a key names in it everything that the result depends on.

    Args:
        folder: Where results are kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.reused = 0
        if folder is not None:
            clear(folder)  # what killed runs left

    def run(self, name: str, key: dict[str, Any], compute: Callable[[], StageResult]) -> StageResult:
        """The result of `compute` for this key, from disk if it is there and whole.

        Raises:
            WriteError: If it cannot be kept: the disk is full, or the folder may not be written to.
        """
        if self.folder is None:
            return compute()
        path = self._path(self.folder, name, key)
        if (kept := _read(path)) is not None:
            self.reused += 1
            return kept
        result = compute()
        write_sealed(path, result.tensors, result.record)
        return result

    def holds(self, name: str, key: dict[str, Any]) -> bool:
        """Whether `run` would find the result on disk, whole."""
        return self.folder is not None and _read(self._path(self.folder, name, key)) is not None

    @staticmethod
    def _path(folder: Path, name: str, key: dict[str, Any]) -> Path:
        return folder / f"{name}-{digest_of(key)[:20]}.safetensors"


def digest_of(key: Any) -> str:
    """sha256 of any JSON value in canonical form."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> StageResult | None:
    try:
        found = read_sealed(path)
    except DamagedError as error:
        log.warning("%s is damaged (%s), so it is computed again", path, error)
        return None
    return None if found is None else StageResult(*found)
