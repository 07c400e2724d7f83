"""Layers of exported files, without a GPU."""

from pathlib import Path

import pytest

from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.inspection import inspect
from dcvit.inspection.layers import exported_layers
from dcvit.runtimes import flavors


def test_every_operator_is_listed_with_its_type(quantized: Path) -> None:
    files = {file.file: file for file in exported_layers(ModelFolder(quantized))}
    assert set(files) == {"model.b4.fp32.onnx", "model.b4.fp16.onnx", "model.b4.int8.u8.onnx", "model.b4.bf16.u8.onnx"}
    for name, dtype in (("fp32", "FLOAT"), ("fp16", "FLOAT16"), ("bf16.u8", "BFLOAT16"), ("int8.u8", "FLOAT")):
        layers = files[f"model.b4.{name}.onnx"].layers
        assert {layer.dtype for layer in layers if layer.kind in ("MatMul", "Gemm")} == {dtype}
        attention = {layer.dtype for layer in layers if layer.kind in ("Softmax", "Attention")}
        assert attention == {dtype if name in ("fp16", "bf16.u8") else "FLOAT"}  # one operator in half precision
    quantized_types = {layer.dtype for layer in files["model.b4.int8.u8.onnx"].layers if layer.kind == "QuantizeLinear"}
    assert quantized_types == {"UINT8"}


@pytest.mark.trt
@pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")
def test_an_engine_is_listed_by_its_network_or_by_the_manifest(
    exported_copy: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(exported_copy, 4, "fp16", trt=True, flavor="tensorrt-rtx", compute_capabilities=("7.5",))
    engine = inspect(exported_copy.path, layers=True).to_json()["layers"][-1]
    assert engine["file"] == "model.b4.fp16.tensorrt-rtx.engine"
    assert engine["told_by"] == "layers of the network, before fusion"
    assert all(layer["name"] for layer in engine["layers"])
    monkeypatch.setattr(flavors, "not_installed", lambda flavor: "it is gone")
    noted = inspect(exported_copy.path, layers=True).to_json()["layers"][-1]
    assert noted["told_by"] == "layers of the network, as the manifest notes them"

    def counted(file: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
        return sorted((layer["kind"], layer["dtype"]) for layer in file["layers"])

    assert counted(noted) == counted(engine)
    assert ("MATRIX_MULTIPLY", "HALF") in counted(noted)
    assert "layers" not in inspect(exported_copy.path).to_json()
