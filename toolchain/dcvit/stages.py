"""Results of long stages that are kept on disk by what they depend on: this is both resuming and reuse."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcvit.files import whole_file


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

    def run(self, name: str, key: dict[str, Any], compute: Callable[[], StageResult]) -> StageResult:
        """The result of `compute` for this key, from disk if it is there."""
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}-{digest_of(key)[:20]}.safetensors"
        if (kept := _read(path)) is not None:
            self.reused += 1
            return kept
        result = compute()
        with whole_file(path) as aside:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in result.tensors.items()}
            save_file(tensors, aside, metadata={"record": json.dumps(result.record)})
        return result


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
        with safe_open(path, framework="pt") as file:
            return StageResult({name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                               json.loads((file.metadata() or {}).get("record", "{}")))  # fmt: skip
    except (FileNotFoundError, SafetensorError):
        return None
