"""What a training tells while it runs: on screen, as JSON lines, and to TensorBoard."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcvit.errors import InputError
from dcvit.files import json_text, whole_file, writing
from dcvit.progress import status

LOG = "train.jsonl"


class TrainingLog:
    """Writes one record a line, shows it, and hands it to TensorBoard.

    Args:
        path: The file of JSON lines; None keeps them in memory alone.
        tensorboard: A folder for TensorBoard's event files.
        begin: The first step that it tells of, of a training in parts.

    Raises:
        InputError: If TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path | None = None, tensorboard: Path | None = None, begin: int = 0) -> None:
        self.path, self._begin = path, begin
        self.records: list[dict[str, Any]] = []
        self._board = None if tensorboard is None else require_tensorboard().SummaryWriter(str(tensorboard))

    def resume(self, step: int) -> None:
        """Takes up the file of a run that was stopped, without what it did after `step`.

        A last line that is broken was being written then, and is none.

        Raises:
            InputError: If another line is broken.
        """
        if self.path is not None and self.path.is_file():
            self.records = [record for record in _read(self.path) if record["step"] <= step]
        if self.path is not None:
            with whole_file(self.path) as aside:
                aside.write_text(self.text, encoding="utf-8")

    def add(self, record: dict[str, Any], steps: int) -> None:
        """Notes how the training stands after `record["step"]` of `steps`."""
        self.records.append(record)
        if self.path is not None:
            with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json_text(record) + "\n")
        status(_line(record, steps, self._begin))
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])
            self._board.flush()

    @property
    def text(self) -> str:
        """All records as JSON lines."""
        return "".join(json_text(record) + "\n" for record in self.records)


def _read(path: Path) -> list[dict[str, Any]]:
    lines, records = path.read_bytes().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["step"] + 0, record["loss"] + 0.0
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}: line {number} is no record of a training; take it out, or start anew with --overwrite"
            ) from error
        records.append(record)
    return records


def _line(record: Mapping[str, Any], steps: int, begin: int) -> str:
    losses = ", ".join(f"{name.replace('_', '-')} {value:.4f}" for name, value in record["losses"].items())
    left = record["seconds"] / max(1, record["step"] - begin) * (steps - record["step"])
    text = (
        f"epoch {record['epoch']:.2f}, step {record['step']} of {steps}: loss {record['loss']:.4f} ({losses}), "
        f"{record['images_per_second']:.0f} images/s, {left / 60:.1f} min left"
    )
    for name, widths in record.get("widths", {}).items():
        text += f"\n  {name} " + " ".join(str(width) for width in widths)
    return text


def _scalars(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    scalars = [(name, float(record[name])) for name in ("loss", "lr", "images_per_second")]
    scalars += [(f"loss/{name}", value) for name, value in record["losses"].items()]
    for name, widths in record.get("widths", {}).items():
        scalars += [(f"{name}/block {index}", float(width)) for index, width in enumerate(widths)]
    return scalars


def require_tensorboard() -> Any:
    """The module that writes TensorBoard's event files.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise InputError(
            "--tensorboard needs TensorBoard, which is not installed: pip install 'dcvit-tool[tensorboard]'"
        ) from error
