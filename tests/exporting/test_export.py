"""What export writes, what it says in it, and that it leaves nothing behind when it cannot."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]


@pytest.fixture
def folder(make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan) -> ModelFolder:
    return make_folder(tmp_path / "model", tiny_plan)


def contents(folder: ModelFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def test_file_names_interface_and_metadata(exported: Path) -> None:
    folder = ModelFolder(exported)
    for precision in ("fp32", "fp16"):
        model = onnx.load(exported / f"model.b4.{precision}.onnx")
        (images,), (logits,) = model.graph.input, model.graph.output
        for value, name, shape in ((images, "images", [4, 3, 32, 32]), (logits, "logits", [4, 10])):
            tensor = value.type.tensor_type
            assert value.name == name
            assert [dimension.dim_value for dimension in tensor.shape.dim] == shape
            assert tensor.elem_type == onnx.TensorProto.FLOAT
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["dcvit.plan_sha256"] == folder.plan.digest
        assert json.loads(metadata["dcvit.preprocessing"])["input_size"] == [3, 32, 32]
        assert (metadata["dcvit.batch"], metadata["dcvit.precision"]) == ("4", precision)


def test_the_same_folder_exports_to_the_same_bytes_without_paths(exported_copy: ModelFolder) -> None:
    path = exported_copy.path / "model.b4.fp16.onnx"
    before = path.read_bytes()
    assert export(exported_copy.path, 4, "fp16").onnx.path == path
    assert path.read_bytes() == before
    assert os.getcwd().encode() not in before
    assert b".py" not in before  # the exporter notes a stack trace at every node


def test_graph_of_another_batch_gets_its_own_file(exported_copy: ModelFolder) -> None:
    result = export(exported_copy, 1)
    assert result.to_json()["onnx"].endswith("model.b1.fp32.onnx")
    assert result.to_json()["engine"] is None
    assert set(ModelFolder(exported_copy.path).manifest.exports) == {
        "model.b1.fp32.onnx",
        "model.b4.fp32.onnx",
        "model.b4.fp16.onnx",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "at least one image"),
        ({"batch": -3}, "at least one image"),
        ({"precision": "fp4"}, "choose fp32, fp16, bf16, int8 or fp8"),
    ],
)
def test_bad_arguments_are_refused(folder: ModelFolder, arguments: dict[str, object], message: str) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match=message):
        export(folder, **arguments)
    assert contents(folder) == before


def test_a_changed_folder_is_refused(folder: ModelFolder) -> None:
    (folder.path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="has changed"):
        export(folder.path)


def test_weights_beyond_fp16_are_named(make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    folder = make_folder(tmp_path / "model", tiny_plan)
    model = folder.load()
    with torch.no_grad():
        model.head.weight[0, 0] = 1e5
    folder = ModelFolder.create(tmp_path / "large", model, tiny_plan, folder.manifest)
    before = contents(folder)
    with pytest.raises(InputError, match=r"'head\.weight' reaches 1e\+05.*--precision bf16 or fp32"):
        export(folder, 1, "fp16")
    assert contents(folder) == before
    export(folder, 1, "fp32")
