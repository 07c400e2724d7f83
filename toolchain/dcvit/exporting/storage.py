"""ONNX files on disk: one file, or from 2 GiB on a second one beside it that holds the weights."""

from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from dcvit.files import sha256_of

DATA_SHA256 = "dcvit.data_sha256"
_LIMIT = 2**31 - 2**20
"""A protobuf message holds less than 2 GiB; the rest is for the graph."""
_INLINE = 1024
"""Bytes of the largest tensor that stays in the graph: shape inference reads such, and never weights."""


def data_file(path: Path) -> Path:
    """Where the weights of an ONNX file are that are not in it."""
    return path.with_name(f"{path.name}.data")


def save(model: ir.Model, path: Path) -> None:
    """Writes a graph; its weights are written one after another, and never held twice."""
    weights = (value.const_value for value in model.graph.initializers.values())
    if sum(weight.nbytes for weight in weights if weight is not None) > _LIMIT:
        ir.save(model, path, external_data=data_file(path).name, size_threshold_bytes=_INLINE)
    else:
        onnx.save(ir.to_proto(model), path)


def save_proto(model: onnx.ModelProto, path: Path) -> None:
    """The same for a model as protobuf, whose large tensors are gone afterwards where they went into a second file."""
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > _LIMIT
    data_file(path).unlink(missing_ok=True)  # onnx would append to it
    if large:
        location = data_file(path).name
        onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=_INLINE)
    else:
        onnx.save(model, path)


def seal(path: Path) -> None:
    """Notes the sha256 of the weights beside a graph in the graph: of other weights, the graph is another file too."""
    if data_file(path).exists():
        model = load_graph(path)
        model.metadata_props.add(key=DATA_SHA256, value=sha256_of(data_file(path)))
        onnx.save(model, path)


def release(model: ir.Model, more: Iterable[ir.Value] = ()) -> None:
    """Lets go of a graph's weights, and of those that it had before they were folded; it is of no use then."""
    for value in (*model.graph.initializers.values(), *more):
        value.const_value = None


def load_graph(path: Path) -> onnx.ModelProto:
    """A file without the weights that are beside it."""
    return onnx.load(path, load_external_data=False)
