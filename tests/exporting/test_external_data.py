"""Weights beside the graph, as from 2 GiB on, in every step: the limit is lowered for a small model."""

import gc
import importlib.util
import weakref
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

import dcvit.exporting.storage
from dcvit.bench import benchmark
from dcvit.errors import CheckFailedError, InputError
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.exporting.onnx import trace
from dcvit.exporting.quantization import Calibration
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import engine_records
from dcvit.model import build
from dcvit.plan import CompressionPlan
from dcvit.variant import Precision
from dcvit.verification import verify

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


@pytest.fixture
def folder(
    make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan, monkeypatch: pytest.MonkeyPatch
) -> ModelFolder:
    """Of 27 000 weights: 108 kB in fp32, a quarter of it in int8."""
    monkeypatch.setattr(dcvit.exporting.storage, "_LIMIT", 10_000)
    return make_folder(
        tmp_path / "model", tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"depth": 2, "patch_size": 16})
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_every_precision_is_written_in_two_files_and_verified(
    folder: ModelFolder, random_pixels: Calibration, precision: Precision
) -> None:
    data = random_pixels if precision in ("int8", "fp8") else None
    result = export(folder, 4, precision, data=data)
    path, weights = result.onnx.path, result.onnx.path.with_name(f"{result.onnx.path.name}.data")
    assert weights.stat().st_size > 2 * path.stat().st_size > 0
    assert result.onnx.bytes == path.stat().st_size + weights.stat().st_size
    kept = ModelFolder(folder.path)  # which checks the sha256 of both
    assert {path.name, weights.name} <= set(kept.manifest.files)
    assert sorted(each.name for each in folder.path.iterdir() if each.name.startswith(".")) == []
    stored = onnx.load(path, load_external_data=False)
    large = [each for each in stored.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for each in large for entry in each.external_data if entry.key == "location"} == {weights.name}
    checks = verify(kept)
    assert checks.passed, [check for check in checks.checks if not check.passed]


@pytest.mark.thorough
def test_evaluate_and_bench_read_both_files(folder: ModelFolder, image_folder: Callable[..., Path]) -> None:
    export(folder, 4)
    assert evaluate(folder.path, image_folder(10, 2), runtime="onnxruntime", batch=4).images == 20
    (row,) = benchmark(ModelFolder(folder.path), batch=4, runs=5, threads=1).rows
    assert row.measured.file == "model.b4.fp32.onnx"


@pytest.mark.trt
@needs_rtx
def test_engines_are_built_from_both_files(folder: ModelFolder) -> None:
    export(folder, 4, "fp16", trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.9",))
    kept = ModelFolder(folder.path)
    (record,) = engine_records(kept).values()
    assert record.onnx_sha256 == kept.manifest.files["model.b4.fp16.onnx"].sha256
    assert verify(kept).passed


def test_a_graph_of_other_weights_is_another_file(folder: ModelFolder) -> None:
    export(folder, 4)
    before = ModelFolder(folder.path).manifest.files["model.b4.fp32.onnx"].sha256
    model = folder.load()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] += 1
    other = ModelFolder.create(folder.path.with_name("other"), model, folder.plan, folder.manifest)
    export(other, 4)
    assert ModelFolder(other.path).manifest.files["model.b4.fp32.onnx"].sha256 != before


def test_weights_that_have_changed_are_found(folder: ModelFolder) -> None:
    path = export(folder, 4).onnx.path
    with path.with_name(f"{path.name}.data").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(InputError, match=r"model\.b4\.fp32\.onnx\.data has changed since it was written"):
        ModelFolder(folder.path)


def test_one_file_replaces_two(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    export(folder, 4)
    monkeypatch.setattr(dcvit.exporting.storage, "_LIMIT", 10_000_000)
    export(folder, 4)
    assert "model.b4.fp32.onnx.data" not in ModelFolder(folder.path).manifest.files
    assert sorted(each.name for each in folder.path.glob("*.onnx*")) == ["model.b4.fp32.onnx"]


def test_a_refused_file_goes_with_its_weights(
    folder: ModelFolder, blind: Calibration, image_folder: Callable[..., Path]
) -> None:
    export(folder, 4, "int8", data=blind)
    model = folder.load()
    with torch.no_grad():  # beside the range of one hidden node all others are nothing
        model.blocks[1].mlp.fc1.bias[3] = 3e4
        model.blocks[1].mlp.fc2.weight[:, 3] = 1e-6
        model.blocks[1].mlp.fc2.weight[:, 4:] *= 20
    fragile = ModelFolder.create(folder.path.with_name("fragile"), model, folder.plan, folder.manifest)
    export(fragile, 4, "int8", data=blind)
    with pytest.raises(CheckFailedError, match="is not kept"):
        export(fragile, 4, "int8", data=blind, evaluate=image_folder(2, 20), max_drop=1)
    assert not list(fragile.path.glob("*.onnx*"))


def test_weights_go_with_their_model(tiny_plan: CompressionPlan) -> None:
    """The exporter keeps the last graphs that it saw; ViT-H's would take 2.5 GB for as long as the process runs."""
    model = build(tiny_plan)
    weights = [weakref.ref(parameter) for parameter in model.parameters() if parameter.ndim == 2]
    assert len(weights) > 4
    graph = trace(model, torch.zeros(1, 3, 32, 32), 20)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    assert size > 2 * sum(parameter.numel() for parameter in model.parameters())  # bytes: the graph has weights itself
    del model, graph
    gc.collect()
    assert [weight() for weight in weights] == [None] * len(weights)
