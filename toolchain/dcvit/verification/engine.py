"""What is checked about an engine: all of it on a GPU, and what can be known without one elsewhere."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from dcvit.exporting.graphs import read_graph, reading_graph
from dcvit.exporting.tensorrt import header_faults, read_network
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EngineRecord, NetworkRecord, TensorRecord, engine_records
from dcvit.runtimes import flavors
from dcvit.runtimes.inspector import Layer, layers_of
from dcvit.runtimes.tensorrt import EngineSession, mismatch, stale
from dcvit.variant import Precision
from dcvit.verification.batches import check_session
from dcvit.verification.checks import Check, holds
from dcvit.verification.fused import check_fused_engine
from dcvit.verification.parity import Expected

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
_KEPT_FP32 = ("NORMALIZATION", "NORMALIZATION_V2", "SOFTMAX")


def check_engine(folder: ModelFolder, name: str, record: EngineRecord, expected: list[Expected]) -> Iterator[Check]:
    """Checks where an engine comes from, its inputs, outputs and types, and on its GPU what it computes."""
    old = stale(folder, record)
    faults = [f"{old}; export again with --trt"] if old else []
    yield holds(f"{name}: origin", faults, f"built from {record.onnx} by {record.version}")
    if old:
        return
    onnx_path, network = folder.path / record.onnx, record.network
    yield _interface(name, network, onnx_path)
    missing = flavors.not_installed(record.flavor)
    if not missing:
        network = read_network(onnx_path, record.flavor)
        differs = [] if network == record.network or _other_version(record) else ["the manifest notes other layers"]
        yield holds(f"{name}: network", differs, f"read again from {record.onnx} by {record.flavor}")
    yield _precision(name, network, record)
    yield from check_fused_engine(name, onnx_path, record)
    if missing:
        yield Check(f"{name}: file", True, f"as it was written, by its sha256; not opened: {missing}")
    elif reason := _cannot_run(record):
        yield _header(folder.path / name, record, reason)
    else:
        trt = flavors.load(record.flavor)
        session = EngineSession(folder.path / name, trt, folder.manifest.preprocessing, record.batch)
        yield _read_back(name, session.engine, network)
        yield _layers(name, layers_of(session.engine, trt), record.precision)
        yield from check_session(
            f"{name}: {record.flavor}", session, expected, record.precision, _alone(folder, name, record, trt)
        )


def _alone(folder: ModelFolder, name: str, record: EngineRecord, trt: Any) -> Callable[[Tensor], Tensor] | None:
    """The engine of batch 1 beside this one, or itself if it takes any, where this machine can run it."""
    one = name if record.profile else name.replace(f"model.b{record.batch}.", "model.b1.", 1)
    other = engine_records(folder).get(one)
    if (one == name and not record.profile) or other is None or stale(folder, other) or _cannot_run(other):
        return None
    return lambda images: EngineSession(folder.path / one, trt, folder.manifest.preprocessing, 1).infer(images)


def _interface(name: str, network: NetworkRecord, onnx_path: Path) -> Check:
    with reading_graph(onnx_path):
        return _interface_of(name, network, read_graph(onnx_path).graph)


def _interface_of(name: str, network: NetworkRecord, graph: onnx.GraphProto) -> Check:
    faults = [
        f"{built.name} is {built.dtype} {list(built.shape)}, and {tensor.dtype} {list(tensor.shape)} in the ONNX file"
        for built, tensor in zip(
            (*network.inputs, *network.outputs), map(_tensor_of, (*graph.input, *graph.output)), strict=True
        )
        if built != tensor
    ]
    (images,), (logits,) = network.inputs, network.outputs
    found = f"{images.name} {images.dtype} {list(images.shape)}, {logits.name} {logits.dtype} {list(logits.shape)}"
    return holds(f"{name}: inputs and outputs", faults, found)


def _tensor_of(value: onnx.ValueInfoProto) -> TensorRecord:
    tensor = value.type.tensor_type
    shape = tuple(-1 if dimension.dim_param else dimension.dim_value for dimension in tensor.shape.dim)
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).replace(
        "FLOAT16", "HALF"
    )  # images and logits are never bf16
    return TensorRecord(name=value.name, shape=shape, dtype=dtype)


def _precision(name: str, network: NetworkRecord, record: EngineRecord) -> Check:
    """No silent fp32 (roboflow/rf-detr#1453): the types of the strongly typed network are those of the engine."""
    explicit = record.variant.explicit
    wanted = "HALF" if explicit else {"fp16": "HALF", "bf16": "BF16"}.get(record.precision, "FLOAT")
    faults = [
        f"{count} {kind} layers compute in {dtype}, not {right}"
        for kinds, right in ((_PRODUCTS, wanted), (_KEPT_FP32, "FLOAT"))
        for kind in kinds
        for dtype, count in network.layers.get(kind, {}).items()
        if dtype != right
    ]
    products = network.layers.get("MATRIX_MULTIPLY", {}).get(wanted, 0)
    if not products:
        faults.append(f"no matrix product computes in {wanted}")
    found = f"{products} matrix products in {wanted}"
    if explicit:
        eight_bits = record.precision.upper()
        inputs = network.layers.get("QUANTIZE", {}).get(eight_bits, 0)
        if not inputs:
            faults.append(f"nothing is quantized to {eight_bits}")
        found += f", the inputs of {inputs} of them in {eight_bits}"
    return holds(f"{name}: types", faults, f"{found}; norms and softmax in FLOAT")


def _other_version(record: EngineRecord) -> bool:
    return bool(flavors.load(record.flavor).__version__ != record.version)


def _cannot_run(record: EngineRecord) -> str | None:
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU here"
    version = flavors.load(record.flavor).__version__
    return mismatch(record, version, "{}.{}".format(*torch.cuda.get_device_capability()))


def _header(path: Path, record: EngineRecord, reason: str) -> Check:
    """Without its GPU an engine cannot be opened; TensorRT still reads its header."""
    faults = header_faults(path, record.flavor)
    if faults is None:
        return Check(f"{path.name}: file", True, f"as it was written, by its sha256; not run: {reason}")
    return holds(f"{path.name}: file", faults, f"header is well formed and of this version; not run: {reason}")


def _read_back(name: str, engine: Any, network: NetworkRecord) -> Check:
    faults = []
    for tensor in (*network.inputs, *network.outputs):
        shape, dtype = tuple(engine.get_tensor_shape(tensor.name)), engine.get_tensor_dtype(tensor.name).name
        if (shape, dtype) != (tensor.shape, tensor.dtype):
            faults.append(f"{tensor.name} is {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
    return holds(f"{name}: file", faults, "opened; inputs, outputs and types are as built")


def _layers(name: str, layers: list[Layer], precision: Precision) -> Check:
    """What the engine itself says of its layers: those that compute in the precision, by their outputs."""
    found = Counter(layer.dtype for layer in layers)
    names = {
        "fp16": ("Half", "FP16"), "bf16": ("BFloat16", "BF16"), "int8": ("Int8", "INT8"), "fp8": ("FP8", "Float8"),
    }.get(precision, ("Float", "FP32"))  # fmt: skip
    some = any(name in dtype for dtype in found for name in names)
    faults = [] if some else [f"no layer of the engine has an output in {precision}"]
    told = ", ".join(f"{count} {dtype}" for dtype, count in found.most_common())
    return holds(f"{name}: layers", faults, f"{len(layers)} layers: {told}")
