"""--task of every command, and segmentation through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Tool = Callable[..., Any]
KWARGS = '{"img_size": [16, 24], "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 3}'
COMPRESS = ("compress", "vit_tiny_patch16_224", "--random-init", "--model-kwargs", KWARGS, "--recover", "none")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for folder, shape, top in (("images", (16, 24, 3), 256), ("masks", (16, 24), 3)):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, top, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pairs" / folder / f"{index}.png")
    return tmp_path / "pairs"


def test_a_segmentation_model_through_every_command(tool: Tool, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wanted = ("--task", "segmentation", "--head", "multi-level", "--merge", "horizontal@1", "--unmerge", "bilinear")
    made = tool(*COMPRESS, *wanted, "-o", out)
    assert made.status == 0, made.stderr
    assert json.loads((out / "plan.json").read_text())["head"]["unmerge"] == "bilinear"
    for arguments in (
        ("export", out, "--batch", 2),
        ("verify", out, "--data", pairs),
        ("bench", out, "--batch", 2, "--runs", 5, "--runtime", "torch", "--no-memory"),
    ):
        ended = tool(*arguments, "--task", "segmentation")
        assert ended.status == 0, ended.stderr
    found = tool("evaluate", out, "--data", pairs, "--task", "segmentation", "--json")
    assert found.json["images"] == 3
    assert 0 <= found.json["miou"] <= 100
    assert len(found.json["iou"]) == 3
    drawn = tool("inspect", out, "--pictures", tmp_path / "drawn", "--data", pairs, "--json")
    assert drawn.json["task"] == "segmentation"
    assert all(Path(path).is_file() for path in drawn.json["pictures"])
    assert len(drawn.json["pictures"]) == 2
    assert "multi-level head for 3 classes" in drawn.stderr


def test_another_task_than_the_folders_is_an_error(tool: Tool, exported: Path) -> None:
    for arguments in (
        ("export", exported),
        ("verify", exported),
        ("bench", exported),
        ("evaluate", exported, "--data", "digits"),
    ):
        ended = tool(*arguments, "--task", "segmentation")
        assert ended.status == 2
        assert "is for classification; `dcvit-tool compress --task segmentation` makes one" in ended.error
    assert tool("evaluate", exported, "--data", "shapes").status == 2
