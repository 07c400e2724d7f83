"""Verifying whole folders: good ones pass, and every kind of damage is found."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.folder.records import onnx_records
from dcvit.plan import CompressionPlan
from dcvit.runtimes import flavors, onnx_runtimes
from dcvit.verification import VerifyResult, _images_for, verify

needs_rtx = pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")
ONNX = "model.b4.fp32.onnx"


def failures(result: VerifyResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


COMPARED = tuple(f" against PyTorch, {what}" for what in ("random input", "real images", "real images, top-1"))
BATCHES = (": equal images", ": permuted batch", ": batch 1")


def runs(precision: str) -> list[str]:
    """What runs a file of this precision here, as the checks name it."""
    return [
        runtime.title if computed == precision else f"{runtime.title} {computed}"
        for runtime in onnx_runtimes()
        for computed in runtime.precisions
        if runtime.source(computed) == precision
    ]


def change_weight(folder: ModelFolder, value: float) -> None:
    """Changes one weight of the head in the ONNX file, and enters the file anew as if it had been exported so."""
    model = onnx.load(folder.path / ONNX)
    (weight,) = (weight for weight in model.graph.initializer if weight.name == "head.weight")
    numbers = numpy_helper.to_array(weight).copy()
    numbers[3, 5] = value
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    folder.add(ONNX, lambda path: onnx.save(model, path), folder.manifest.exports[ONNX])


def test_a_good_folder_passes_on_real_images_and_noise(exported: Path, image_folder: Callable[..., Path]) -> None:
    data = image_folder(classes=2, each=5)
    result = verify(exported, data)
    assert result.passed, failures(result)
    report = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert report["passed"] is True
    assert report["data"] == str(data)
    assert str(data.parent) not in (exported / "verify.json").read_text()
    assert {"name", "passed", "max_abs_error"} <= set(report["checks"][0])
    for precision in ("fp32", "fp16"):
        mine = [check for check in result.checks if check.name.startswith(f"model.b4.{precision}.onnx: ")]
        whats = [check.name.split(": ", 1)[1] for check in mine]
        assert whats == [
            "origin",
            "metadata",
            "static shapes",
            "operators",
            "types",
            *(["fused attention"] if precision == "fp16" else []),
            *(f"{ran}{what}" for ran in runs(precision) for what in (*COMPARED, *BATCHES)),
        ]
        compared = [check.max_abs_error is not None for check in mine]
        assert compared == [False] * len(whats[: -6 * len(runs(precision))]) + [
            True,
            True,
            False,
            True,
            True,
            True,
        ] * len(runs(precision))


@pytest.mark.parametrize(("macs", "images"), [(None, 64), (10**9, 64), (10**11, 20), (10**13, 8)])
def test_a_large_model_is_compared_on_fewer_images(exported_copy: ModelFolder, macs: int | None, images: int) -> None:
    exported_copy.manifest.metrics["macs_after"] = macs
    records = onnx_records(exported_copy).values()
    assert _images_for(exported_copy, records) == images
    of_32 = next(iter(records)).model_copy(update={"batch": 32})
    assert _images_for(exported_copy, [*records, of_32]) == max(images, 32)


def test_corrupt_images_are_left_out(exported: Path, image_folder: Callable[..., Path]) -> None:
    data = image_folder(classes=2, each=5)
    (data / "class0" / "3.png").write_bytes(b"not an image")
    checks = {check.name: check for check in verify(exported, data).checks}
    assert checks[f"{ONNX}: ONNX Runtime against PyTorch, real images, top-1"].detail == "9 of 9 agree"
    for path in data.rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(InputError, match="none of the 10 images of .* can be decoded"):
        verify(exported, data)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_one_wrong_weight_is_found(exported_copy: ModelFolder, value: float) -> None:
    change_weight(exported_copy, value)
    result = verify(exported_copy.path)
    compared = [" against PyTorch, random input"] + [": batch 1"] * math.isfinite(value)
    assert failures(result) == [f"{ONNX}: {ran}{what}" for ran in runs("fp32") for what in compared]
    assert not result.passed
    json.dumps(result.to_json(), allow_nan=False)


def test_an_onnx_file_of_other_weights_is_found(exported_copy: ModelFolder) -> None:
    entry = exported_copy.manifest.exports[ONNX] | {"weights_sha256": "0" * 64}
    data = (exported_copy.path / ONNX).read_bytes()
    exported_copy.add(ONNX, lambda path: path.write_bytes(data) and None, entry)
    (check,) = (check for check in verify(exported_copy.path).checks if not check.passed)
    assert check.name == f"{ONNX}: origin"
    assert WEIGHTS in check.detail


def test_a_folder_without_exports_says_how_to_make_them(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, tiny_plan: CompressionPlan
) -> None:
    folder = make_folder(tmp_path / "model", tiny_plan)
    with pytest.raises(InputError, match=f"no ONNX file to verify; make one with `dcvit-tool export {folder.path}`"):
        verify(folder)


def test_missing_data_and_a_manifest_that_is_not_ours(exported_copy: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data: there is nothing at"):
        verify(exported_copy, tmp_path / "nowhere")
    exported_copy.manifest.exports[ONNX] = {"kind": "onnx", "batch": "many"}
    with pytest.raises(InputError, match=f"entry for {ONNX} cannot be read; export again"):
        verify(exported_copy)


def test_int8_bf16_and_pixels_are_verified(quantized: Path, image_folder: Callable[..., Path]) -> None:
    result = verify(quantized, image_folder(classes=2, each=5))
    assert result.passed, failures(result)
    details = {check.name: check.detail for check in result.checks}
    assert "17 of 17 layers" in details["model.b4.int8.u8.onnx: int8"]
    assert "images in uint8" in details["model.b4.int8.u8.onnx: types"]
    for ran in runs("int8"):
        assert "cosine" in details[f"model.b4.int8.u8.onnx: {ran} against PyTorch, real images"]
    bf16 = [name for name in details if name.startswith("model.b4.bf16.u8.onnx: ") and "PyTorch" in name]
    if runs("bf16"):
        assert len(bf16) == 3 * len(runs("bf16"))
    elif "OpenVINO" in runs("fp32"):
        assert len(bf16) == 3
        assert all("its weights in fp32 arithmetic" in name for name in bf16)
    else:
        assert "nothing here computes bf16" in details["model.b4.bf16.u8.onnx: not run"]


@pytest.mark.trt
@needs_rtx
class TestEngines:
    @pytest.fixture
    def engine(self, exported_copy: ModelFolder) -> str:
        path = export(exported_copy, 4, "fp16", trt=True, flavor="tensorrt-rtx").engine.path
        return path.name

    def test_a_good_engine_passes(self, exported_copy: ModelFolder, engine: str) -> None:
        result = verify(exported_copy.path)
        assert result.passed, failures(result)
        details = {check.name: check.detail for check in result.checks}
        assert details[f"{engine}: inputs and outputs"] == "images FLOAT [4, 3, 32, 32], logits FLOAT [4, 10]"
        assert "matrix products in HALF" in details[f"{engine}: types"]
        if not torch.cuda.is_available():
            assert details[f"{engine}: file"].endswith("not run: there is no NVIDIA GPU here")

    def test_an_engine_of_an_older_onnx_file(self, exported_copy: ModelFolder, engine: str) -> None:
        model = onnx.load(exported_copy.path / "model.b4.fp16.onnx")
        model.doc_string = "newer"
        name = "model.b4.fp16.onnx"
        exported_copy.add(name, lambda path: onnx.save(model, path), exported_copy.manifest.exports[name])
        assert failures(verify(exported_copy.path)) == [f"{engine}: origin"]

    def test_an_engine_that_computes_in_fp32_in_silence(self, exported_copy: ModelFolder, engine: str) -> None:
        entry = json.loads(json.dumps(exported_copy.manifest.exports[engine]))
        source = "model.b4.fp32.onnx"
        entry |= {"onnx": source, "onnx_sha256": exported_copy.manifest.files[source].sha256}
        data = (exported_copy.path / engine).read_bytes()
        exported_copy.add(engine, lambda path: path.write_bytes(data) and None, entry)
        assert failures(verify(exported_copy.path)) == [f"{engine}: network", f"{engine}: types"]

    def test_an_engine_with_other_inputs(self, exported_copy: ModelFolder, engine: str) -> None:
        entry = json.loads(json.dumps(exported_copy.manifest.exports[engine]))
        entry["network"]["inputs"][0]["dtype"] = "HALF"
        data = (exported_copy.path / engine).read_bytes()
        exported_copy.add(engine, lambda path: path.write_bytes(data) and None, entry)
        assert failures(verify(exported_copy.path)) == [f"{engine}: inputs and outputs", f"{engine}: network"]

    def test_a_file_that_is_no_engine(self, exported_copy: ModelFolder, engine: str) -> None:
        noise = np.random.default_rng(0).bytes(100_000)
        exported_copy.add(engine, lambda path: path.write_bytes(noise) and None, exported_copy.manifest.exports[engine])
        assert failures(verify(exported_copy.path)) == [f"{engine}: file"]
