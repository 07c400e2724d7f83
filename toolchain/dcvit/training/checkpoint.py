"""The state of a training on disk, in one safetensors file that appears whole or not at all; no pickle."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcvit.errors import InputError
from dcvit.sealed import DamagedError, read_sealed, write_sealed


@dataclass(frozen=True)
class TrainingState:
    """All that a training goes on from.

    Attributes:
        step: Optimiser steps that are done.
        seconds: Wall time that they took.
        parts: State dicts by the name of what they belong to, of tensors and JSON values, nested as they like.
    """

    step: int
    seconds: float
    parts: dict[str, Any] = field(default_factory=dict)


def write_state(path: Path, key: str, state: TrainingState) -> None:
    """Writes a state; `key` names the run that it belongs to.

    Raises:
        WriteError: If the disk is full, or the place may not be written to.
    """
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(state.parts, "", tensors)
    record = {"key": key, "step": state.step, "seconds": state.seconds, "parts": values}
    write_sealed(path, tensors, record)


def read_state(path: Path, key: str) -> TrainingState | None:
    """The state of the run `key`; None where there is no file.

    Raises:
        InputError: If the file belongs to a run with other settings, or is damaged.
    """
    try:
        found = read_sealed(path)
    except DamagedError as error:
        raise InputError(f"{path} is damaged ({error}); start anew with --overwrite") from error
    if found is None:
        return None
    tensors, record = found
    if record["key"] != key:
        raise InputError(
            f"{path} is of a run with another model, data or settings; give the same ones, "
            "or start anew with --overwrite"
        )
    return TrainingState(record["step"], record["seconds"], _with_tensors(record["parts"], tensors))


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, in which each tensor is replaced by its name in `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[key, _without_tensors(each, f"{name}/{key}", tensors)] for key, each in value.items()]
        return {"items": items}  # pairs, since keys may be numbers
    if isinstance(value, list | tuple):
        return {"list": [_without_tensors(each, f"{name}/{index}", tensors) for index, each in enumerate(value)]}
    return {"value": value}


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _with_tensors(each, tensors) for key, each in content}
    if kind == "list":
        return [_with_tensors(each, tensors) for each in content]
    return content
