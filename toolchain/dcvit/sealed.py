"""Tensors and figures in one safetensors file with a checksum over both: a flipped bit is found; no pickle."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcvit.errors import first_line
from dcvit.files import whole_file


class DamagedError(Exception):
    """A file is not as it was written; its text says in what."""


def write_sealed(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Writes a file that appears whole or not at all.

    Args:
        path: Where.
        tensors: By name; on any device.
        record: JSON values; numbers that are not finite, for which JSON has no word, are written as words.

    Raises:
        WriteError: If the disk is full, or the place may not be written to.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(_in_words(record), allow_nan=False)
    with whole_file(path) as aside:
        save_file(kept, aside, metadata={"record": text, "sha256": _seal(kept, text)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and record of a file; None where there is none.

    Raises:
        DamagedError: If the file is not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        raise DamagedError(first_line(error)) from error
    if "record" not in about or about.get("sha256") != _seal(tensors, about["record"]):
        raise DamagedError("its checksum is wrong")
    record: dict[str, Any] = _in_numbers(json.loads(about["record"]))
    return tensors, record


_WORD = "not finite"
"""The only key of what stands for a number: a stage that gave NaN must give NaN when it is read again, not nothing."""


def _in_words(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_WORD: str(value)}
    if isinstance(value, dict):
        return {key: _in_words(inner) for key, inner in value.items()}
    return [_in_words(inner) for inner in value] if isinstance(value, list | tuple) else value


def _in_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_WORD}:
            return float(value[_WORD])
        return {key: _in_numbers(inner) for key, inner in value.items()}
    return [_in_numbers(inner) for inner in value] if isinstance(value, list) else value


def _seal(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
