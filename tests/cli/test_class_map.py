"""`--class-map`, from the file to everything that shows a class."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from dcvit.errors import InputError
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.reporting.facts import Facts
from dcvit.reporting.usage import snippets

Tool = Callable[..., Any]

KWARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Eleven classes whose folders are called 1 to 11."""
    for number in range(1, 12):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(tmp_path / "set" / str(number) / "0.png")
    return tmp_path / "set"


def as_text() -> list[str]:
    return sorted(str(number) for number in range(1, 12))


def test_from_the_map_to_manifest_onnx_evaluation_and_report(tmp_path: Path, numbered: Path, tool: Tool) -> None:
    """A model that was trained with torchvision's order: without its map all would be numbered wrongly."""
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(as_text()), encoding="utf-8")
    small = tmp_path / "small"
    ended = tool(
        "compress", "vit_tiny_patch16_224", "--random-init", "--model-kwargs", json.dumps(KWARGS | {"num_classes": 11}),
        "--data", numbered, "--class-map", file, "--recover", "none", "--macs-reduction", 0.2, "--samples", 4,
        "-o", small,
    )  # fmt: skip
    assert ended.status == 0, ended.error
    folder = ModelFolder(small)
    assert folder.manifest.classes == tuple(as_text())
    assert folder.manifest.repeat["run"]["class_map"] == as_text()

    export(folder, 2)
    metadata = {entry.key: entry.value for entry in onnx.load(folder.path / "model.b2.fp32.onnx").metadata_props}
    assert ast.literal_eval(metadata["names"]) == dict(enumerate(as_text()))

    with pytest.raises(InputError, match="class 1 is '2' in .*, and '10' in .*small"):
        evaluate(small, numbered)
    assert evaluate(small, numbered, class_map=file).images == 11
    refused = tool("evaluate", small, "--data", numbered)
    assert (refused.status, "give --class-map FILE" in refused.error) == (2, True)
    assert tool("evaluate", small, "--data", numbered, "--class-map", file).status == 0

    facts = Facts(ModelFolder(small))
    assert ("classes", "0 1, 1 10, 2 11, 3 2, 4 3, 5 4, 6 5, 7 6, 8 7, 9 8, 10 9") in facts.settings
    assert all('["classes"]' in each.code for each in snippets(facts) if each.code)
    assert "classes: 0 1, 1 10" in tool("inspect", small).stdout
