"""`dcvit-tool export`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EvaluationRecord
from dcvit.runtimes import flavors

Tool = Callable[..., Any]


def test_the_files_and_their_names(tool: Tool, exported_copy: ModelFolder) -> None:
    ended = tool("export", exported_copy.path, "--batch", 2, "--precision", "fp16", "--json")
    assert ended.status == 0
    path = exported_copy.path / "model.b2.fp16.onnx"
    file = {
        "batch": 2,
        "precision": "fp16",
        "onnx": str(path),
        "onnx_bytes": path.stat().st_size,
        "engine": None,
        "engine_bytes": None,
        "with_preprocessing": False,
        "quantization": None,
        "evaluation": None,
        "folds": ["patch embedding"],
        "opset": 23,
    }
    assert ended.json == file | {"files": [file]}
    assert str(path) in ended.stderr


@pytest.mark.trt
@pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")
def test_an_engine_and_nothing_but_json_on_stdout(tool: Tool, exported_copy: ModelFolder) -> None:
    ended = tool(
        "export", exported_copy.path, "--batch", 4, "--trt", "--flavor", "tensorrt-rtx", "--json",
        "--compute-capability", "8.0", "--compute-capability", "8.9",
    )  # fmt: skip
    assert ended.status == 0
    path = exported_copy.path / "model.b4.fp32.tensorrt-rtx.engine"
    assert ended.json["engine"] == str(path)
    record = ModelFolder(exported_copy.path).manifest.exports[path.name]
    assert record["compute_capabilities"] == ["8.0", "8.9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch 0: a batch holds at least one image"),
        (["--batch", "many"], "--batch many: give a number of images, or 'dynamic'"),
        (["--precision", "fp4"], "'fp4' is not one of"),
        (["--precision", "int8"], "--precision int8 is calibrated on images: give --data"),
        (["--data", "digits"], "--data is what int8 and fp8 are calibrated on; leave it out for fp32"),
        (["--max-drop", "1"], "--max-drop is measured on images: give --evaluate"),
        (["--evaluate", "digits", "--max-drop", "-1"], "--max-drop -1: give points between 0 and 100"),
        (["--evaluate", "nowhere"], "--data: there is nothing at nowhere"),
        (["--precision", "fp8"], "--precision fp8 is calibrated on images: give --data"),
        (["--profile", "1,2,4"], "--profile is about an engine that takes any number of images"),
        (["--batch", "2", "--batch", "0"], "--batch 0: a batch holds at least one image"),
        (["--flavor", "tensorrt-rtx"], "--flavor and --compute-capability are about the engine; add --trt"),
        (["--trt", "--flavor", "tensorrt"], "tensorrt"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_folder_as_it_was(
    tool: Tool, exported_copy: ModelFolder, arguments: list[str], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in exported_copy.path.iterdir()}
    ended = tool("export", exported_copy.path, *arguments)
    assert ended.status == 2
    assert message in ended.error
    assert ended.stdout == ""
    assert {path.name: path.read_bytes() for path in exported_copy.path.iterdir()} == before


@pytest.mark.trt
@pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")
def test_an_unknown_compute_capability(tool: Tool, exported: Path) -> None:
    ended = tool("export", exported, "--trt", "--flavor", "tensorrt-rtx", "--compute-capability", "5.0")
    assert ended.status == 2
    assert "--compute-capability 5.0: TensorRT-RTX" in ended.error


def test_what_is_no_model_folder(tool: Tool, tmp_path: Path) -> None:
    ended = tool("export", tmp_path / "nowhere", "--json")
    assert ended.status == 2
    assert "is not a model folder" in ended.error
    assert ended.json == {"error": ended.error, "exit_status": 2}


def test_a_precision_that_loses_too_much_is_status_1_with_the_figures(
    tool: Tool, exported_copy: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = EvaluationRecord(
        data="digits", images=500, runtime="onnxruntime", top1=90.2, top1_fp32=92.0, agreement=95.4, max_drop=1.5
    )
    monkeypatch.setattr("dcvit.exporting.evaluate_file", lambda *arguments: found)
    arguments = ("--batch", 4, "--precision", "fp16", "--evaluate", "digits", "--max-drop", 1.5, "--json")
    ended = tool("export", exported_copy.path, *arguments)
    assert ended.status == 1
    assert ended.json["exit_status"] == 1
    assert ended.json["error"] == (
        "model.b4.fp16.onnx loses 1.80 points of top-1, more than --max-drop 1.5: top-1 90.20 %, fp32 92.00 %, "
        "95.40 % of the classes are those of fp32 (500 images of digits, onnxruntime); it is not kept"
    )
    assert not (exported_copy.path / "model.b4.fp16.onnx").exists()  # an earlier one of that name went too
    assert set(ModelFolder(exported_copy.path).manifest.exports) == {"model.b4.fp32.onnx"}
