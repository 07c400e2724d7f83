"""What is checked about an ONNX file without running it."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from dcvit.exporting.graphs import read_graph, reading_graph
from dcvit.exporting.half import KEPT_FP32
from dcvit.folder.records import OnnxRecord
from dcvit.variant import QUANTIZED
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
            _open_batch(path.name, model) if record.dynamic else _static_shapes(path.name, model),
            _operators(path.name, model),
            _types(path.name, model, record),
        ]
        if record.precision in QUANTIZED:
            checks.append(_quantized(path.name, model, record))
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


def _open_batch(file: str, model: ModelProto) -> Check:
    """Of a file that takes any number of images, this is all that may be open of its input and output."""
    faults = []
    for value in (*model.graph.input, *model.graph.output):
        first, *others = value.type.tensor_type.shape.dim
        if not first.dim_param:
            faults.append(f"the batch of '{value.name}' is fixed")
        if not all(dimension.HasField("dim_value") for dimension in others):
            faults.append(f"'{value.name}' has another dynamic dimension than its batch")
    return holds(f"{file}: open batch", faults, "any number of images; all other dimensions are fixed")


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
    computed_in = TensorProto.FLOAT16 if record.variant.explicit else _COMPUTED_IN[record.precision]
    products = 0
    for node in graph.node:
        if node.op_type in _PRODUCTS or node.op_type == "Attention":
            products += node.op_type in _PRODUCTS
            faults += _not_in(node, computed_in, types)
        elif node.op_type in KEPT_FP32:
            faults += _not_in(node, TensorProto.FLOAT, types)
        elif node.op_type == "Cast" and any(weight.name == node.input[0] for weight in graph.initializer):
            faults.append(f"the weight '{node.input[0]}' is cast at run time")
    if not products:
        faults.append("there is no matrix product")
    computed: str = record.precision
    if record.precision in QUANTIZED:
        rest = "fp16" if record.variant.explicit else "fp32"
        computed = f"{rest} or, by their quantized inputs, {record.precision}"
    images = "logits in fp32, images in uint8" if record.with_preprocessing else "images and logits in fp32"
    return holds(f"{file}: types", faults, f"{products} matrix products in {computed}; norms, softmax, {images}")


def _quantized(file: str, model: ModelProto, record: OnnxRecord) -> Check:
    """No silent fp32: what the manifest calls quantized has both inputs from eight bits, and most layers are so."""
    graph, quantization, precision = model.graph, record.quantization, record.precision
    title = f"{file}: {precision}"
    if quantization is None:
        return Check(title, False, f"the manifest does not say which layers are {precision}; export again")
    producers = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: weight.data_type for weight in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    inputs = precision if record.variant.explicit else "uint8"
    of_weight = TensorProto.FLOAT8E4M3FN if precision == "fp8" else TensorProto.INT8
    of_input = of_weight if record.variant.explicit else TensorProto.UINT8
    faults = []
    for name in quantization.layers:
        if name not in nodes:
            faults.append(f"there is no {name}")
        elif not _from_eight_bits(nodes[name], producers, weights, of_weight, of_input):
            faults.append(f"{name} is not computed from {precision} weights and {inputs} inputs")
    layers, of = len(quantization.layers), len(quantization.layers) + len(quantization.in_float)
    if 2 * layers < of or not layers:
        faults.append(f"only {layers} of {of} layers are {precision}")
    return holds(title, faults, f"{layers} of {of} layers have {precision} weights and {inputs} inputs")


def _from_eight_bits(
    node: NodeProto, producers: dict[str, NodeProto], weights: dict[str, int], of_weight: int, of_input: int
) -> bool:
    inputs = [producers.get(name) for name in node.input[:2]]
    if not all(given is not None and given.op_type == "DequantizeLinear" for given in inputs):
        return False
    activation, weight = (given.input[0] for given in inputs if given is not None)
    quantize = producers.get(activation)
    if quantize is None or quantize.op_type != "QuantizeLinear" or len(quantize.input) < 3:
        return False
    return weights.get(weight) == of_weight and weights.get(quantize.input[2]) == of_input


def _not_in(node: NodeProto, wanted: int, types: dict[str, int]) -> Iterator[str]:
    for name in (*node.input, *node.output):
        if types.get(name) in _FLOATS and types[name] != wanted:
            yield f"{node.op_type} at '{node.output[0]}' has {_name(types[name])} '{name}', not {_name(wanted)}"


def _name(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type)
