"""Linear layers in the form that integer kernels are for."""

import numpy as np
import onnx_ir as ir

from dcvit.exporting.bias import sizes


def linears_to_gemm(model: ir.Model) -> None:
    """Writes MatMul by a weight, and Add of a bias after it, as Gemm on two dimensions, in place.

    ONNX Runtime fuses a Gemm with quantized inputs and bias into one integer kernel. Of a MatMul it makes a float Gemm
    together with the Add first, and then dequantizes for it, which is slower than fp32.
    """
    for node in list(model.graph):
        if node.op_type == "MatMul" and (found := _bias_of(node)) is not None:
            _replace(model.graph, node, *found)


def _bias_of(product: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add after a product by a weight, and its bias [out]."""
    weight, readers = product.inputs[1], list(product.outputs[0].uses())
    if weight is None or not weight.is_initializer() or len(readers) != 1 or readers[0].node.op_type != "Add":
        return None
    add = readers[0].node
    (bias,) = (value for value in add.inputs if value is not product.outputs[0])
    if bias is None or not bias.is_initializer() or bias.shape is None or len(bias.shape) != 1:
        return None
    return add, bias


def _replace(graph: ir.Graph, product: ir.Node, add: ir.Node, bias: ir.Value) -> None:
    tokens, weight, output = product.inputs[0], product.inputs[1], add.outputs[0]
    assert tokens is not None
    assert weight is not None
    assert weight.shape is not None
    assert output.shape is not None
    name, (width_in, width_out) = product.name, weight.shape.numpy()
    *outer, _ = sizes(output.shape)
    rows = int(np.prod(outer)) or -1  # where the number of images is left open
    flat = _reshape(graph, f"{name}_rows", tokens, [rows, width_in])
    gemm = ir.node("Gemm", [flat.outputs[0], weight, bias], name=name)
    gemm.outputs[0].name = f"{name}_flat"
    gemm.outputs[0].shape, gemm.outputs[0].type = ir.Shape([None if rows < 0 else rows, width_out]), output.type
    back = _reshape(graph, f"{name}_tokens", gemm.outputs[0], [size or -1 for size in sizes(output.shape)])
    graph.insert_before(add, [flat, gemm, back])
    if output.is_graph_output():
        graph.outputs[list(graph.outputs).index(output)] = back.outputs[0]
    output.replace_all_uses_with(back.outputs[0])
    graph.remove([add, product], safe=True)
    back.outputs[0].name = output.name


def _reshape(graph: ir.Graph, name: str, value: ir.Value, shape: list[int]) -> ir.Node:
    tensor = ir.tensor(np.array(shape, np.int64), name=f"{name}_shape")
    constant = ir.Value(
        name=tensor.name, shape=ir.Shape([len(shape)]), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(constant)
    node = ir.node("Reshape", [value, constant], name=name)
    open_sizes = ir.Shape([None if size == -1 else size for size in shape])
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{name}_output", open_sizes, value.type
    return node
