"""Constant attention biases in the form that every runtime gets right."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir


def spread_biases(model: ir.Model) -> None:
    """Writes out a constant bias on attention logits over the queries, [1, 1, 1, N] as [1, 1, N, N], in place.

    Where there is one query, in a trimmed last block, it is written out over the heads: [1, h, 1, N].

    Size-aware attention adds one row, log s of each key, for all queries. OpenVINO's bf16 attention reads such a row
    wrongly (2026.4: a cosine of 0.74 with fp32 on a DeiT-Tiny merged twice, against 0.99999 when it is written
    out), and ONNX Runtime's CPU kernel for the operator `Attention` refuses it. The written-out one is as fast.
    """
    spread: dict[tuple[ir.Value, int], ir.Value] = {}  # a last block that is trimmed has fewer queries
    for node, index, logits in _biases(model.graph):
        bias = node.inputs[index]
        if bias is not None and bias.const_value is not None and _is_row(bias, logits):
            if (key := (bias, logits[-2])) not in spread:
                spread[key] = _spread(model.graph, bias, logits)
            node.replace_input_with(index, spread[key])
    for bias, _ in spread:
        if bias.name and bias.name in model.graph.initializers and not bias.uses():
            del model.graph.initializers[bias.name]


def _biases(graph: ir.Graph) -> Iterator[tuple[ir.Node, int, tuple[int, ...]]]:
    """Where something is added to attention logits: node, input, and the shape of the logits [B, h, P, N]."""
    for node in graph:
        if node.op_type == "Attention" and len(node.inputs) > 3:
            queries, keys = node.inputs[0], node.inputs[1]
            if queries is not None and keys is not None and queries.shape is not None and keys.shape is not None:
                yield node, 3, (*sizes(queries.shape)[:-1], sizes(keys.shape)[-2])
        elif node.op_type == "Softmax" and node.inputs[0] is not None:
            add = node.inputs[0].producer()
            if add is not None and add.op_type == "Add" and add.outputs[0].shape is not None:
                for index in range(len(add.inputs)):
                    yield add, index, sizes(add.outputs[0].shape)


def sizes(shape: ir.Shape) -> tuple[int, ...]:
    """The dimensions as numbers; 0 stands for one that is left open."""
    return tuple(size if isinstance(size, int) else 0 for size in shape)


def _is_row(bias: ir.Value, logits: tuple[int, ...]) -> bool:
    """Whether a bias is the same for every image, head and query."""
    assert bias.const_value is not None
    return len(logits) == 4 and bias.const_value.size == logits[-1] == bias.const_value.shape.numpy()[-1]


def _spread(graph: ir.Graph, bias: ir.Value, logits: tuple[int, ...]) -> ir.Value:
    assert bias.const_value is not None
    _, heads, queries, keys = logits
    shape = (1, 1, queries, keys) if queries > 1 else (1, heads, 1, keys)
    name, row = f"{bias.name}_spread_{queries}", bias.const_value.numpy().reshape(1, 1, 1, keys)
    tensor = ir.tensor(np.broadcast_to(row, shape).copy(), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
