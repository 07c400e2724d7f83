"""Attention as one operator (ONNX opset 23), and which of them have a fused kernel.

torch's exporter writes scaled_dot_product_attention as `Attention` from opset 23 on. In fp16 and bf16 TensorRT makes it
one kernel, and TensorRT-RTX builds no engine where it has none: so that a kernel is fused can be known without a GPU.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, helper

from dcvit.variant import FUSED_HEAD_DIM

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class AttentionNode:
    """One attention operator of a file.

    Attributes:
        name: The module that it is of, such as `blocks.3.attn`.
        queries: [B, h, P, d]; `keys` and `values` are alike.
        mask: Shape of what is added to the logits; None where nothing is.
        elem_type: What it computes in, as ONNX numbers types.
    """

    name: str
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]
    mask: tuple[int, ...] | None
    elem_type: int

    def cannot_fuse(self, compute_capabilities: tuple[str, ...] = ()) -> str | None:
        """Why TensorRT-RTX has no fused kernel for it, as far as that is known; None where nothing speaks against one.

        Args:
            compute_capabilities: Of the GPUs, such as "8.6".
        """
        width, value_width = self.queries[-1], self.values[-1]
        if width != value_width:
            return f"q and k have {width} channels a head and v has {value_width}; a fused kernel needs as many"
        if width < FUSED_HEAD_DIM:
            return f"its heads have {width} channels, and there are fused kernels from {FUSED_HEAD_DIM} on"
        if self.elem_type not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return "fused kernels compute in fp16 and bf16"
        if self.elem_type == TensorProto.BFLOAT16 and "7.5" in compute_capabilities:
            return "compute capability 7.5 has no fused kernel in bf16"
        return None

    def save(self, path: Path) -> None:
        """Writes a file that computes this attention and nothing else, of inputs alone."""
        given = {"q": self.queries, "k": self.keys, "v": self.values}
        if self.mask is not None:
            given["mask"] = self.mask
        result = (*self.queries[:-1], self.values[-1])
        graph = helper.make_graph(
            [helper.make_node("Attention", list(given), ["result"], self.name)],
            "attention",
            [helper.make_tensor_value_info(name, self.elem_type, shape) for name, shape in given.items()],
            [helper.make_tensor_value_info("result", self.elem_type, result)],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)


def name_attentions(model: ir.Model) -> None:
    """Calls every attention, and every softmax, after the module that it is in, in place: `blocks.3.attn`."""
    taken: set[str] = set()
    for node in model.graph:
        if node.op_type not in ("Attention", "Softmax") or _SCOPES not in node.metadata_props:
            continue
        scopes = ast.literal_eval(node.metadata_props[_SCOPES])
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        if module and module not in taken:
            taken.add(module)
            node.name = module


def attentions_of(model: ModelProto) -> list[AttentionNode]:
    """The attention operators of a file, in order; an open number of images is taken for one."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes = {name: tuple(each.dim_value or 1 for each in tensor.shape.dim) for name, tensor in values.items()}
    types = {name: tensor.elem_type for name, tensor in values.items()}
    for weight in graph.initializer:
        shapes[weight.name], types[weight.name] = tuple(weight.dims), weight.data_type
    found = []
    for node in graph.node:
        if node.op_type == "Attention":
            queries, keys, value, *mask = node.input
            found.append(
                AttentionNode(
                    node.name,
                    shapes[queries],
                    shapes[keys],
                    shapes[value],
                    shapes[mask[0]] if mask and mask[0] else None,
                    types[queries],
                )
            )
    return found


def in_pieces(model: ModelProto) -> list[tuple[str, bool]]:
    """The attentions that are written as products and a softmax: their names, and whether one operator could do it.

    It could not where something else happens to the logits or the weights: heads that talk to each other (CaiT), or
    a temperature of each head (Swin v2). Windows (Swin), whose softmax is a module of its own, have no fused kernel.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return [
        (node.name, _is_plain(node, producers, readers, constants)) for node in graph.node if node.op_type == "Softmax"
    ]


def _is_plain(
    softmax: NodeProto,
    producers: dict[str, NodeProto],
    readers: dict[str, list[NodeProto]],
    constants: dict[str, tuple[int, ...]],
) -> bool:
    if softmax.name.endswith(".softmax"):
        return False
    logits = softmax.input[0]
    while (node := producers.get(logits)) is not None and node.op_type in ("Cast", "Add", "Mul"):
        others = [name for name in node.input if name != logits and name in constants]
        if node.op_type == "Mul" and not any(len(constants[name]) < 2 for name in others):  # no one scale for all
            return False
        logits = next(name for name in node.input if name not in constants)
    product = producers.get(logits)
    if product is None or product.op_type != "MatMul" or product.input[1] in constants:
        return False
    return any(node.op_type == "MatMul" and node.input[1] not in constants for node in _read(softmax, readers))


def _read(node: NodeProto, readers: dict[str, list[NodeProto]]) -> Iterator[NodeProto]:
    """What reads a node's output, behind casts."""
    for reader in readers.get(node.output[0], []):
        yield from _read(reader, readers) if reader.op_type == "Cast" else (reader,)
