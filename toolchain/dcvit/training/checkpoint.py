"""The state of a training on disk, in one safetensors file that appears whole or not at all; no pickle."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcvit.errors import InputError, first_line
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
        InputError: If the file belongs to a run with other settings, is damaged, or holds no state of a training.
    """
    try:
        found = read_sealed(path)
    except DamagedError as error:
        raise InputError(f"{path} is damaged ({error}); start anew with --overwrite") from error
    if found is None:
        return None
    try:
        return _state(*found, path, key)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: Exception) -> InputError:
    """The error to raise for a file that holds something else than the state of this training."""
    return InputError(f"{path} is no state of this training ({first_line(error)}); start anew with --overwrite")


def _state(tensors: dict[str, Tensor], record: dict[str, Any], path: Path, key: str) -> TrainingState:
    if record["key"] != key:
        raise InputError(
            f"{path} is of a run with another model, data or settings; give the same ones, "
            "or start anew with --overwrite"
        )
    step, parts = record["step"], _with_tensors(record["parts"], tensors)
    if type(step) is not int or not isinstance(parts, dict):
        raise TypeError("its step is no number, or its parts have no names")
    return TrainingState(step, float(record["seconds"]), parts)


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
