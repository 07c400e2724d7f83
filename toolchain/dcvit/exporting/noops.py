"""Nodes that do nothing."""

import onnx_ir as ir

_NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


def remove_noops(model: ir.Model) -> None:
    """Takes out what gives its first input unchanged, in place; pixels are cast once.

    That is Identity, Dropout, a Cast to the same type, a Reshape or Expand to the same shape, a product with ones and a
    sum with zeros. Two Casts in a row become one where the first is of pixels: 0 … 255 are exact in fp16 and bf16.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Cast":
            _cast_once(node)
        value = _unchanged(node)
        if value is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _unchanged(node: ir.Node) -> ir.Value | None:
    """The input that is the node's output."""
    if node.op_type in ("Identity", "Dropout"):
        return node.inputs[0]
    if node.op_type in ("Cast", "Reshape", "Expand"):
        candidates = [node.inputs[0]]
    elif node.op_type in _NEUTRAL:
        first, second = node.inputs
        candidates = [first] if _is_all(second, _NEUTRAL[node.op_type]) else []
        if node.op_type in ("Mul", "Add") and _is_all(first, _NEUTRAL[node.op_type]):
            candidates.append(second)
    else:
        return None
    return next((value for value in candidates if value is not None and _alike(value, node.outputs[0])), None)


def _cast_once(cast: ir.Node) -> None:
    before = cast.inputs[0].producer() if cast.inputs[0] is not None else None
    pixels = before.inputs[0] if before is not None and before.op_type == "Cast" else None
    if pixels is not None and pixels.dtype == ir.DataType.UINT8:
        cast.replace_input_with(0, pixels)


def _alike(value: ir.Value, output: ir.Value) -> bool:
    known = value.shape is not None and value.shape.is_static() and value.dtype is not None
    return known and value.shape == output.shape and value.dtype == output.dtype


def _is_all(value: ir.Value | None, number: int) -> bool:
    return value is not None and value.const_value is not None and bool((value.const_value.numpy() == number).all())
