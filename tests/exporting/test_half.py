"""The conversion to fp16 keeps what must be fp32, and only that."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from dcvit.exporting import export
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import build
from dcvit.plan import CompressionPlan

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def types_of(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


@pytest.mark.parametrize("opset", [20, 23])
def test_only_norms_and_softmax_are_fp32(exported_copy: ModelFolder, opset: int) -> None:
    path = exported_copy.path / "model.b4.fp16.onnx"
    if opset == 20:
        export(exported_copy, 4, "fp16", opset=20)
    graph = onnx.load(path).graph
    types = types_of(graph)
    for node in graph.node:
        found = {types[name] for name in (*node.input, *node.output) if types[name] in (FLOAT, HALF)}
        if node.op_type == "Cast":
            assert found == {FLOAT, HALF}
        else:
            kept = node.op_type in ("LayerNormalization", "Softmax", "ReduceMean")
            assert found == ({FLOAT} if kept else {HALF}), node.op_type
    assert sum(node.op_type == "LayerNormalization" for node in graph.node) == 9
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count("Softmax"), kinds.count("Attention")) == ((4, 0) if opset == 20 else (0, 4))


def test_one_cast_serves_all_readers_and_no_weight_is_cast(exported: Path) -> None:
    graph = onnx.load(exported / "model.b4.fp16.onnx").graph
    casts = [(node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    assert not {source for source, _ in casts} & {weight.name for weight in graph.initializer}
    outputs = [name for node in graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))


def test_a_weight_that_norms_share_with_others_exists_in_both_types(tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    # The optimizer keeps one copy of equal weights, such as biases that all start at the same number.
    preprocessing = {
        "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1,
    }  # fmt: skip
    manifest = Manifest(model=tiny_plan.model, method="none", plan_digest="", seed=0, preprocessing=preprocessing)
    model = build(tiny_plan)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.constant_(parameter, 0.5)
    folder = ModelFolder.create(tmp_path / "model", model, tiny_plan, manifest)
    graph = onnx.load(export(folder, 2, "fp16").onnx.path).graph
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    types = types_of(graph)
    shared = [name for name in readers if f"{name}_fp16" in readers and types.get(name) == FLOAT]
    assert any(name in {weight.name for weight in graph.initializer} for name in shared)
    for weight in graph.initializer:
        if weight.data_type == FLOAT:
            assert readers[weight.name] <= {"LayerNormalization"}


def test_a_norm_in_small_pieces_is_fp32_from_square_to_root(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, tiny_plan: CompressionPlan
) -> None:
    # Opset 20 has no RMS norm. The square of 256 overflows fp16; ONNX Runtime's CPU kernels would hide it.
    plan = tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"norm_layer": "rmsnorm", "depth": 1})
    graph = onnx.load(export(make_folder(tmp_path / "model", plan), 2, "fp16", opset=20).onnx.path).graph
    types = types_of(graph)
    producers = {name: node for node in graph.node for name in node.output}
    roots = [node for node in graph.node if node.op_type == "Sqrt"]
    assert len(roots) == 3  # two in the block, one at the end
    for node in roots:
        chain = []
        while node.op_type != "Cast":
            chain.append(node.op_type)
            assert {types[name] for name in (*node.input, *node.output)} <= {FLOAT, onnx.TensorProto.INT64}
            node = producers[node.input[0]]
        assert chain == ["Sqrt", "Add", "ReduceMean", "Pow"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_is_valid_onnx(exported: Path, precision: str) -> None:
    onnx.checker.check_model(onnx.load(exported / f"model.b4.{precision}.onnx"), full_check=True)
