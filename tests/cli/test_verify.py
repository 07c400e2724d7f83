"""`dcvit-tool verify`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from dcvit.folder.model_folder import ModelFolder

Tool = Callable[..., Any]


def test_a_good_folder_is_status_0(tool: Tool, exported: Path) -> None:
    ended = tool("verify", exported, "--data", "digits", "--json")
    assert ended.status == 0
    assert ended.json["passed"] is True
    assert ended.json["data"] == "digits"
    assert all({"name", "passed", "max_abs_error"} <= set(check) for check in ended.json["checks"])
    assert f"all {len(ended.json['checks'])} checks hold" in ended.stderr


def test_a_failed_check_is_status_1_and_named(tool: Tool, exported_copy: ModelFolder) -> None:
    name = "model.b4.fp32.onnx"
    model = onnx.load(exported_copy.path / name)
    model.metadata_props[0].value = "something else"
    exported_copy.add(name, lambda path: onnx.save(model, path), exported_copy.manifest.exports[name])
    ended = tool("verify", exported_copy.path)
    assert ended.status == 1
    assert "FAILED │ model.b4.fp32.onnx: metadata" in ended.stdout
    assert re.search(r"1 of \d+ checks FAILED", ended.stdout)
    as_json = tool("verify", exported_copy.path, "--json")
    assert as_json.status == 1
    assert as_json.json["passed"] is False


def test_a_changed_file_is_status_2(tool: Tool, exported_copy: ModelFolder) -> None:
    path = exported_copy.path / "model.b4.fp32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    ended = tool("verify", exported_copy.path)
    assert ended.status == 2
    assert "model.b4.fp32.onnx has changed" in ended.error


def test_data_that_is_not_there(tool: Tool, exported: Path) -> None:
    ended = tool("verify", exported, "--data", "nowhere")
    assert ended.status == 2
    assert "--data: there is nothing at nowhere" in ended.error
