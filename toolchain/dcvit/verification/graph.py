"""What is checked about an ONNX file without running it."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from dcvit.artifacts import Precision
from dcvit.exporting.half import KEPT_FP32
from dcvit.verification.checks import Check, holds

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_PRODUCTS = {"MatMul", "Gemm", "Conv"}


def check_graph(path: Path, precision: Precision, metadata: dict[str, str]) -> list[Check]:
    """Checks metadata, shapes, operators and types of an ONNX file.

    Args:
        path: The file.
        precision: What it should compute in.
        metadata: What its `metadata_props` should say.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    return [
        _metadata(path.name, model, metadata),
        _static_shapes(path.name, model),
        _operators(path.name, model),
        _types(path.name, model, precision),
    ]


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


def _types(file: str, model: ModelProto, precision: Precision) -> Check:
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    faults = [
        f"'{value.name}' is {_name(value.type.tensor_type.elem_type)}, not FLOAT"
        for value in (*graph.input, *graph.output)
        if value.type.tensor_type.elem_type != TensorProto.FLOAT
    ]
    products = 0
    half = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            products += 1
            faults += _not_in(node, half, types)
        elif node.op_type in KEPT_FP32:
            faults += _not_in(node, TensorProto.FLOAT, types)
        elif node.op_type == "Cast" and any(weight.name == node.input[0] for weight in graph.initializer):
            faults.append(f"the weight '{node.input[0]}' is cast at run time")
    if not products:
        faults.append("there is no matrix product")
    found = f"{products} matrix products in {precision}; norms, softmax, images and logits in fp32"
    return holds(f"{file}: types", faults, found)


def _not_in(node: NodeProto, wanted: int, types: dict[str, int]) -> Iterator[str]:
    for name in (*node.input, *node.output):
        if types.get(name) in _FLOATS and types[name] != wanted:
            yield f"{node.op_type} at '{node.output[0]}' has {_name(types[name])} '{name}', not {_name(wanted)}"


def _name(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type)
