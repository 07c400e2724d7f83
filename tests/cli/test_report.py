"""`dcvit-tool report`, and the accuracy of the original that it shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcvit.folder.model_folder import ModelFolder

Tool = Callable[..., Any]


def test_both_files_are_named(tool: Tool, exported_copy: ModelFolder) -> None:
    ended = tool("report", exported_copy.path, "--json")
    assert ended.status == 0
    assert Path(ended.json["html"]) == exported_copy.path / "report.html"
    assert Path(ended.json["card"]) == exported_copy.path / "README.md"
    assert all(Path(ended.json[key]).stat().st_size > 1000 for key in ("html", "card"))


def test_no_folder_is_status_2(tool: Tool, tmp_path: Path) -> None:
    ended = tool("report", tmp_path / "nowhere")
    assert ended.status == 2
    assert "neither a model folder" in ended.error


def test_the_original_s_accuracy_is_kept_with_the_folder(tool: Tool, exported_copy: ModelFolder) -> None:
    kwargs = json.dumps(exported_copy.plan.model_kwargs)
    arguments = ("--random-init", "--model-kwargs", kwargs, "--data", "digits", "--as-original-of", exported_copy.path)
    ended = tool("evaluate", exported_copy.plan.model, *arguments, "--json")
    assert ended.status == 0
    (row,) = json.loads((exported_copy.path / "evaluations.json").read_text())["results"]
    assert row["original"]
    assert row["top1"] == ended.json["top1"]
    other = tool("evaluate", "deit_tiny_patch16_224", *arguments)
    assert other.status == 2
    assert "was made from vit_tiny_patch16_224, not from deit_tiny_patch16_224" in other.error
