"""Which of a folder's files is packed, and what is known of it."""

import re
from dataclasses import dataclass
from pathlib import Path

from dcvit.errors import InputError
from dcvit.exporting.storage import data_file, load_graph
from dcvit.files import base_name
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EngineRecord, OnnxRecord, engine_records, onnx_records
from dcvit.preprocessing import Preprocessing
from dcvit.variant import Batch, Precision, Variant


@dataclass(frozen=True)
class Packed:
    """An ONNX file that is packed.

    Attributes:
        folder_opened: Of the model.
        file: The file's name.
        record: What the manifest says of it.
        engines: Those that were built from it.
        labels: Names of the classes in their order; empty where the folder does not know them.
        classes: Logits of an image.
    """

    folder_opened: ModelFolder
    file: str
    record: OnnxRecord
    engines: dict[str, EngineRecord]
    labels: tuple[str, ...]
    classes: tuple[int, ...]

    @property
    def folder(self) -> str:
        """The model folder's name."""
        return base_name(self.folder_opened.path)

    @property
    def name(self) -> str:
        """The same as a server can take it for the name of a model."""
        return re.sub(r"[^A-Za-z0-9_.-]", "_", self.folder)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder_opened.path / self.file

    @property
    def weights(self) -> Path | None:
        """Its weights, where they are beside it."""
        path = data_file(self.path)
        return path if path.name in self.folder_opened.manifest.files else None

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes its input."""
        return self.folder_opened.manifest.preprocessing

    @property
    def image(self) -> tuple[int, ...]:
        """Shape of one image as the file takes it."""
        channels, height, width = self.preprocessing.input_size
        return (height, width, channels) if self.record.with_preprocessing else (channels, height, width)


def choose(
    folder: ModelFolder,
    batch: Batch | None,
    precision: Precision | None,
    *,
    with_preprocessing: bool,
    for_engine: bool,
) -> Packed:
    """The file of a batch and a precision; of several the one that leaves its batch open, else the last exported one.

    Args:
        folder: The model folder.
        batch: None takes any.
        precision: None takes any.
        with_preprocessing: Whether the file takes pixels.
        for_engine: Whether the file is for TensorRT.

    Raises:
        InputError: If there is none.
    """
    records = onnx_records(folder)
    fitting = [
        name
        for name in folder.manifest.exports  # in the order in which they were exported
        if name in records
        and with_preprocessing == records[name].with_preprocessing
        and precision in (None, records[name].precision)
        and batch in (None, "dynamic" if records[name].dynamic else records[name].batch)
        and _reads(records[name], precision, for_engine=for_engine)
    ]
    if not fitting:
        wanted = Variant.of_file("dynamic" if batch is None else batch, precision or "fp32")
        wanted = wanted.model_copy(update={"with_preprocessing": with_preprocessing})
        others = f" (it has {', '.join(records)})" if records else ""
        command = wanted.export_command(folder.path) + (" --trt" if for_engine and precision == "int8" else "")
        raise InputError(f"{folder.path} has no ONNX file of that kind{others}; make one with `{command}`")
    file = next((name for name in fitting if records[name].dynamic), fitting[-1])
    engines = {name: engine for name, engine in engine_records(folder).items() if engine.onnx == file}
    names = tuple(folder.manifest.classes or ())
    output = _output_of(folder.path / file)
    return Packed(folder, file, records[file], engines, names if output[:1] == (len(names),) else (), output)


def _reads(record: OnnxRecord, precision: Precision | None, *, for_engine: bool) -> bool:
    """Whether a file is for TensorRT, or for the others: int8 has a form for each, and bf16 is TensorRT's own."""
    if for_engine:
        return record.precision != "int8" or record.variant.explicit
    return not record.variant.explicit and (record.precision != "bf16" or precision == "bf16")


def _output_of(path: Path) -> tuple[int, ...]:
    (logits,) = load_graph(path).graph.output
    return tuple(dimension.dim_value for dimension in logits.type.tensor_type.shape.dim)[1:]
