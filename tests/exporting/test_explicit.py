"""int8 and fp8 in the form that TensorRT takes: symmetric, no bias behind DequantizeLinear, fp16 around it."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from dcvit.agreement import cosine
from dcvit.errors import CheckFailedError, InputError
from dcvit.exporting import export
from dcvit.exporting.quantization import Calibration
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import engine_records, onnx_records
from dcvit.plan import CompressionPlan
from dcvit.runtimes.onnx_runtime import CPU, OrtSession
from dcvit.variant import Precision, Variant
from dcvit.verification import verify

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
EIGHT_BITS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@pytest.fixture
def folder(make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan) -> ModelFolder:
    kwargs = tiny_plan.model_kwargs | {"depth": 2}
    return make_folder(tmp_path / "model", tiny_plan.replace(model_kwargs=kwargs))


@pytest.mark.trt
@needs_rtx
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_engines_are_built_and_their_files_hold(
    folder: ModelFolder, random_pixels: Calibration, precision: Precision
) -> None:
    capabilities = ("8.9", "12.0") if precision == "fp8" else ("8.0", "8.6", "8.9", "12.0")
    result = export(
        folder, 4, precision, data=random_pixels, trt=True, flavor="tensorrt-rtx", compute_capabilities=capabilities
    )
    assert result.onnx.path.name == {"int8": "model.b4.int8.trt.onnx", "fp8": "model.b4.fp8.onnx"}[precision]
    (record,) = engine_records(ModelFolder(folder.path)).values()
    assert record.compute_capabilities == capabilities
    assert record.network.layers["QUANTIZE"] == {precision.upper(): 8}
    assert record.network.layers["ATTENTION_OUTPUT"] == {"HALF": 2}
    checks = verify(folder.path)
    assert checks.passed, [check for check in checks.checks if not check.passed]
    names = [check.name for check in checks.checks]
    assert f"{result.onnx.path.name}: {precision}" in names
    assert f"{result.onnx.path.name}: fused attention" in names
    assert any("ONNX Runtime, as written against PyTorch" in name for name in names)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_linear_layers_have_eight_bits_and_the_rest_is_fp16(
    folder: ModelFolder, random_pixels: Calibration, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, record = exported_without_engine(folder, random_pixels, precision, monkeypatch)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    producers = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: weight for weight in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    assert len(record["layers"]) == 8
    for name in record["layers"]:
        quantize, weight = (producers[given] for given in nodes[name].input[:2])
        pixels = producers[quantize.input[0]]
        assert pixels.op_type == "QuantizeLinear"
        zeros = [weights[each.input[2]] for each in (pixels, weight)]
        assert {zero.data_type for zero in zeros} == {EIGHT_BITS[precision]}
        assert not any(numpy_helper.to_array(zero).astype(np.float32).any() for zero in zeros)
        assert weights[weight.input[0]].data_type == EIGHT_BITS[precision]
        channels = weights[weight.input[0]].dims[1] if precision == "int8" else 0
        assert list(weights[weight.input[1]].dims) == [channels] * (precision == "int8")
        assert weights[weight.input[1]].data_type == TensorProto.FLOAT16
    assert Counter(node.op_type for node in graph.node)["QuantizeLinear"] == 8  # nothing else is rounded
    assert not any(weight.data_type == TensorProto.INT32 for weight in weights.values())  # no bias


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_channels_whose_weights_are_tiny_are_not_lost(
    folder: ModelFolder, random_pixels: Calibration, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder.load()
    with torch.no_grad():  # a scale of 8e-6 is subnormal in fp16, and ONNX Runtime's quantizer takes it for zero
        model.blocks[0].mlp.fc2.weight.mul_(1e-3 / model.blocks[0].mlp.fc2.weight.abs().max())
        model.blocks[0].mlp.fc1.weight.mul_(300)
    kept = ModelFolder.create(folder.path, model, folder.plan, folder.manifest, overwrite=True)
    path, record = exported_without_engine(kept, random_pixels, precision, monkeypatch)
    assert record["in_float"] == []
    graph = onnx.load(path).graph
    stored = [weight for weight in graph.initializer if list(weight.dims) == [128, 32]]
    assert [weight.data_type for weight in stored] == [EIGHT_BITS[precision]] * 2
    assert all(np.count_nonzero(numpy_helper.to_array(weight).astype(np.float32)) > 3000 for weight in stored)
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    assert cosine(OrtSession(path, CPU, as_written=True).infer(images), expected) > 0.99


def exported_without_engine(
    folder: ModelFolder, calibration: Calibration, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, list[str]]]:
    """fp8 needs no engine; int8's file for one is made by asking for it, and building nothing."""
    monkeypatch.setattr("dcvit.exporting.engine_target", lambda *_: None)
    path = export(folder, 4, precision, data=calibration, trt=precision == "int8").onnx.path
    return path, ModelFolder(folder.path).manifest.exports[path.name]["quantization"]


def test_int8_for_the_cpu_and_for_engines_stand_side_by_side(
    folder: ModelFolder, random_pixels: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(folder, 4, "int8", data=random_pixels)
    exported_without_engine(folder, random_pixels, "int8", monkeypatch)
    records = onnx_records(ModelFolder(folder.path))
    assert list(records) == ["model.b4.int8.onnx", "model.b4.int8.trt.onnx"]
    assert [record.opset for record in records.values()] == [20, 23]
    assert all(record.variant.onnx_name == name for name, record in records.items())
    assert Variant.of(4, "int8").of_engine().engine_name("tensorrt-rtx") == "model.b4.int8.tensorrt-rtx.engine"
    assert verify(folder.path).passed


@needs_rtx
def test_fp8_is_refused_by_name_before_ada(folder: ModelFolder, random_pixels: Calibration) -> None:
    with pytest.raises(InputError, match=r"--precision fp8: GPUs of compute capability 8\.6 have no fp8.* with 8\.9"):
        export(folder, 4, "fp8", data=random_pixels, trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.6",))
    assert not list(folder.path.glob("*.onnx"))


def test_max_drop_holds_for_files_of_engines(
    fragile: ModelFolder, blind: Calibration, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr("dcvit.exporting.engine_target", lambda *_: "a target")
    monkeypatch.setattr("dcvit.exporting._export_engine", lambda *_: built.append("an engine"))
    with pytest.raises(CheckFailedError, match=r"model.b4.int8.trt.onnx loses .* more than --max-drop 1"):
        export(fragile, 4, "int8", data=blind, evaluate=image_folder(2, 20), max_drop=1, trt=True)
    assert not built  # the accuracy of the file is known before an engine is made of it
    assert not list(fragile.path.glob("*.onnx"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_made_up_ranges_make_the_same_graph(
    folder: ModelFolder, random_pixels: Calibration, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(calibration: Calibration) -> list[str]:
        path, _ = exported_without_engine(folder, calibration, precision, monkeypatch)
        return [node.op_type for node in onnx.load(path).graph.node]

    assert kinds(Calibration.made_up()) == kinds(random_pixels)
