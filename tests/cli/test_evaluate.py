"""`dcvit-tool evaluate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan, HeadPlan

Tool = Callable[..., Any]


def test_json_has_the_keys_that_scripts_read(tool: Tool, exported: Path) -> None:
    ended = tool("evaluate", exported, "--data", "digits", "--runtime", "onnxruntime", "--batch", 4, "--json")
    assert ended.status == 0
    assert ended.json["images"] == 500
    assert 0 <= ended.json["top1"] <= ended.json["top5"] <= 100
    assert ended.json["runtime"] == "onnxruntime"
    assert "top-1" in ended.stderr


def test_the_file_that_is_there_is_taken_and_named(tool: Tool, exported_copy: ModelFolder) -> None:
    exported_copy.remove(["model.b4.fp32.onnx"])
    ended = tool("evaluate", exported_copy.path, "--data", "digits", "--runtime", "onnxruntime", "--json")
    assert ended.status == 0
    assert (ended.json["precision"], ended.json["batch"]) == ("fp16", 4)
    assert f"taking model.b4.fp16.onnx, the only file of {exported_copy.path}" in ended.stderr


def test_a_timm_model_with_random_weights(tool: Tool) -> None:
    kwargs = '{"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1, "num_classes": 10}'
    ended = tool("evaluate", "vit_tiny_patch16_224", "--random-init", "--model-kwargs", kwargs, "--data", "digits")
    assert ended.status == 0
    assert "on 500 images of digits" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "digits", "--runtime", "caffe"],
            "there is no runtime 'caffe'; choose one of torch, torch-",
        ),
        (
            ["--data", "digits", "--runtime", "onnxruntime", "--batch", "5"],
            "no model.b5.fp32.onnx; make it with `dcvit-tool export",
        ),
        (["--data", "nowhere"], "--data: there is nothing at nowhere"),
        (["--data", "digits", "--batch", "0"], "at least one image"),
        (["--data", "digits", "--checkpoint", "some.pth"], "is a model folder and has weights of its own"),
        ([], "Missing option '--data'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tool: Tool, exported: Path, arguments: list[str], message: str) -> None:
    ended = tool("evaluate", exported, *arguments)
    assert ended.status == 2
    assert message in ended.error


def test_a_model_of_other_classes(tool: Tool) -> None:
    ended = tool("evaluate", "vit_tiny_patch16_224", "--random-init", "--data", "digits")
    assert ended.status == 2
    assert "digits has 10 classes and the model 1000" in ended.error


def test_masks_of_two_classes_as_black_and_white(
    tool: Tool, tmp_path: Path, make_folder: Callable[..., ModelFolder], tiny_plan: CompressionPlan
) -> None:
    """White is 255, which no pixel of would count: that would read as 100 % of whatever is predicted."""
    folder = make_folder(tmp_path / "model", tiny_plan.replace(head=HeadPlan(num_classes=2))).path
    generator = np.random.default_rng(0)
    for index in range(4):
        for kind, pixels in (
            ("images", generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
            ("masks", generator.choice(np.array([0, 255], dtype=np.uint8), (32, 32))),
        ):
            (tmp_path / "pairs" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "pairs" / kind / f"{index}.png")
    refused = tool("evaluate", folder, "--data", tmp_path / "pairs")
    assert refused.status == 2
    assert "--mask-values 0,255" in refused.error
    ended = tool("evaluate", folder, "--data", tmp_path / "pairs", "--mask-values", "0,255", "--json")
    assert ended.status == 0, ended.stderr
    assert 0 < ended.json["miou"] < 60  # masks are noise, so no model is right more often than by chance
    assert len(ended.json["iou"]) == 2
