"""Normalisation in the graph itself, so that a server hands over decoded pixels and cannot get mean and std wrong."""

import numpy as np
import onnx_ir as ir

from dcvit.preprocessing import Preprocessing


def take_pixels(model: ir.Model, preprocessing: Preprocessing) -> None:
    """Changes the input from normalised fp32 [B, C, H, W] to uint8 [B, H, W, C], in place.

    The images must have the model's size already: nothing is resized. The pixels are normalised in fp32 at every
    precision of the rest.
    """
    graph = model.graph
    (images,) = graph.inputs
    assert images.shape is not None
    batch, channels, height, width = images.shape
    pixels = ir.Value(
        name=images.name, shape=ir.Shape([batch, height, width, channels]), type=ir.TensorType(ir.DataType.UINT8)
    )
    images.name = f"{pixels.name}_normalised"
    mean, std = (
        np.array(numbers, np.float64).reshape(1, -1, 1, 1) for numbers in (preprocessing.mean, preprocessing.std)
    )
    # TensorRT lets uint8 inputs be cast, and nothing else.
    cast = ir.node("Cast", [pixels], {"to": int(ir.DataType.FLOAT)}, name="pixels_cast")
    transpose = ir.node("Transpose", cast.outputs, {"perm": [0, 3, 1, 2]}, name="pixels_transpose")
    scale = _constant(graph, "pixels_scale", 1 / (255 * std))
    scaled = ir.node("Mul", [transpose.outputs[0], scale], name="pixels_scaled")
    shift = _constant(graph, "pixels_shift", -mean / std)
    shifted = ir.node("Add", [scaled.outputs[0], shift], outputs=[ir.Value(name=images.name)], name="pixels_shifted")
    nodes = [cast, transpose, scaled, shifted]
    for node in nodes:
        output = node.outputs[0]
        output.name = output.name or f"{node.name}_output"
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = images.shape if node is not cast else pixels.shape
    images.replace_all_uses_with(shifted.outputs[0])
    graph.inputs[0] = pixels
    graph.insert_before(graph[0], nodes)


def _constant(graph: ir.Graph, name: str, numbers: np.ndarray) -> ir.Value:
    tensor = ir.tensor(numbers.astype(np.float32), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
    )
    graph.register_initializer(value)
    return value
