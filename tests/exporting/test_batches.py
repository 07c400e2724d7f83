"""A file for each batch, and one that takes any number of images."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from dcvit.bench import benchmark
from dcvit.errors import InputError
from dcvit.exporting import export, export_each
from dcvit.exporting.quantization import Calibration
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import engine_records, onnx_records
from dcvit.plan import CompressionPlan
from dcvit.runtimes import RUNTIMES
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.variant import Precision, Variant
from dcvit.verification import verify

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@pytest.fixture
def folder(make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan) -> ModelFolder:
    """Two blocks, with merged sizes that are added to the logits of attention."""
    plan = tiny_plan.replace(
        model_kwargs=tiny_plan.model_kwargs | {"depth": 2}, merges=({"after": 1, "axis": "horizontal"},),
        size_aware_attention=True,
    )  # fmt: skip
    return make_folder(tmp_path / "model", plan)


def test_several_batches_are_files_of_one_folder(folder: ModelFolder) -> None:
    results = export_each(folder, (1, 3, 1))
    assert [result.onnx.path.name for result in results.results] == ["model.b1.fp32.onnx", "model.b3.fp32.onnx"]
    json = results.to_json()
    assert json["onnx"] == json["files"][0]["onnx"]
    assert [each["batch"] for each in json["files"]] == [1, 3]
    assert list(onnx_records(ModelFolder(folder.path))) == ["model.b1.fp32.onnx", "model.b3.fp32.onnx"]


def test_no_file_is_written_where_one_batch_is_wrong(folder: ModelFolder) -> None:
    with pytest.raises(InputError, match="--batch 0"):
        export_each(folder, (1, 0))
    assert not list(folder.path.glob("*.onnx"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_dynamic_file_computes_any_number_of_images(
    folder: ModelFolder, random_pixels: Calibration, precision: Precision
) -> None:
    path = export(folder, "dynamic", precision, data=random_pixels if precision == "int8" else None).onnx.path
    assert path.name == f"model.dynamic.{precision}.onnx"
    model = onnx.load(path)
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)] == [
        "batch",
        "batch",
    ]
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = folder.load()(images)
    for batch in (1, 2, 5):
        session = OrtSession(path, batch=batch)
        assert session.batch == batch
        close = {"fp32": 1e-5, "fp16": 2e-2, "int8": 0.1}[precision]
        assert (session.infer(images) - expected).abs().max() <= close * expected.abs().max()
    kept = ModelFolder(folder.path)
    checks = verify(kept)
    assert checks.passed, [check for check in checks.checks if not check.passed]
    assert any(check.name == f"{path.name}: open batch" for check in checks.checks)
    assert any("against the file of batch 1" in check.detail for check in checks.checks)


def test_runtimes_take_the_dynamic_file_where_there_is_no_other(folder: ModelFolder) -> None:
    export_each(folder, ("dynamic", 2))
    kept = ModelFolder(folder.path)
    names = {batch: RUNTIMES["onnxruntime"].file(kept, Variant.of(batch)).name for batch in (1, 2)}
    assert names == {1: "model.dynamic.fp32.onnx", 2: "model.b2.fp32.onnx"}
    for name in ("onnxruntime", "openvino"):
        if RUNTIMES[name].unavailable() is None:
            assert RUNTIMES[name].open(kept, Variant.of(3)).infer(torch.randn(4, 3, 32, 32)).shape == (4, 10)


def test_latency_and_throughput_stand_side_by_side(folder: ModelFolder) -> None:
    export(folder, "dynamic")
    result = benchmark(ModelFolder(folder.path), batch=(4, 1), runs=5, threads=1)
    assert [(row.batch, row.measured.file) for row in result.rows] == [(n, "model.dynamic.fp32.onnx") for n in (4, 1)]
    (both,) = result.to_json()["latency_and_throughput"]
    large, small = (row.to_json() for row in result.rows)
    assert both["latency_batch"] == 1
    assert both["latency_ms"] == small["median_ms"]
    assert both["throughput_batch"] == 4
    assert both["images_per_second"] == large["images_per_second"] == pytest.approx(4000 / large["median_ms"])
    assert len(list(result.lines())) > 5


@pytest.mark.trt
@needs_rtx
def test_a_dynamic_engine_has_a_profile(folder: ModelFolder) -> None:
    export(
        folder, "dynamic", "fp16", trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.9",), profile=(1, 4, 16)
    )
    kept = ModelFolder(folder.path)
    (record,) = engine_records(kept).values()
    assert record.profile == (1, 4, 16)
    assert record.batch == 4
    assert record.network.inputs[0].shape == (-1, 3, 32, 32)
    assert record.variant.engine_name("tensorrt-rtx") == "model.dynamic.fp16.tensorrt-rtx.engine"
    checks = verify(kept)
    assert checks.passed, [check for check in checks.checks if not check.passed]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch": 4}, "--profile is about an engine that takes any number"),
    ({"batch": "dynamic"}, "add --batch dynamic and --trt"),
    ({"batch": "dynamic", "trt": True, "profile": (8, 4, 16)}, "--profile 8,4,16: give the least, the usual"),
])  # fmt: skip
def test_profiles_that_make_no_sense(folder: ModelFolder, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(folder, **{"profile": (1, 4, 16)} | arguments)
