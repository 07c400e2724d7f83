"""What the runtimes of ONNX files have in common."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes.base import Artifact, Runtime, Session
from dcvit.variant import DEFAULT_BATCH, Precision, Variant


class OnnxFileRuntime(Runtime):
    """A runtime that reads ONNX files.

    Attributes:
        title: Its name in reports.
        fixed_batch: Whether it runs files of a fixed batch only.
    """

    artifact: Artifact = "onnx"
    title: str
    fixed_batch = False

    @abstractmethod
    def open_file(
        self,
        path: Path,
        precision: Precision,
        preprocessing: Preprocessing | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Session:
        """Loads an ONNX file.

        Args:
            path: A file of the precision `source(precision)`.
            precision: Of the computation.
            preprocessing: How images were normalised; needed for a file that takes pixels.
            batch: Images at once, for a file that takes any number.

        Raises:
            InputError: If it cannot be loaded.
        """

    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        self.require(variant.precision)
        source = variant.at(self.source(variant.precision))
        exact, any_batch = source.onnx_name, source.of_any_batch().onnx_name
        files = folder.manifest.files
        fallback = exact not in files and any_batch in files and not self.fixed_batch
        return folder.file(any_batch if fallback else exact, made_by=source.export_command(folder.path))

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        path = self.file(folder, variant)
        return self.open_file(path, variant.precision, folder.manifest.preprocessing, variant.batch)


_LARGEST = 1 << 31
"""Elements of an input or an output at most: what no file of ours has is not allocated."""


def check_interface(path: Path, inputs: Sequence[Sequence[Any]], outputs: Sequence[Sequence[Any]]) -> None:
    """Checks that a file takes one batch of images and gives one row for each; but for the batch, sizes are fixed.

    Args:
        path: The file.
        inputs: The shape of each input; the number of images may be a name or unknown.
        outputs: The shape of each output.

    Raises:
        InputError: If it does not.
    """
    shapes = [*inputs, *outputs]
    fixed = all(isinstance(size, int) and size > 0 for shape in shapes for size in _fixed(shape))
    if len(inputs) != 1 or len(outputs) != 1 or not fixed or len(shapes[0]) != 4 or len(shapes[1]) < 2:
        raise InputError(
            f"{path} takes {_said(inputs)} and gives {_said(outputs)}, not one batch of images and a row for each, of "
            "fixed sizes; export it again"
        )
    if shapes[0][0] != shapes[1][0] or any(math.prod(_fixed(shape)) > _LARGEST for shape in shapes):
        raise InputError(f"{path} takes {_said(inputs)} and gives {_said(outputs)}; export it again")


def _fixed(shape: Sequence[Any]) -> Sequence[Any]:
    """The sizes that must be numbers: all, or all but that of an open batch."""
    return shape[1:] if shape and not isinstance(shape[0], int) else shape


def put(buffer: Tensor, images: Tensor, path: Path) -> None:
    """Copies images to where a runtime reads them.

    Raises:
        InputError: If the file takes others.
    """
    if images.shape != buffer.shape:
        raise InputError(f"{path} takes {_said([buffer.shape])}, and not {_said([images.shape])}; export it again")
    buffer.copy_(images)


def _said(shapes: Sequence[Sequence[Any]]) -> str:
    return " and ".join("×".join(map(str, shape)) or "a number" for shape in shapes) or "nothing"
