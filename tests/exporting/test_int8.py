"""int8 is calibrated on the images, leaves in float what is sensitive, and is refused where too much is."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

import dcvit.exporting.quantization
from dcvit.agreement import cosine
from dcvit.errors import CheckFailedError
from dcvit.exporting import export
from dcvit.exporting.quantization import Calibration
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.runtimes.onnx_runtime import OrtSession

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]


@pytest.fixture
def folder(make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan) -> ModelFolder:
    kwargs = tiny_plan.model_kwargs | {"depth": 2}
    return make_folder(tmp_path / "model", tiny_plan.replace(model_kwargs=kwargs))


def test_linear_layers_are_integers_and_the_rest_is_float(quantized: Path) -> None:
    record = ModelFolder(quantized).manifest.exports["model.b4.int8.u8.onnx"]
    graph = onnx.load(quantized / "model.b4.int8.u8.onnx").graph
    nodes = {node.name: node for node in graph.node}
    producers = {name: node for node in graph.node for name in node.output}
    weights = {weight.name: weight for weight in graph.initializer}
    layers = record["quantization"]["layers"]
    assert len(layers) == 17  # qkv (q and kv in the last), proj, fc1, fc2 of 4 blocks; not the patches, not the head
    assert record["quantization"]["in_float"] == []
    for name in layers:
        node = nodes[name]
        assert node.op_type == "Gemm"
        pixels, weight, bias = (producers[given] for given in node.input)
        assert {pixels.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert producers[pixels.input[0]].op_type == "QuantizeLinear"
        numbers = weights[weight.input[0]]
        assert numbers.data_type == TensorProto.INT8
        assert weights[bias.input[0]].data_type == TensorProto.INT32
        scales = numpy_helper.to_array(weights[weight.input[1]])
        assert scales.shape == (numbers.dims[1],)  # one a channel
        assert len(set(scales.tolist())) > 1
        assert weights[pixels.input[1]].dims == []  # one a tensor
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["QuantizeLinear"] == 17  # nothing else is rounded: no output, no softmax, no GELU


def test_the_kernels_are_integer_kernels(quantized: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(quantized / "model.b4.int8.u8.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QGemm"] == 17
    assert kinds["DequantizeLinear"] == 0


def test_the_ranges_are_those_of_the_images(folder: ModelFolder, blind: Calibration) -> None:
    def scales(images: torch.Tensor) -> list[float]:
        path = export(folder, 4, "int8", data=Calibration(images, {"images": len(images)})).onnx.path
        graph = onnx.load(path).graph
        weights = {weight.name: weight for weight in graph.initializer}
        return [float(numpy_helper.to_array(weights[node.input[1]]))
                for node in graph.node if node.op_type == "QuantizeLinear"]  # fmt: skip

    # What leaves a layer norm has the same range whatever the images are; what leaves GELU and attention does not.
    alike, dark = scales(blind.images), scales(torch.full_like(blind.images, -1))
    assert len(alike) == len(dark) == 8
    assert alike != dark


def test_a_sensitive_layer_is_found_and_left_in_float(
    fragile: ModelFolder, random_pixels: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as change:
        change.setattr("dcvit.exporting.quantization.AGREEMENT", -1)
        blind = export(fragile, 4, "int8", data=random_pixels)
    quantization = export(fragile, 4, "int8", data=random_pixels).record.quantization
    assert len(quantization.in_float) == 1
    assert len(quantization.layers) == 7
    graph = onnx.load(fragile.path / "model.b4.int8.onnx").graph
    (left,) = (node for node in graph.node if node.name == quantization.in_float[0])
    assert [dim for weight in graph.initializer if weight.name == left.input[1] for dim in weight.dims] == [128, 32]
    assert blind.record.quantization.agreement < 0.9
    assert not blind.record.quantization.in_float
    assert quantization.agreement >= dcvit.exporting.quantization.AGREEMENT
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        expected = fragile.load()(images)
    assert cosine(OrtSession(fragile.path / "model.b4.int8.onnx").infer(images), expected) > 0.98


def test_a_model_of_which_too_little_holds_is_refused(
    fragile: ModelFolder, random_pixels: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcvit.exporting.quantization, "_MOST_IN_FLOAT", 0.1)  # none of eight
    before = sorted(fragile.path.iterdir())
    with pytest.raises(
        CheckFailedError, match=r"cosine of 0\.[0-8]\d+, and 0\.[0-8]\d+ with the 0 most sensitive of 8"
    ):
        export(fragile, 4, "int8", data=random_pixels)
    assert sorted(fragile.path.iterdir()) == before


def test_made_up_ranges_make_the_same_graph(folder: ModelFolder, random_pixels: Calibration) -> None:
    """What is only timed needs no images: none is computed, and the file is one of the same kernels."""

    def kinds(data: Calibration) -> list[str]:
        written = export(folder, 4, "int8", data=data)
        assert (written.record.quantization.agreement is None) == (len(data.images) == 0)
        return [node.op_type for node in onnx.load(written.onnx.path).graph.node]

    assert kinds(Calibration.made_up()) == kinds(random_pixels)
