"""A graph that takes pixels computes what the other one does of the same images, normalised."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import RUNTIMES, flavors
from dcvit.runtimes.base import pixels_of
from dcvit.variant import Variant


def images_of(folder: ModelFolder, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    preprocessing = folder.manifest.preprocessing
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return pixels, ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def test_pixels_come_back_from_normalised_images_exactly(exported: Path) -> None:
    folder = ModelFolder(exported)
    pixels, images = images_of(folder, 5)
    assert torch.equal(pixels_of(images, folder.manifest.preprocessing), pixels)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_it_computes_the_same(exported_copy: ModelFolder, name: str) -> None:
    runtime = RUNTIMES[name]
    if runtime.unavailable():
        pytest.skip(f"{name} is not installed")
    path = export(exported_copy, 4, with_preprocessing=True).onnx.path
    assert path.name == "model.b4.fp32.u8.onnx"
    _, images = images_of(exported_copy, 6)
    plain = runtime.open(exported_copy, Variant.of(4)).infer(images)
    ours = runtime.open(exported_copy, Variant.of(4, with_preprocessing=True)).infer(images)
    assert (ours - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_the_input_is_uint8_and_any_runtime_can_be_fed_with_it(quantized: Path) -> None:
    import onnxruntime

    folder = ModelFolder(quantized)
    graph = onnx.load(quantized / "model.b4.int8.u8.onnx").graph
    (given,) = graph.input
    assert (given.name, given.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert [dimension.dim_value for dimension in given.type.tensor_type.shape.dim] == [4, 32, 32, 3]
    pixels, images = images_of(folder, 4)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI products overflow in 16 bits
    file = str(quantized / "model.b4.int8.u8.onnx")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        expected = folder.load()(images)
    assert (torch.from_numpy(logits) - expected).abs().max() < 0.1 * expected.abs().max()


def test_pytorch_has_no_such_file(exported: Path) -> None:
    with pytest.raises(InputError, match="--with-preprocessing is about exported files, and runtime torch runs"):
        RUNTIMES["torch"].open(ModelFolder(exported), Variant.of(4, with_preprocessing=True))


def test_the_command_that_makes_a_missing_one(exported: Path) -> None:
    with pytest.raises(InputError, match="--batch 4 --precision fp16 --with-preprocessing`"):
        RUNTIMES["onnxruntime"].open(ModelFolder(exported), Variant.of(4, "fp16", with_preprocessing=True))


@pytest.mark.trt
@pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")
def test_an_engine_of_it_takes_pixels(exported_copy: ModelFolder) -> None:
    result = export(exported_copy, 4, "bf16", with_preprocessing=True, trt=True, flavor="tensorrt-rtx")
    assert result.engine.path.name == "model.b4.bf16.u8.tensorrt-rtx.engine"
    record = exported_copy.manifest.exports[result.engine.path.name]
    assert record["network"]["inputs"] == [{"name": "images", "shape": [4, 32, 32, 3], "dtype": "UINT8"}]
    assert set(record["network"]["layers"]["MATRIX_MULTIPLY"]) == {"BF16"}
    assert "FLOAT" not in record["network"]["layers"]["ELEMENTWISE"]  # normalised by the weights
