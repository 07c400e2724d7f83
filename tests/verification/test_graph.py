"""Each check of the graph fails on the defect it is for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dcvit.errors import InputError
from dcvit.exporting import metadata_of
from dcvit.exporting.graphs import read_graph
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import OnnxRecord, QuantizationRecord, onnx_records
from dcvit.variant import Variant
from dcvit.verification.checks import Check
from dcvit.verification.fused import check_fused_file
from dcvit.verification.graph import check_graph


@pytest.fixture
def failed(exported: Path, tmp_path: Path) -> Callable[[Callable[[ModelProto], None]], list[str]]:
    """Names of the checks that fail on a changed copy of the fp32 file."""

    def run(change: Callable[[ModelProto], None], precision: str = "fp32") -> list[str]:
        model = onnx.load(exported / "model.b4.fp32.onnx")
        change(model)
        onnx.save(model, tmp_path / "model.onnx")
        metadata = metadata_of(ModelFolder(exported), Variant.of(4, precision))
        record = OnnxRecord(batch=4, precision=precision, opset=20, weights_sha256="")
        checks: list[Check] = check_graph(tmp_path / "model.onnx", record, metadata)
        return [f"{check.name.split(': ')[1]}: {check.detail}" for check in checks if not check.passed]

    return run


def nothing(model: ModelProto) -> None:
    pass


def append(model: ModelProto, node: onnx.NodeProto, dtype: int, shape: list[int]) -> None:
    model.graph.node.append(node)
    model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], dtype, shape))


def test_a_good_file_passes(failed: Callable[..., list[str]]) -> None:
    assert failed(nothing) == []


def test_fp32_that_claims_to_be_fp16(failed: Callable[..., list[str]]) -> None:
    # The metadata check fails too, for the file says fp32.
    metadata, types = failed(nothing, precision="fp16")
    assert metadata.startswith("metadata: dcvit.precision is fp32 and should be fp16")
    assert types.startswith("types: Conv at")
    assert "not FLOAT16" in types


def test_another_plan(failed: Callable[..., list[str]]) -> None:
    def change(model: ModelProto) -> None:
        (entry,) = (entry for entry in model.metadata_props if entry.key == "dcvit.plan_sha256")
        entry.value = "0" * 64

    (message,) = failed(change)
    assert message.startswith("metadata: dcvit.plan_sha256 is 0000")


def test_a_dynamic_batch(failed: Callable[..., list[str]]) -> None:
    def change(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    (message,) = failed(change)
    assert message.startswith("static shapes: 'images' has a dynamic dimension")


@pytest.mark.parametrize("operator", ["TopK", "NonZero", "ScatterElements", "GatherND"])
def test_operators_that_depend_on_content(failed: Callable[..., list[str]], operator: str) -> None:
    def change(model: ModelProto) -> None:
        graph = model.graph
        graph.initializer.append(numpy_helper.from_array(np.array([3]), "k"))
        if operator == "TopK":
            node = helper.make_node("TopK", ["logits", "k"], ["new", "indices"])
            graph.value_info.append(helper.make_tensor_value_info("indices", TensorProto.INT64, [4, 3]))
            append(model, node, TensorProto.FLOAT, [4, 3])
        elif operator == "NonZero":
            append(model, helper.make_node("NonZero", ["logits"], ["new"]), TensorProto.INT64, [2, 40])
        else:
            cast = helper.make_node("Cast", ["logits"], ["computed"], to=TensorProto.INT64)
            append(model, cast, TensorProto.INT64, [4, 10])
            if operator == "GatherND":
                graph.initializer.append(numpy_helper.from_array(np.zeros([2] * 10, np.float32), "table"))
                node = helper.make_node("GatherND", ["table", "computed"], ["new"])
                append(model, node, TensorProto.FLOAT, [4])
            else:
                node = helper.make_node("ScatterElements", ["logits", "computed", "logits"], ["new"])
                append(model, node, TensorProto.FLOAT, [4, 10])

    message = next(message for message in failed(change) if message.startswith("operators"))
    assert message.startswith(f"operators: {operator} at 'new'")


def test_an_operator_of_another_domain(failed: Callable[..., list[str]]) -> None:
    def change(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        node = helper.make_node("FusedMatMul", ["logits", "logits"], ["new"], domain="com.microsoft")
        append(model, node, TensorProto.FLOAT, [4, 10])

    assert failed(change) == ["operators: FusedMatMul is of the domain com.microsoft"]


@pytest.fixture
def failed_int8(quantized: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Names of the checks that fail on a changed copy of the int8 file that takes pixels."""

    def run(change: Callable[[ModelProto], None], **changes: object) -> list[str]:
        folder = ModelFolder(quantized)
        model = onnx.load(quantized / "model.b4.int8.u8.onnx")
        change(model)
        onnx.save(model, tmp_path / "model.onnx")
        record = onnx_records(folder)["model.b4.int8.u8.onnx"].model_copy(update=changes)
        metadata = metadata_of(folder, Variant.of(4, "int8", with_preprocessing=True))
        checks: list[Check] = check_graph(tmp_path / "model.onnx", record, metadata)
        return [f"{check.name.split(': ')[1]}: {check.detail}" for check in checks if not check.passed]

    return run


def test_a_good_int8_file_passes(failed_int8: Callable[..., list[str]]) -> None:
    assert failed_int8(nothing) == []


def test_a_layer_that_went_back_to_float(failed_int8: Callable[..., list[str]]) -> None:
    def change(model: ModelProto) -> None:
        gemm = [node for node in model.graph.node if node.op_type == "Gemm"][5]
        producers = {name: node for node in model.graph.node for name in node.output}
        quantize = producers[producers[gemm.input[0]].input[0]]
        gemm.input[0] = quantize.input[0]

    (message,) = failed_int8(change)
    assert re.match(r"int8: node_\w+ is not computed from int8 weights and uint8 inputs", message)


def test_int8_in_name_only(failed_int8: Callable[..., list[str]]) -> None:
    assert failed_int8(nothing, quantization=None)[0].startswith("int8: the manifest does not say which layers")
    none = QuantizationRecord(calibration={}, layers=(), in_float=("a",), agreement=1.0)
    assert failed_int8(nothing, quantization=none) == ["int8: only 0 of 1 layers are int8"]


def test_pixels_where_normalised_images_are_promised(failed_int8: Callable[..., list[str]]) -> None:
    assert failed_int8(nothing, with_preprocessing=False) == ["types: 'images' is UINT8, not FLOAT"]


@pytest.mark.parametrize("content", [b"no ONNX file", b"\x3a\x04\x0a\x02\x1a"])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, exported: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    record = OnnxRecord(batch=4, precision="fp16", opset=23, weights_sha256="")
    readers: list[Callable[[], Any]] = [
        lambda: check_graph(tmp_path / "model.onnx", record, {}),
        lambda: check_fused_file(tmp_path / "model.onnx", "fp16"),
        lambda: read_graph(tmp_path / "model.onnx").graph.node[0],
    ]
    for read in readers:
        with pytest.raises(InputError, match=r"model\.onnx is no ONNX file of ours \(.*\); export it again$"):
            read()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 99),
        lambda model: model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=-7),
        lambda model: model.graph.node[3].ClearField("input"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(
    failed: Callable[..., list[str]], change: Callable[[ModelProto], None]
) -> None:
    with pytest.raises(InputError, match=r"model\.onnx is no ONNX file of ours"):
        failed(change)
