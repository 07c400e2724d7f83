"""What is checked about an ONNX file without running it."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from dcvit.exporting.graphs import read_graph, reading_graph
from dcvit.exporting.half import KEPT_FP32
from dcvit.folder.records import OnnxRecord
from dcvit.verification.checks import Check, holds

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_PRODUCTS = {"MatMul", "Gemm", "Conv"}
_COMPUTED_IN = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.FLOAT,  # between the quantized inputs and the next ones
}


def check_graph(path: Path, record: OnnxRecord, metadata: dict[str, str]) -> list[Check]:
    """Checks metadata, shapes, operators and types of an ONNX file.

    Args:
        path: The file.
        record: What it should be.
        metadata: What its `metadata_props` should say.

    Raises:
        InputError: If it is no ONNX file, or its shapes and types contradict each other.
    """
    with reading_graph(path):
        model = onnx.shape_inference.infer_shapes(read_graph(path), check_type=True, strict_mode=True, data_prop=True)
        checks = [
            _metadata(path.name, model, metadata),
            _static_shapes(path.name, model),
            _operators(path.name, model),
            _types(path.name, model, record),
        ]
        if record.precision == "int8":
            checks.append(_integers(path.name, model, record))
    return checks


def _metadata(file: str, model: ModelProto, expected: dict[str, str]) -> Check:
    found = {entry.key: entry.value for entry in model.metadata_props}
    faults = [
        f"{key} is {found.get(key, 'missing')} and should be {value}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    return holds(f"{file}: metadata", faults, "plan and preprocessing are the folder's")


def _static_shapes(file: str, model: ModelProto) -> Check:
    graph = model.graph
    known = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    names = [value.name for value in (*graph.input, *graph.output)]
    names += [name for node in graph.node for name in node.output if name]
    faults = []
    for name in names:
        tensor = known[name].type.tensor_type if name in known else None
        if tensor is None or not tensor.HasField("shape"):
            faults.append(f"'{name}' has no shape")
        elif not all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            faults.append(f"'{name}' has a dynamic dimension")
    return holds(f"{file}: static shapes", faults, f"all dimensions of {len(set(names))} tensors are fixed")


def _operators(file: str, model: ModelProto) -> Check:
    weights = {weight.name for weight in model.graph.initializer}
    faults = [fault for node in model.graph.node if (fault := _operator_fault(node, weights))]
    kinds = {node.op_type for node in model.graph.node}
    return holds(f"{file}: operators", faults, f"{len(kinds)} core operators, none that depends on content")


def _operator_fault(node: NodeProto, weights: set[str]) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} is of the domain {node.domain}"
    if node.op_type in ("TopK", "NonZero", "If", "Loop", "Scan") or node.op_type.startswith("Scatter"):
        return f"{node.op_type} at '{node.output[0]}'"
    if node.op_type.startswith("Gather") and node.input[1] not in weights:
        return f"{node.op_type} at '{node.output[0]}' by computed indices"
    return None


def _types(file: str, model: ModelProto, record: OnnxRecord) -> Check:
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    pixels = TensorProto.UINT8 if record.with_preprocessing else TensorProto.FLOAT
    faults = [
        f"'{value.name}' is {_name(value.type.tensor_type.elem_type)}, not {_name(wanted)}"
        for value, wanted in (*((value, pixels) for value in graph.input),
                              *((value, TensorProto.FLOAT) for value in graph.output))
        if value.type.tensor_type.elem_type != wanted
    ]  # fmt: skip
    products = 0
    for node in graph.node:
        if node.op_type in _PRODUCTS or node.op_type == "Attention":
            products += node.op_type in _PRODUCTS
            faults += _not_in(node, _COMPUTED_IN[record.precision], types)
        elif node.op_type in KEPT_FP32:
            faults += _not_in(node, TensorProto.FLOAT, types)
        elif node.op_type == "Cast" and any(weight.name == node.input[0] for weight in graph.initializer):
            faults.append(f"the weight '{node.input[0]}' is cast at run time")
    if not products:
        faults.append("there is no matrix product")
    computed = "fp32 or, by their quantized inputs, int8" if record.precision == "int8" else record.precision
    images = "logits in fp32, images in uint8" if record.with_preprocessing else "images and logits in fp32"
    return holds(f"{file}: types", faults, f"{products} matrix products in {computed}; norms, softmax, {images}")


def _integers(file: str, model: ModelProto, record: OnnxRecord) -> Check:
    """No silent fp32: what the manifest calls int8 has both inputs from 8-bit integers, and most layers are so."""
    graph, quantization = model.graph, record.quantization
    if quantization is None:
        return Check(f"{file}: int8", False, "the manifest does not say which layers are int8; export again")
    producers = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: weight.data_type for weight in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    faults = []
    for name in quantization.layers:
        if name not in nodes:
            faults.append(f"there is no {name}")
        elif not _from_integers(nodes[name], producers, weights):
            faults.append(f"{name} is not computed from int8 weights and uint8 inputs")
    layers, of = len(quantization.layers), len(quantization.layers) + len(quantization.in_float)
    if 2 * layers < of or not layers:
        faults.append(f"only {layers} of {of} layers are int8")
    return holds(f"{file}: int8", faults, f"{layers} of {of} layers have int8 weights and uint8 inputs")


def _from_integers(node: NodeProto, producers: dict[str, NodeProto], weights: dict[str, int]) -> bool:
    inputs = [producers.get(name) for name in node.input[:2]]
    if not all(given is not None and given.op_type == "DequantizeLinear" for given in inputs):
        return False
    activation, weight = (given.input[0] for given in inputs if given is not None)
    quantize = producers.get(activation)
    return weights.get(weight) == TensorProto.INT8 and quantize is not None and quantize.op_type == "QuantizeLinear"


def _not_in(node: NodeProto, wanted: int, types: dict[str, int]) -> Iterator[str]:
    for name in (*node.input, *node.output):
        if types.get(name) in _FLOATS and types[name] != wanted:
            yield f"{node.op_type} at '{node.output[0]}' has {_name(types[name])} '{name}', not {_name(wanted)}"


def _name(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type)
