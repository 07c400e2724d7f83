"""What export folds, what it says of it, and what is left in the graph."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.exporting.attention import attentions_of, in_pieces
from dcvit.exporting.noops import remove_noops
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.folder.records import OnnxRecord, onnx_records
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.verification import verify

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]
MERGES = ({"after": 1, "axis": "horizontal"},)
DEIT3 = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 10}


@pytest.fixture(scope="module")
def folder(make_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """LayerScale, sizes in attention, narrowed heads and a last block with the class token alone."""
    plan = CompressionPlan(model="deit3_small_patch16_224", model_kwargs=DEIT3, merges=MERGES).replace(
        size_aware_attention=True, trims_last_block=True, blocks=(BlockPlan(index=1, head_dim=16),)
    )
    return make_folder(tmp_path_factory.mktemp("folds") / "model", plan)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_half_precision_has_one_operator_for_each_attention(folder: ModelFolder) -> None:
    weights = (folder.path / WEIGHTS).read_bytes()
    result = export(folder, 2, "fp16", with_preprocessing=True)
    found = operators(result.onnx.path)
    assert (found["Attention"], found["Softmax"], found["Conv"], found["Mul"]) == (3, 0, 0, 0)
    nodes = attentions_of(onnx.load(result.onnx.path))
    assert [(node.name, node.queries, node.mask) for node in nodes] == [
        ("blocks.0.attn", (2, 2, 17, 32), None),
        ("blocks.1.attn", (2, 2, 9, 16), (1, 1, 9, 9)),
        ("blocks.2.attn", (2, 2, 1, 32), (1, 2, 1, 9)),
    ]
    first = onnx.load(result.onnx.path).graph.node[0]
    assert (first.op_type, first.attribute[0].i) == ("Cast", TensorProto.FLOAT16)  # from uint8 at once
    assert result.record.folds == ("patch embedding", "normalisation", "layer scale")
    assert result.record.opset == 23
    assert "patch embedding and normalisation and layer scale folded" in result.onnx.about
    assert onnx_records(ModelFolder(folder.path))[result.onnx.path.name] == result.record
    assert (folder.path / WEIGHTS).read_bytes() == weights
    assert verify(folder).passed


def test_fp32_has_its_scales_in_the_weights(folder: ModelFolder) -> None:
    result = export(folder, 2, with_preprocessing=True)
    found = operators(result.onnx.path)
    assert (found["Attention"], found["Softmax"], found["Conv"], found["Mul"]) == (0, 3, 1, 0)
    assert result.record.folds == ("normalisation", "layer scale", "attention scale")


def test_an_older_opset_has_attention_in_pieces(folder: ModelFolder) -> None:
    path = export(folder, 1, "fp16", opset=20).onnx.path
    assert [entry.version for entry in onnx.load(path).opset_import] == [20]
    assert in_pieces(onnx.load(path)) == [(f"blocks.{index}.attn", True) for index in range(3)]
    (check,) = [each for each in verify(folder).checks if each.name == f"{path.name}: fused attention"]
    assert check.passed
    assert "opset 20" in check.detail
    for precision, opset, message in (("fp32", 23, "fp32 is exported with 20 to 22"), ("bf16", 20, "22 to 23")):
        with pytest.raises(InputError, match=f"--opset {opset}: .*{message}"):
            export(folder, 1, precision, opset=opset)


def test_records_of_an_older_version_are_read() -> None:
    record = OnnxRecord.model_validate({"batch": 1, "precision": "fp32", "opset": 20, "weights_sha256": ""})
    assert record.folds == ()


def test_nodes_that_do_nothing_go() -> None:
    zeros, ones = (numpy_helper.from_array(ir.tensor([number] * 4).numpy().astype("float32"), name)
                   for name, number in (("zeros", 0), ("ones", 1)))  # fmt: skip
    row = numpy_helper.from_array(zeros_row := numpy_helper.to_array(zeros).reshape(1, 4).repeat(3, 0), "rows")
    shape = numpy_helper.from_array(numpy_helper.to_array(zeros)[:1].astype("int64") + 4, "shape")
    nodes = [
        helper.make_node("Mul", ["ones", "x"], ["a"]),
        helper.make_node("Add", ["a", "zeros"], ["b"]),
        helper.make_node("Sub", ["b", "zeros"], ["c"]),
        helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["e", "shape"], ["f"]),
        helper.make_node("Sub", ["zeros", "f"], ["g"]),  # this one negates
        helper.make_node("Add", ["g", "rows"], ["y"]),  # and this one spreads
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "nothing", [value("x", 1, [4])], [value("y", 1, list(zeros_row.shape))], [zeros, ones, row, shape]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    remove_noops(model)
    assert [node.op_type for node in model.graph] == ["Sub", "Add"]
