"""Models of two or four channels through every command: what needs no picture works, the rest is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.reporting.facts import Facts
from dcvit.reporting.usage import snippets

REFUSED = "Error: --data: images have 1 or 3 channels, and the model takes {}; it cannot see images"


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.thorough)])
def channels(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def model(tiny_plan: CompressionPlan, channels: int) -> list[str]:
    kwargs = tiny_plan.model_kwargs | {"in_chans": channels, "depth": 3}
    return [tiny_plan.model, "--model-kwargs", json.dumps(kwargs)]


def test_all_that_needs_no_picture_works(
    tmp_path: Path, model: list[str], channels: int, tool: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    target = ["--macs-reduction", "0.2"]
    commands: list[list[Any]] = [
        ["plan", *model, *target],
        ["compress", *model, *target, "--random-init", "--recover", "none", "-o", out],
        ["export", out, "--batch", "2"],
        ["export", out, "--batch", "2", "--with-preprocessing"],
        ["verify", out],
        ["bench", out, "--batch", "2", "--runs", "5", "--no-memory"],
        ["inspect", out, "--layers", "--pictures", tmp_path / "drawn"],
        ["report", out],
    ]
    found = {}
    for command in commands:
        ended = tool(*command, "--json")
        assert ended.status == 0, ended.stderr
        found[command[0]] = ended.json
    assert found["verify"]["passed"]
    assert found["plan"]["macs_after"] == found["compress"]["macs_after"] < found["plan"]["macs_before"]
    folder = ModelFolder(out)
    assert folder.manifest.preprocessing.input_size == (channels, 32, 32)
    assert len(folder.manifest.preprocessing.mean) == channels

    pytorch, onnx_runtime, _ = snippets(Facts(folder))  # of channels that no picture has, only the user knows them
    for snippet in (pytorch, onnx_runtime):
        names: dict[str, Any] = {}
        code = snippet.code.replace(f'"{folder.path.name}', f'"{folder.path}')
        exec(compile(code, snippet.title, "exec"), names)
        logits = torch.as_tensor(names["logits"])[0]
        torch.testing.assert_close(logits, folder.load()(torch.zeros(1, channels, 32, 32))[0], atol=1e-4, rtol=1e-4)


def test_pictures_are_refused_by_name(
    tmp_path: Path, model: list[str], channels: int, tool: Callable[..., Any], image_folder: Callable[..., Path]
) -> None:
    images, out, target = image_folder(classes=10, each=1), tmp_path / "out", ["--macs-reduction", "0.2"]
    few = [*model, "--random-init", "--data", images, *target]
    merged = ["--merge", "horizontal@1"]  # the grid of a merge is drawn over an image
    assert tool("compress", *model, *merged, "--random-init", "--recover", "none", "-o", out).status == 0
    commands: list[list[Any]] = [
        ["compress", *few, "--samples", "4", "-o", tmp_path / "x"],
        ["compress", *few, "--samples", "4", "--search", "trials", "-o", tmp_path / "x"],
        ["compress", *few, "--method", "practise", "--samples", "4", "-o", tmp_path / "x"],
        ["compress", *few, "--method", "cait", "-o", tmp_path / "x"],
        ["frontier", *few, "--samples", "4", "-o", tmp_path / "x"],
        ["evaluate", *model, "--random-init", "--data", images],
        ["evaluate", out, "--data", images],
        ["verify", out, "--data", images],
        ["export", out, "--precision", "int8", "--data", images],
        ["export", out, "--precision", "fp16", "--evaluate", images],
        ["inspect", out, "--pictures", tmp_path / "drawn", "--data", images],
    ]
    assert tool("export", out, "--batch", "2").status == 0
    for command in commands:
        ended = tool(*command)
        assert (ended.status, ended.stderr.splitlines()[-1]) == (2, REFUSED.format(channels)), command
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "x").exists()
    assert ModelFolder(out).load()
