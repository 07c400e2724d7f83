"""The layers of a folder's exported files, and what each computes in."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from rich.table import Table

from dcvit.exporting.graphs import read_graph, reading_graph
from dcvit.exporting.tensorrt import network_layers
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EngineRecord, engine_records, onnx_records
from dcvit.runtimes import flavors
from dcvit.runtimes.inspector import Layer, layers_of
from dcvit.runtimes.tensorrt import EngineSession, mismatch, stale


@dataclass(frozen=True)
class FileLayers:
    """The layers of one file.

    Attributes:
        told_by: Whether these are operators, layers before TensorRT fuses them, or those of the engine itself.
    """

    file: str
    told_by: str
    layers: list[Layer]

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "told_by": self.told_by, "layers": [vars(layer) for layer in self.layers]}

    def lines(self) -> Iterable[Any]:
        """One row for each kind of layer and type; the single ones are in the JSON."""
        table = Table("layer", "computes in", "how many", title=f"{self.file}: {self.told_by}", title_justify="left")
        for (kind, dtype), count in sorted(Counter((layer.kind, layer.dtype) for layer in self.layers).items()):
            table.add_row(kind, dtype, str(count))
        yield table


def exported_layers(folder: ModelFolder) -> list[FileLayers]:
    """Lists the layers of every ONNX file, and of every engine as far as this machine can tell.

    Raises:
        InputError: If the manifest cannot be read, or TensorRT does not take an ONNX file.
    """
    files = [FileLayers(name, "operators of the ONNX file", _operators(folder, name)) for name in onnx_records(folder)]
    return files + [_engine(folder, name, record) for name, record in engine_records(folder).items()]


def _operators(folder: ModelFolder, name: str) -> list[Layer]:
    path = folder.path / name
    with reading_graph(path):
        graph = onnx.shape_inference.infer_shapes(read_graph(path)).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        return [
            Layer(node.name, node.op_type, onnx.TensorProto.DataType.Name(types.get(node.output[0], 0)))
            for node in graph.node
        ]


def _engine(folder: ModelFolder, name: str, record: EngineRecord) -> FileLayers:
    """From the engine on its GPU, from the network elsewhere, and by the manifest's counts without TensorRT."""
    if flavors.not_installed(record.flavor) or stale(folder, record):
        counted = [
            Layer("", kind, dtype)
            for kind, types in record.network.layers.items()
            for dtype, count in types.items()
            for _ in range(count)
        ]
        return FileLayers(name, "layers of the network, as the manifest notes them", counted)
    trt = flavors.load(record.flavor)
    if torch.cuda.is_available():
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        if mismatch(record, trt.__version__, capability) is None:
            session = EngineSession(folder.path / name, trt, folder.manifest.preprocessing)
            return FileLayers(name, "layers of the engine, after fusion", layers_of(session.engine, trt))
    return FileLayers(
        name, "layers of the network, before fusion", network_layers(folder.path / record.onnx, record.flavor)
    )
